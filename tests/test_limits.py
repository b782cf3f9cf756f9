"""Limits that follow from what was timed: never from too little, nor from another setup."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.jobs.launch import launch
from raysweep.plan.costs import Costs
from raysweep.plan.planner import Planner
from raysweep.run.limits import FEWEST, FILE, LEAST_SECONDS, TIMES, Limits, forecast
from raysweep.stages.stage import Stage
from raysweep.store import Store
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse

SWEEP = """
name: timed
dataset: {digits: {size: 300}}
model: linear
recipe: {epochs: 1}
attacks: [{badnets: {rate: 0.1}}]
defenses: [none]
seeds: 1
track: {wandb: disabled}
"""


def timed(
    store: Store, seconds: float, times: int, text: str = SWEEP
) -> tuple[Limits, list[Stage]]:
    """Record so many trainings of a sweep; return the limits of the next run, and its stages."""
    chosen = from_text(parse("s.yaml", text))
    planner = Planner(chosen)
    for trial in planner.trials:
        planner.route(trial, {})
    before, stages = Limits(chosen, Costs(planner, store), store), list(planner.stages.values())
    (train,) = (stage for stage in stages if stage.kind == "train")
    for _ in range(times):
        before.add(train, seconds)
    assert before.of(train) is None or not before.of(train).timed, "what runs now says nothing"
    before.save()
    return Limits(chosen, Costs(planner, store), store), stages


def test_a_limit_follows_from_the_slowest_of_enough_stages_like_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    limits, stages = timed(store, 100.0, FEWEST - 1)
    assert [limits.of(stage) for stage in stages] == [None] * len(stages), "too few"
    limits, stages = timed(store, 700.0, 1)
    found = {stage.kind: limit for stage in stages if (limit := limits.of(stage))}
    limit = found.pop("train")
    assert not found and limit.seconds == pytest.approx(TIMES * 700) and limit.timed == FEWEST
    assert limit.exceeded.startswith("TimeLimit: the stage ran longer than 3.9 h, 20 times as long")
    assert limit.exceeded.endswith("set resources.limits.linear")
    assert forecast(map(limits.of, stages)).startswith("1 stages have a time limit of 20 times")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SWEEP + "resources: {limits: {train: 2m}}", 120.0),  # the sweep file's own
        (SWEEP.replace("epochs: 1", "epochs: 2"), None),  # another recipe was never timed
        (SWEEP + "resources: {gpu: {gpu: 1}}", None),  # nor was another class of device
    ],
)
def test_a_limit_that_was_timed_is_of_the_very_same_setup(
    tmp_path: Path, text: str, expected: float | None
) -> None:
    store = Store(str(tmp_path))
    limits, stages = timed(store, 1.0, FEWEST)
    (least,) = (limit.seconds for stage in stages if (limit := limits.of(stage)))
    assert least == LEAST_SECONDS, "never less than that"
    other, stages = timed(store, 1.0, 0, text)
    found = [limit.seconds for stage in stages if (limit := other.of(stage))]
    assert found == ([] if expected is None else [expected])


@pytest.mark.parametrize("raw", [b"{", b"[1]", b'{"cpu x": 1}', b'{"cpu x": [-1.0, 20]}'])
def test_damaged_paces_give_no_limit(tmp_path: Path, raw: bytes) -> None:
    store = Store(str(tmp_path))
    store.write(FILE, raw)
    limits, stages = timed(store, 1.0, 1)
    assert not any(map(limits.of, stages)) and b"cpu x" not in (store.read(FILE) or b"")


def test_a_launch_that_can_hold_no_limit_says_so(tmp_path: Path) -> None:
    text = SWEEP + "resources: {limits: {train: 2h}}\n"
    said = launch(from_text(parse("s.yaml", text)), text, str(tmp_path), inline=True).notes
    (line,) = (note for note in said if "limits" in note)
    assert line.startswith("resources.limits does not hold inline")
