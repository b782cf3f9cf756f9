"""A limit to the CPU time of a test; one worker for what tests share; one list of checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import group

ROOT = Path(__file__).parent.parent
BURN = "import time\nwhile time.process_time() < 0.6: pass"
TESTS = f"""
import subprocess, sys, time
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
"""


def test_a_test_that_takes_too_much_cpu_time_fails_unless_it_is_marked(tmp_path: Path) -> None:
    file = tmp_path / "test_planted.py"
    file.write_text(TESTS)
    words = [
        "-o",
        "markers=slow",
        "-o",
        "cpu_seconds=0.5",
        "-c",
        "/dev/null",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", *words, str(file)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.partition("::")[2].split()[0] for line in failed] == [
        "test_burns", "test_burns_in_a_fixture", "test_burns_in_a_child",
    ]  # fmt: skip
    assert "2 passed" in done.stdout
    assert "a test without the mark `slow` may take 0.5 s: make it smaller" in done.stdout


def test_tests_that_share_what_is_made_once_share_a_worker() -> None:
    contract, other = "tests/contracts/test_defenses.py", "tests/test_execute.py"
    assert group(f"{contract}::test_x[strip]", {"name": "strip"}, {"parametrize"}) == (
        f"{contract}-strip"
    )
    assert group(f"{contract}::test_x", {}, set()) == contract
    assert group(f"{other}::test_x[1]", {"name": 1}, {"slow"}) == other
    assert group(f"{other}::test_x", {}, {"slow", "ray"}) == "ray", "no two Rays at once"


def test_ci_and_the_hooks_before_a_commit_check_what_make_checks() -> None:
    rules = (ROOT / "Makefile").read_text()
    assert "\ncheck: lint test\n" in rules
    ci = [
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")
    ]
    assert ci == ["make quickstart", "make test", "make lint"]
    lint = rules.partition("lint: setup\n")[2].partition("\n\n")[0].splitlines()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in hooks]
    assert [
        line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in lint
    ] == entries
