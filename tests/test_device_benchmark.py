"""The benchmark for a GPU machine runs dry on a CPU, and nothing that a step does stops it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
KEYS = {"step", "subject", "what", "value", "unit", "seconds", "card", "shown"}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("device")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "device.jsonl").read_text().splitlines()]


@pytest.mark.further
@pytest.mark.slow
def test_a_dry_run_measures_and_prints_the_table_after_every_step(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "device.py"), "--out", str(tmp_path), "--device", "cpu",
         "--seconds", "600", "--steps", "0,2,4,7"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = lines(tmp_path)
    assert all(line.keys() == KEYS and line["card"] == "cpu" for line in found)
    failed = [line for line in found if line["what"] in ("FAILED", "KILLED", "ENDED", "left out")]
    assert not failed
    assert {line["step"] for line in found} == {0, 2, 4, 7}
    assert done.stdout.count("=== cpu ===") == 4
    last = "=== cpu ===" + done.stdout.rpartition("=== cpu ===")[2]
    assert last == (tmp_path / "table.txt").read_text()
    twice = {line["value"] for line in found if line["what"] in ("twice", "killed and resumed")}
    assert twice == {"equal bytes"}


def fails(bench: Any) -> None:
    bench.note("planted", "before", 1)
    raise ValueError("planted fault")


def hangs(bench: Any) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    bench.note("planted", "child", child.pid)
    time.sleep(600)


def dies(bench: Any) -> None:
    del bench
    os._exit(7)


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"  # Of a killed process whose parent does not ask, a line stays.


def works(bench: Any) -> None:
    for number in range(100):
        bench.note(f"row {number}", "a measurement of some length", "x" * 300, "ms")


def test_a_step_that_fails_hangs_or_dies_ends_alone(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = ModuleType("device_steps.planted")
    steps = (fails, hangs, dies, works)
    for step in steps:
        setattr(planted, step.__name__, step)
    monkeypatch.setitem(sys.modules, planted.__name__, planted)
    shares = {"hangs": 0.03}
    made = [device.Step("planted", s.__name__, shares.get(s.__name__, 1)) for s in steps]
    monkeypatch.setattr(device, "STEPS", dict(enumerate(made)))
    monkeypatch.setattr(device, "preload", lambda modules: None)
    given = ["device.py", "--out", str(tmp_path), "--device", "cpu", "--seconds", "90"]
    monkeypatch.setattr(sys, "argv", given)
    device.main()
    found = {(line["step"], line["what"]): line["value"] for line in lines(tmp_path)}
    assert found[0, "FAILED"].startswith("ValueError: planted fault at test_device_benchmark.py:")
    assert found[0, "before"] == 1
    assert found[1, "KILLED"].startswith("after its ")
    assert not runs(found[1, "child"])
    assert found[2, "ENDED"] == "with 7"
    assert found[3, "a measurement of some length"] == "x" * 300
    tables = capsys.readouterr().out.split("=== cpu ===\n")[1:]
    assert len(tables) == 4
    assert all(len(table.splitlines()) < 60 and len(table) < 12_000 for table in tables)
    assert "ValueError: planted fault" in tables[0] and "row 99" in tables[3]
    assert "earlier rows are in device.jsonl" in tables[3]


def test_jobs_apart_give_what_they_return_and_a_hanging_one_is_killed(device: Any) -> None:
    del device
    apart = importlib.import_module("device_steps.apart")
    jobs = {
        "good": lambda: {"array": [1, 2]},
        "bad": lambda: fails_at_once(),
        "hanging": lambda: time.sleep(600),
        "dead": lambda: os._exit(3),
    }
    found = dict(apart.spread(jobs, 2, 1.0, time.monotonic() + 60))
    assert found["good"] == {"array": [1, 2]}
    assert found["bad"].reason.startswith("ValueError: planted fault")
    assert found["hanging"].reason == "killed after its 1 s"
    assert found["dead"].reason == "the process died"


def fails_at_once() -> None:
    raise ValueError("planted fault")


def test_the_kit_names_what_it_packs_without_a_network() -> None:
    script = BENCHMARKS / "device_kit.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    said = subprocess.run(
        [str(script), "--list"], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    listed = dict(line.split(": ", 1) for line in said.splitlines())
    assert listed.keys() == {"with needs", "alone", "there", "cut"}
    pinned = next(
        line.strip(' ",\n').replace("[tune]", "")
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if line.strip().startswith('"ray[')
    )
    assert pinned in listed["alone"].split()
