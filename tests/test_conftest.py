"""A limit to the CPU time of a test; one worker for what tests share; one list of checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import RAY, group, ray_tests

ROOT = Path(__file__).parent.parent
BURN = "import time\nwhile time.process_time() < 0.6: pass"
TESTS = f"""
import os, subprocess, sys, time
import pytest

def burn():
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass

@pytest.fixture
def made():
    burn()

def test_burns():
    burn()

def test_burns_in_a_fixture(made):
    pass

def test_burns_in_a_child():
    subprocess.run([sys.executable, "-c", {BURN!r}], check=True)

@pytest.mark.slow
def test_is_marked():
    burn()

def test_waits():
    time.sleep(0.6)

@pytest.mark.slow
def test_leaves_a_child():
    left = subprocess.Popen([sys.executable, "-c", {BURN!r}]).pid
    os.waitid(os.P_PID, left, os.WEXITED | os.WNOWAIT)

def test_starts_another():
    subprocess.run([sys.executable, "-c", ""], check=True)
"""


SHARED = """
import os
from pathlib import Path
import pytest

@pytest.mark.ray
@pytest.mark.parametrize("number", range(3))
def test_ray(number):
    note("ray")

@pytest.mark.parametrize("number", range(3))
def test_other(number):
    note(Path(__file__).stem)

def note(group):
    with Path(__file__).with_name("notes").open("a") as notes:
        notes.write(f"{group} {os.environ['PYTEST_XDIST_WORKER']}\\n")
"""


def pytester(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of a folder with this conftest and none of the settings in pyproject."""
    common = ["-q", "-c", "/dev/null", "-p", "no:cacheprovider", "-p", "tests.conftest"]
    common += ["--rootdir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *common, "-o", "markers=slow\nray", *words, str(folder)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.further
def test_a_test_that_takes_too_much_cpu_time_fails_unless_it_is_marked(tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(TESTS)
    done = pytester(tmp_path, "-o", "cpu_seconds=0.5")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.partition("::")[2].split()[0] for line in failed] == [
        "test_burns", "test_burns_in_a_fixture", "test_burns_in_a_child",
    ]  # fmt: skip
    assert "4 passed" in done.stdout
    assert "a test without the mark `slow` may take 0.5 s: make it smaller" in done.stdout


@pytest.mark.further
def test_on_two_workers_one_has_all_of_a_group(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(SHARED)
    done = pytester(tmp_path, "-n", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    notes = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    assert len(notes) == 12
    workers: dict[str, set[str]] = {}
    for at, worker in notes:
        workers.setdefault(at, set()).add(worker)
    assert {name: len(some) for name, some in workers.items()} == {
        "ray": 1, "test_one": 1, "test_two": 1,
    }  # fmt: skip


def test_groups_are_rays_a_methods_or_a_modules(request: pytest.FixtureRequest) -> None:
    contract = "tests/contracts/test_defenses.py"
    assert group(f"{contract}::test_x[strip]", ROOT) == "contracts strip"
    assert group(f"{contract}::test_x[small-red-steps]", ROOT) == "contracts red"
    waits = "tests/contracts/test_devices.py::test_x[attacks-label_consistent-steps]"
    assert group(waits, ROOT) == "contracts label_consistent"
    inherited = "tests/contracts/test_attacks.py::TestAttacks::test_x[poison-(1, 16, 16)-badnets]"
    assert group(inherited, ROOT) == "contracts badnets"
    pinned = "tests/test_versions.py::test_x[defenses/strip]"
    assert group(pinned, ROOT) == "contracts strip", "what it finds is found once"
    assert group(f"{contract}::test_x", ROOT) == contract
    assert group("tests/test_device.py::test_x[red]", ROOT) == "tests/test_device.py"
    marked = [item for item in request.session.items if item.get_closest_marker("ray")]
    assert {group(item.nodeid, ROOT) for item in marked} <= set(RAY)
    named = ray_tests(ROOT / "tests" / "test_device.py")
    assert named == {"test_workers_see_their_gpus_alone_and_end_when_a_device_is_lost"}


def test_make_keeps_what_python_compiles_whatever_the_environment_says() -> None:
    """Else every process compiles all of torch and Ray again, which pip has not compiled."""
    said = subprocess.run(
        ["make", "--silent", "--eval", "said: ; @env", "said"], cwd=ROOT, check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "SEEN": "yes"},
        capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    assert "SEEN=yes" in said
    assert not [line for line in said if line.startswith("PYTHONDONTWRITEBYTECODE")]


def test_make_test_leaves_out_further_cases_and_the_whole_leaves_none_out(
    pytestconfig: pytest.Config,
) -> None:
    # A make above this test, as in CI, hands its own words (`WHOLE=1`) down in the environment.
    alone = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "WHOLE"))
    }

    def runs(*words: str) -> str:
        said = subprocess.run(
            ["make", "--dry-run", "--always-make", *words],
            cwd=ROOT, env=alone, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        return next(line for line in said.splitlines() if "-m pytest" in line)

    left_out = "not long and not device_rules and not dry_run"
    assert " -m '" not in runs("test"), "what pyproject.toml says"
    assert f"not further and {left_out}" in pytestconfig.getini("addopts")
    assert runs("test", "WHOLE=1").endswith(f" -m '{left_out}'")
    assert runs("oldest").endswith(f" -m '{left_out}'")


def test_ci_and_the_hooks_before_a_commit_check_what_make_checks() -> None:
    rules = (ROOT / "Makefile").read_text()
    assert "\ncheck: lint test\n" in rules
    ci = [
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")
    ]
    assert ci == ["make quickstart", "make lint", "make test WHOLE=1"]
    lint = rules.partition("lint: setup\n")[2].partition("\n\n")[0].splitlines()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in hooks]
    assert [
        line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in lint
    ] == entries
