PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# pip does not compile what it installs, so each module is compiled where it is first imported: the
# outcome must be kept, or every process compiles all of torch and Ray again (3 times the CPU time).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup quickstart test quick long lint check docs faults chaos fuzz mutants oldest device-rules dry-run

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

quickstart: setup
	$(BIN)/raysweep launch sweeps/quickstart.yaml

# In four processes on two cores: tests that start Ray in two of them, in turn, and they mostly wait.
# `make test WHOLE=1` runs the further cases too, which are marked `further`.
WORKERS ?= 4
WHOLE ?=
test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --durations=20 $(if $(WHOLE),-m '$(SHORT)')
SHORT := not long and not device_rules and not dry_run

# The inner loop: no Ray, and nothing that takes long.
quick: setup
	$(BIN)/python -m pytest -n $(WORKERS) -m \
	  'not slow and not ray and not further and $(SHORT)'

# The tests that take minutes, beside a shorter one of the same.
long: setup
	$(BIN)/python -m pytest -n $(WORKERS) -m long --durations=20

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

# The documentation, into site/; its pages open from the folder, without a network.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

faults: setup
	$(BIN)/python -m tests.faults

# One sweep disturbed by faults over separated hosts, and compared with the undisturbed one. Needs
# root. `make chaos FAULTS=10 SEED=2`.
FAULTS ?= 50
SEED ?= 1
chaos: setup
	$(BIN)/python -m tests.chaos --faults $(FAULTS) --seed $(SEED)

# Random sweep files, data, records and stores; `make test` tries a thousand. `make fuzz SEED=2`.
EXAMPLES ?= 100000
fuzz: setup
	$(BIN)/python -m tests.fuzz --examples $(EXAMPLES) --seed $(SEED)

# Changes at sampled places of the engine; each must make a test fail. `make mutants MINUTES=20`.
MINUTES ?= 90
mutants: setup
	$(BIN)/python -m tests.mutants --jobs 2 --minutes $(MINUTES) --write docs/results/mutants.md

# The tests with the lowest version that pyproject allows of every direct dependency.
oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	$(PYTHON) -m tests.oldest > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --editable '.[dev]' --constraint .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pytest -n $(WORKERS) -m '$(SHORT)'

# Every method and model on a pretended CUDA device, in full; `make test` runs a small form.
device-rules: setup
	$(BIN)/python -m pytest -m '' tests/test_pretend_cuda.py tests/test_pretend_graphs.py \
	  tests/contracts/test_devices.py

# The training benchmark at toy size, to see that it still runs.
dry-run: setup
	$(BIN)/python -m pytest -m dry_run tests/test_training_benchmark.py
