"""The table of planted faults is right about sources and tests; planting itself is run apart."""

from __future__ import annotations

import ast
import importlib
import inspect
from dataclasses import replace
from pathlib import Path

import pytest

from tests import faults
from tests.faults import ROOT, Fault

TABLE = faults.table()


def names_of_tests(file: Path) -> set[str]:
    """Return `function` and `Class::function` of a file, inherited from a contract too."""
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    found = {name for name, value in vars(module).items() if inspect.isfunction(value)}
    for name, kind in vars(module).items():
        if inspect.isclass(kind) and name.startswith("Test"):
            found |= {f"{name}::{test}" for test in dir(kind) if test.startswith("test_")}
    return found


def wrong(fault: Fault) -> list[str]:
    """Return what is wrong with an entry of the table."""
    source = ROOT / "raysweep" / fault.file
    if not source.is_file():
        return [f"no file {fault.file}"]
    text = source.read_text()
    found = [] if text.count(fault.old) == 1 else [f"{text.count(fault.old)} of what it replaces"]
    if not found:
        faulty = ast.dump(ast.parse(faults.planted(fault, text)))
        found += ["changes nothing"] if faulty == ast.dump(ast.parse(text)) else []
    for test in fault.tests:
        name, _, function = test.partition("::")
        file = ROOT / "tests" / name
        if not file.is_file() or function.partition("[")[0] not in names_of_tests(file):
            found.append(f"no test {test}")
    return found + ([] if fault.tests else ["no tests"])


@pytest.mark.parametrize("name", TABLE)
def test_a_fault_is_where_the_table_says_and_so_are_its_tests(name: str) -> None:
    assert wrong(TABLE[name]) == []


def test_entries_that_have_rotted_are_seen() -> None:
    entry = next(iter(TABLE.values()))
    assert wrong(replace(entry, file="no.py")) == ["no file no.py"]
    assert wrong(replace(entry, old="no such text")) == ["0 of what it replaces"]
    assert wrong(replace(entry, new=entry.old)) == ["changes nothing"]
    assert wrong(replace(entry, tests=())) == ["no tests"]
    assert wrong(replace(entry, tests=("test_faults.py::test_no",))) == [
        "no test test_faults.py::test_no"
    ]
    with pytest.raises(ValueError, match=r"must occur once in .* it does 0 times"):
        faults.planted(replace(entry, old="no such text"), "")


def test_only_a_failure_of_the_named_test_counts() -> None:
    output = "FAILED tests/a.py::test_b[1] - assert 0\nERROR tests/a.py::test_c - no\n"
    assert faults.unseen(["a.py::test_b", "a.py::test_b[1]"], output) == []
    others = ["a.py::test_c", "a.py::test", "a.py::test_b[2]"]
    assert faults.unseen(others, output) == others
