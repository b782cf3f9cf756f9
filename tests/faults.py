"""Plants one fault after another in a copy of the package: `python -m tests.faults [NAME ...]`.

Each fault must make the tests fail that are named with it. Prints a line per fault, `caught` or
`MISSED`; the working tree is never changed. Tests of methods that no fault has made fail may not be
able to fail.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("raysweep", "tests", "benchmarks", "pyproject.toml")
TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Fault:
    """One wrong line of code, and the tests that see it.

    Attributes:
        name: what is wrong.
        file: below raysweep/.
        old: exact text, once in the file.
        new: what takes its place.
        tests: node ids below tests/; each must fail, in one of its parameters at least.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def table() -> dict[str, Fault]:
    """Return all faults by name.

    Raises:
        ValueError: if two have one name.
    """
    from tests import (
        planted_adaptive,
        planted_baselines,
        planted_datamodels,
        planted_devices,
        planted_engine,
        planted_kills,
        planted_plugins,
        planted_racing,
        planted_red,
        planted_rounds,
        planted_statistics,
        planted_tables,
        planted_tuning,
        planted_wandb,
    )

    modules = (
        planted_rounds, planted_baselines, planted_datamodels, planted_devices, planted_engine,
        planted_plugins, planted_kills, planted_red, planted_statistics, planted_tables,
        planted_tuning, planted_adaptive, planted_racing,
        planted_wandb,
    )  # fmt: skip
    every = [fault for module in modules for fault in module.FAULTS]
    named = {fault.name: fault for fault in every}
    if len(named) != len(every):
        raise ValueError("two faults have one name")
    return named


def planted(fault: Fault, text: str) -> str:
    """Return the file's text with the fault in it.

    Raises:
        ValueError: if what the fault replaces is not there exactly once.
    """
    count = text.count(fault.old)
    if count != 1:
        raise ValueError(
            f"fault {fault.name!r}: its text must occur once in {fault.file}, it does {count} "
            f"times; change the fault with the source"
        )
    return text.replace(fault.old, fault.new)


def run(folder: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Run tests of a copy; return pytest's exit status, -1 after the time limit, and the output."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-rfE",
        "--tb=no",
        "-m",
        "",
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, f"more than {TIMEOUT_S:g} s"
    return done.returncode, done.stdout + done.stderr


def unseen(tests: Iterable[str], output: str) -> list[str]:
    """Return the tests that did not fail; an error before a test's first line is no failure."""
    failed = re.findall(r"^FAILED tests/(\S+)", output, re.MULTILINE)
    return [
        test
        for test in tests
        if not any(node == test or node.startswith(f"{test}[") for node in failed)
    ]


def check(fault: Fault, folder: Path) -> list[str]:
    """Plant a fault in a copy, run its tests and take it back; return the tests that miss it."""
    path = folder / "raysweep" / fault.file
    original = path.read_text()
    path.write_text(planted(fault, original))
    try:
        _, output = run(folder, fault.tests)
    finally:
        path.write_text(original)
        # An hour ago: a compiled file of the same second and size would pass for this one's.
        before = path.stat().st_mtime - 3600
        os.utime(path, (before, before))
    return unseen(fault.tests, output)


def copied(folder: Path) -> None:
    """Copy what the tests need.

    Raises:
        RuntimeError: if Python would import another raysweep from there.
    """
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy2(source, folder / name)
    done = subprocess.run(
        [sys.executable, "-c", "import raysweep; print(raysweep.__file__)"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    if not Path(done.stdout.strip()).resolve().is_relative_to(folder.resolve()):
        raise RuntimeError(f"raysweep is imported from {done.stdout.strip()}, not from the copy")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Return 1 if a fault is missed, or if the tests do not pass without one."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="faults; by default all")
    parser.add_argument("--list", action="store_true", help="print the table and stop")
    given = parser.parse_args(arguments)
    faults = table()
    if unknown := set(given.names) - faults.keys():
        parser.error(f"no fault is named {', '.join(sorted(unknown))}; see --list")
    chosen = [faults[name] for name in given.names] or list(faults.values())
    if given.list:
        for fault in chosen:
            say(f"{fault.name}: {fault.file} -> {', '.join(fault.tests)}")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder)
        for fault in chosen:
            planted(fault, (folder / "raysweep" / fault.file).read_text())
        tests = list(dict.fromkeys(test for fault in chosen for test in fault.tests))
        status, output = run(folder, tests)
        if status:
            say(output)
            say("the tests must pass before faults are planted")
            return 1
        say(f"{len(tests)} tests pass without a fault")
        missed = 0
        for fault in chosen:
            alive = check(fault, folder)
            missed += bool(alive)
            say(f"{fault.name}: {'MISSED by ' + ', '.join(alive) if alive else 'caught'}")
    say(f"{len(chosen) - missed} of {len(chosen)} faults caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
