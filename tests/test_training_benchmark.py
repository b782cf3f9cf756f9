"""The benchmark of the training loop compares within rounds and says when others were at work."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("contest")


def rounds(contest: Any, *given: tuple[float, float, float]) -> Any:
    """Return rounds of (seconds of ours, of the field's, CPUs of others)."""
    found = [
        {
            "ours": contest.Spent(wall=2 * ours, cpu=ours, others=others),
            "field": contest.Spent(wall=2 * field, cpu=field, others=0.0),
            "slower": contest.Spent(wall=9 * field, cpu=9 * field, others=0.0),
        }
        for ours, field, others in given
    ]
    return contest.Rounds({}, found)


def test_a_ratio_is_taken_within_each_round_and_comes_with_its_spread(contest: Any) -> None:
    """A machine that slows down to a fifth meanwhile changes nothing."""
    found = rounds(contest, (1, 3, 0), (2, 6, 0), (5, 20, 0))
    ratio = found.times("ours", "slower", "field", clock="cpu")
    assert (ratio.median, ratio.least, ratio.greatest) == (3, 3, 4)
    assert str(ratio) == "3.00 (3.00–4.00)"
    assert found.seconds("ours") == 4


def test_busy_rounds_are_left_out_where_enough_are_quiet(contest: Any) -> None:
    quiet = [(1, 3, 0.02)] * 3
    found = rounds(contest, (1, 9, 0.8), *quiet)
    assert not found.is_busy
    assert found.times("ours", "field").greatest == 3
    found = rounds(contest, (1, 9, 0.8), (1, 9, 0.3), *quiet[:2])
    assert found.is_busy
    assert found.others == 0.8
    assert found.times("ours", "field").greatest == 9


def reads(variable: str) -> Any:
    """Return a run of a process that has a variable in its environment."""
    return partial(str, os.environ[variable])


@pytest.mark.further
def test_a_contestant_may_have_an_environment_of_its_own(contest: Any) -> None:
    """It is there before the process loads a library."""
    asked = (reads, "OF_ONE_CONTESTANT")
    with pytest.raises((EOFError, OSError)):  # its process has ended, before or after it is asked
        contest.contest({"has none": asked}, 1, 1)
    contest.contest({"has one": asked}, 1, 1, {"has one": {"OF_ONE_CONTESTANT": "1"}})
    assert "OF_ONE_CONTESTANT" not in os.environ


def test_work_of_the_machine_is_all_but_idling_and_waiting_for_disks(contest: Any) -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    facts = "cpu  100 20 30 5000 600 1 2 40 7 8\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
    assert contest.busy_seconds(facts) == pytest.approx((100 + 20 + 30 + 1 + 2 + 40) * tick)
    assert contest.busy_seconds() > 0


@pytest.mark.further
def test_contestants_run_in_turns_and_none_stays_after_a_failure(contest: Any) -> None:
    found = contest.contest(
        {"sleeper": (partial, time.sleep, 0.01), "sum": (partial, sum, range(1000))}, 2, 1
    )
    assert 2 <= len(found.rounds) <= 4
    assert all(one.keys() == {"sleeper", "sum"} for one in found.rounds)
    assert found.seconds("sleeper") >= 0.01
    assert found.seconds("sleeper", "cpu") < found.seconds("sleeper")
    with pytest.raises(EOFError):
        contest.contest({"fails": (partial, sum, 1)}, 1, 1)
    assert not multiprocessing.active_children()


def test_the_table_names_the_machine_and_warns_of_a_busy_one(
    contest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del contest
    benchmark = importlib.import_module("training")
    found = rounds(importlib.import_module("contest"), (1, 3, 0.05))
    one = benchmark.said(found, "ours", 100, "field") | {"share_of_ceiling": 0.5}
    shown: dict[str, Any] = {"machine": {"AMX": True}, "loops": {"net": {"1": {"ours": one}}}}
    text = benchmark.table(shown)
    assert text.startswith("AMX: True\n")
    assert "3.00 (3.00–3.00)" in text
    assert "BUSY" not in text
    one["others"] = 0.7
    assert "BUSY: others kept up to 0.70 CPUs busy" in benchmark.table(shown)


@pytest.mark.dry_run
def test_a_dry_run_compares_the_loops(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "training.py"), "--images", "64", "--repetitions", "1",
         "--threads", "1", "--models", "tiny_cnn, width 16", "--members"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table, _, rest = done.stdout.partition("\n{")
    found = json.loads("{" + rest)
    assert f"torch: {found['machine']['torch']}" in table
    loops = found["loops"]["tiny_cnn, width 16"]["1"]
    assert loops.keys() == {"ours", "field, 0 workers", "field, 2 workers", "field, tensors"}
    assert all(one["images_per_cpu_second"] > 0 for one in loops.values())
