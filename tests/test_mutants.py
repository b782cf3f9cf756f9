"""The mutation tool: what it changes, that every module has tests, and a small sample of it."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from cosmic_ray import plugins
from cosmic_ray.mutating import mutate_code

from tests import mutants
from tests.mutants import PACKAGES, ROOT, SETTINGS, Mutant, RemoveStatement

CODE = """
class Asks(Protocol):
    def one(self) -> int:
        return 1

@dataclass(frozen=True)
class Does:
    def __init__(self, size: int | None = None) -> None:
        self.size = size
        begin()

    def work(self, left: list[int]) -> None:
        left.append(2)
        self.size += 1
        self.done = True
        name = f(left)
"""


def test_what_is_changed_is_code_that_acts() -> None:
    changed = mutants.places("x.py", CODE)
    lines = {start[0] for start, _ in changed}
    assert lines == {6, 10, 13, 14, 15}, "of the decorator, only that it is there"
    assert len(changed[(6, 0), (7, 0)]) == 1
    operator, every = RemoveStatement(), []
    while (text := mutate_code(CODE, operator, len(every))) is not None:
        every.append(text)
        ast.parse(text)
    kept = CODE.splitlines()
    removed = [
        old.strip()
        for text in every
        for old, new in zip(kept, text.splitlines(), strict=True)
        if old != new
    ]
    assert removed == ["begin()", "left.append(2)", "self.size += 1", "self.done = True"]


def test_every_operator_is_known_and_every_module_has_tests_that_are_there() -> None:
    assert set(SETTINGS["operators"]) <= set(plugins.operator_names())
    for package in PACKAGES:
        for file in mutants.files_of(package):
            for test in mutants.tests_of(file):
                name, _, function = test.partition("::")
                text = (ROOT / "tests" / name).read_text()
                assert not function or f"def {function.partition('[')[0]}(" in text, test
    with pytest.raises(KeyError, match=r"no tests for cli/app\.py"):
        mutants.tests_of("cli/app.py")


def mutant(file: str, fate: str) -> Mutant:
    (specs, *_) = mutants.places(file, "x = 1\n").values()
    return Mutant(file=file, spec=specs[0], tests=(), fate=fate, old="x = 1", new="x = 2")


def test_nine_of_ten_are_asked_of_every_package_and_survivors_are_named() -> None:
    good = [mutant("run/a.py", "caught")] * 9 + [mutant("run/a.py", "survived")]
    assert mutants.good_enough(good) and mutants.good_enough([*good, mutant("store/b.py", "same")])
    assert not mutants.good_enough([*good, mutant("store/b.py", "survived")])
    assert mutants.good_enough([*good, mutant("store/b.py", "timeout")])
    assert not mutants.good_enough([*good, mutant("run/a.py", "survived")])
    text = mutants.told(good, 12, 7, 3.0)
    assert "10 of 12 sampled changes" in text and "| run | 10 | 10 | 9 | 0 | 0.90 |" in text
    assert "- `run/a.py:1`: `x = 1` → `x = 2`" in text and "not caught" in text


@pytest.mark.further
def test_a_small_sample_of_the_schedule_is_caught() -> None:
    """Where this fails, the survivor that it names needs a test, or a reason in mutants.toml."""
    command = ["-m", "tests.mutants", "run/schedule.py", "--quick", "--count", "4"]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| run | 4 |" in done.stdout
