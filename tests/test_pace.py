"""The estimate of what is left of a run: none too early, then close, whatever the stages are."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raysweep.run.pace import Pace
from raysweep.run.ready import FIRST
from raysweep.run.run import Run
from raysweep.run.tally import Tally
from raysweep.stages.stage import Result
from raysweep.store import Store
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse

SLOTS = 2


class Simulated:
    """A run of stages with true seconds, on two slots, at a clock of its own."""

    def __init__(self, stages: dict[str, tuple[str, float, float]], *, idle: float = 0.0) -> None:
        """Take kind, true seconds and guessed seconds of each stage; workers lose `idle` each."""
        self.now = 100.0
        self.idle = idle
        self.true = {key: one[1] for key, one in stages.items()}
        self.order = list(stages)
        planned = {
            key: SimpleNamespace(key=key, kind=kind, guess=guess)
            for key, (kind, _, guess) in stages.items()
        }
        self.schedule: Any = SimpleNamespace(
            planner=SimpleNamespace(stages=planned), wanted=set(stages), done=set(), failed={},
            upstream_failed={}, out=set(), waiting={}, longest_grown=(0.0, ""),
            tally=Tally(),
        )  # fmt: skip
        self.known: set[str] = set()
        self.running: list[Any] = []
        self.pace = Pace(self.schedule, Costs(self.known), lambda: self.running, lambda: self.now)

    def play(self) -> list[tuple[float, float]]:
        """Run everything; return each estimate with what was left in truth."""
        slots, told, ends = [self.now] * SLOTS, [], []
        for key in self.order:
            slot = min(range(SLOTS), key=slots.__getitem__)
            slots[slot] += self.true[key] + self.idle
            ends.append((slots[slot], key))
        for end, key in sorted(ends):
            self.now = end
            self.schedule.done.add(key)
            self.pace.add(self.schedule.planner.stages[key], self.true[key])
            estimate = self.pace.left_seconds()
            if estimate is not None:
                told.append((estimate, max(slots) - end))
        return told


class Costs:
    """The guesses of a plan, as `Costs` gives them."""

    def __init__(self, known: set[str]) -> None:
        self._known = known

    def __call__(self, stage: Any) -> float:
        return float(stage.guess)

    def name(self, stage: Any) -> str:
        return str(getattr(stage, "method", stage.kind))

    def work(self, stage: Any) -> float:
        return float(getattr(stage, "work", 1.0))

    def known(self, stage: Any) -> bool:
        return stage.kind in self._known


def mixed(seed: int, train: float, evaluate: float) -> dict[str, tuple[str, float, float]]:
    """Return trainings, then many short stages, with the seconds that a plan expects of both."""
    drawn = random.Random(seed)
    trains = {f"t{n}": ("train", drawn.uniform(0.2, 0.6), train) for n in range(60)}
    short = {f"s{n}": ("evaluate", drawn.uniform(0.01, 0.05), evaluate) for n in range(2000)}
    return {**trains, **short}


@pytest.mark.parametrize("seed", range(3))
def test_every_estimate_is_within_a_factor_of_two(seed: int) -> None:
    run = Simulated(mixed(seed, 1.6, 0.12), idle=0.01)
    run.known |= {"train", "evaluate"}  # of an earlier run, on a machine four times slower
    told = [pair for pair in run.play() if pair[1] > 2]
    assert len(told) > 20
    for estimate, left in told:
        assert left / 2 < estimate < 2 * left, (estimate, left)


def test_nothing_is_said_while_most_of_the_rest_is_a_guess() -> None:
    run = Simulated(mixed(0, 0.4, 2.0))
    told = run.play()  # nobody has timed an evaluation: until the first ends, nothing
    assert told and all(left / 2 < estimate < 2 * left for estimate, left in told if left > 2)
    assert max(left for _, left in told) < 2000 * 0.05 / SLOTS


def test_a_kind_is_timed_by_others_of_it() -> None:
    stages = mixed(0, 30.0, 2.0)
    run = Simulated(stages)
    for n, key in enumerate(stages):
        planned = run.schedule.planner.stages[key]
        planned.method = f"{planned.kind}/{n % 2 if n < 300 else 2}"  # a third one comes late
    told = [pair for pair in run.play() if pair[1] > 2]
    assert told and all(left / 2 < estimate < 2 * left for estimate, left in told)


# The stages of a sweep of 1,920 trials as they ended, 40 in place of 240 of each: name, number and
# seconds of each. Methods that take long come after others of their kind.
LEDGER = (
    ("prepare/digits", 1, 0.3), ("poison/badnets", 12, 0.03), ("train/linear", 42, 0.05),
    ("features/none", 42, 0.02), ("defend/kernel_density", 40, 0.07),
    ("defend/cognitive_distillation", 20, 0.7), ("defend/strip", 40, 0.14),
    ("defend/cognitive_distillation", 20, 0.7), ("defend/fine_tuning", 40, 0.05),
    ("defend/activation_clustering", 40, 0.45), ("defend/spectral_signatures", 40, 0.19),
    ("decide/strip", 240, 0.01), ("evaluate/badnets", 160, 0.005),
)  # fmt: skip


@pytest.mark.parametrize("scouts", [True, False])
def test_a_method_that_comes_late_makes_no_estimate_wrong(scouts: bool) -> None:
    """Once 44 s were said where 141 were left: of eight methods, one had been timed.

    Args:
        scouts: whether some stages of each kind and method go first, as in a run.
    """
    stages, names = dict[str, tuple[str, float, float]](), dict[str, str]()
    first: list[str] = []
    for name, count, seconds in LEDGER:
        for n in range(count):
            key = f"{name}-{len(stages)}-{n}"
            before = list(names.values()).count(name)
            warm = seconds if before else 10 * seconds  # with what the method imports
            stages[key] = name.partition("/")[0], warm, 0.5 if "defend" in name else 0.02
            names[key] = name
            first += [key] if before < FIRST else []
    run = Simulated({key: stages[key] for key in first if scouts} | stages, idle=0.002)
    for key, name in names.items():
        run.schedule.planner.stages[key].method = name
    told = run.play()
    whole = sum(one[1] for one in stages.values()) / SLOTS
    assert not scouts or told[0][1] > 0.7 * whole
    for estimate, left in told:
        assert left < 2 or left / 2 < estimate < 2 * left, (estimate, left)


def test_a_method_that_was_not_timed_takes_as_long_as_others_of_its_kind() -> None:
    """Its work may be counted in other units: sample passes of one, samples of another."""
    run = Simulated({f"d{n}": ("defend", 0.2, 0.02) for n in range(400)})
    for n in range(400):
        planned = run.schedule.planner.stages[f"d{n}"]
        planned.method, planned.work = ("passes", 5e4) if n < 200 else ("samples", 300.0)
    told = [pair for pair in run.play() if pair[1] > 2]
    assert told and all(left / 2 < estimate < 2 * left for estimate, left in told)


def test_nothing_is_said_before_enough_stages_were_timed() -> None:
    run = Simulated({f"t{n}": ("train", 40.0, 40.0) for n in range(20)})
    run.known.add("train")
    for n in range(7):
        run.now += 40
        run.pace.add(run.schedule.planner.stages[f"t{n}"], 40.0)
        assert run.pace.left_seconds() is None
    quick = Simulated({f"t{n}": ("train", 0.01, 40.0) for n in range(5000)})
    for n in range(200):
        quick.now += 0.01
        quick.pace.add(quick.schedule.planner.stages[f"t{n}"], 0.01)
    assert quick.pace.left_seconds() is None  # two seconds after its beginning


def test_running_stages_count_by_what_they_have_done() -> None:
    run = Simulated({f"t{n}": ("train", 100.0, 100.0) for n in range(12)})
    for n in range(10):
        run.now += 50
        run.schedule.done.add(f"t{n}")
        run.pace.add(run.schedule.planner.stages[f"t{n}"], 100.0)
    run.running = [SimpleNamespace(key=f"t{n}", seconds=90.0) for n in (10, 11)]
    run.now += 90
    assert run.pace.left_seconds() == pytest.approx(10, abs=2)


def test_trials_that_wait_count_what_others_have_gained() -> None:
    run = Simulated({f"t{n}": ("train", 1.0, 1.0) for n in range(20)})
    for n in range(10):
        run.now += 0.5
        run.schedule.done.add(f"t{n}")
        run.pace.add(run.schedule.planner.stages[f"t{n}"], 1.0)
    alone = run.pace.left_seconds()
    run.schedule.waiting = {"decide": list(range(40))}
    run.schedule.tally.add_growth(4, ["t0", "t1"])  # half a training for each trial
    run.now += 2
    more = run.pace.left_seconds()
    assert alone is not None and more is not None
    assert 2 * alone < more < 5 * alone


def test_trials_that_wait_count_a_training_as_long_as_trainings_were() -> None:
    """The plan expects 50 times of them what they take; until one has grown, nothing else says."""
    stages = {f"t{n}": ("train", 0.01, 0.5) for n in range(100)}
    run = Simulated(stages | {f"d{n}": ("defend", 0.2, 0.1) for n in range(200)})
    run.schedule.longest_grown = (0.5, "t0")
    run.schedule.waiting = {"decide": list(range(400))}
    told = run.play()
    assert told
    for estimate, left in told:
        left += 400 * 0.01 / SLOTS
        assert left < 4 or left / 2 < estimate < 2 * left, (estimate, left)


def test_batches_are_made_by_what_stages_took_in_this_run(tmp_path: Path) -> None:
    """A network stage is guessed at half a second at least, which leaves two in a batch."""
    text = (
        "{name: b, dataset: {digits: {size: 300}}, model: linear, attacks: [badnets: {rate: 0.1}],"
        " defenses: [none], recipe: {epochs: 1}, seeds: 20, track: {wandb: disabled}}"
    )
    slots, sizes = {"cpu": 1, "gpu": 1}, []
    with Run(from_text(parse("b.yaml", text)), Store(str(tmp_path)), text) as run:
        while batch := run.take(slots):
            sizes.append(sum(stage.kind == "train" for stage in batch))
            run.finished([Result(key=one.key, status="done", seconds=0.01) for one in batch])
        run.close()
    assert sum(sizes) == 20 and max(sizes) > 10, sizes
