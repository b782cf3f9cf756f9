"""Confusion Training: which gate tells the poisoned class, and what makes the last rounds forget.

    python -m benchmarks.confusion gates SWEEP --storage FOLDER --seeds 100 101
    python -m benchmarks.confusion forgetting SWEEP --storage FOLDER --attack blend

SWEEP is a sweep file with `confusion_training` among its defenses; the first one counts. `gates`
trains it once for each attack and seed, keeps its findings in the storage, and gives every class
its R by each gate: the lowest of a target class, the highest of any other class, in each setting
and in all; the ratio of the rule of docs/results/confusion_training.md, and the gate that it
chooses. `forgetting` trains the rounds up to the last three once for one attack, the first that
poisons unless --attack names another, and from there the last three again with one factor changed
at a time. It tells after each round which share of the poison the confused model fits (predicts as
labeled), and of the clean samples; which share of the poison the pretrained network fits before the
confusion; how well a low loss tells the poison (AUROC); and how much of the inspected set was
poison. All are in per cent; one JSON object a line.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from raysweep import rng, training
from raysweep.arrays import Bools
from raysweep.datasets import ImageSet, IntArray
from raysweep.defenses import DefenseInputs, FloatArray
from raysweep.defenses._confusion import Schedule, distilled
from raysweep.defenses.confusion_training import AXES, ConfusionTraining, _Round
from raysweep.methods.context import Context
from raysweep.metrics.ranking import ranking
from raysweep.plan.planner import Planner
from raysweep.stages.defend import Defend
from raysweep.stages.inputs import Inputs
from raysweep.stages.perform import perform
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.trials import Trial
from raysweep.tuning.stored import measure, stored_findings

LAST = 3
GATES: Mapping[str, Mapping[str, Any]] = {
    **{f"gate, {rank} axes": {"rule": "gate", "rank": rank} for rank in range(2, AXES + 1)},
    "mixture": {"rule": "mixture"},
}


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """R of the classes in one setting by one gate: of the poisoned classes, and of all others."""

    gate: str
    poisoned: tuple[float, ...]
    clean: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Logs of R by one gate over all settings: the lowest poisoned, and the highest clean."""

    low: float
    high: float

    @property
    def admissible(self) -> bool:
        """Whether every poisoned class has a larger R than every clean one."""
        return self.low > self.high

    @property
    def ratio(self) -> float:
        """The ratio of the rule; a clean R below 1.5 counts as 1.5."""
        return self.low / max(self.high, math.log(1.5))


def margins(found: Sequence[Ratios]) -> dict[str, Margin]:
    """Return the margin of each gate, in their order.

    Args:
        found: of all settings, logs of R.
    """
    by: dict[str, list[Ratios]] = {}
    for one in found:
        by.setdefault(one.gate, []).append(one)
    return {
        gate: Margin(
            low=float(min((value for one in mine for value in one.poisoned), default=-math.inf)),
            high=float(max((value for one in mine for value in one.clean), default=0.0)),
        )
        for gate, mine in by.items()
    }


def choice(found: Sequence[Ratios]) -> tuple[str, float] | None:
    """Return the gate that the rule chooses and its cut of R, or none if no gate is admissible.

    Args:
        found: of all settings, logs of R; gates in ascending order of axes.
    """
    able = {gate: one for gate, one in margins(found).items() if one.admissible}
    if not able:
        return None
    best = max(one.ratio for one in able.values())
    gate, one = next((gate, one) for gate, one in able.items() if one.ratio >= 0.95 * best)
    return gate, rounded(math.exp(math.sqrt(one.low * max(one.high, math.log(1.5)))))


def rounded(value: float) -> float:
    """Return the nearest of 1, 2 and 5 times a power of ten, by ratio."""
    steps = [n * 10.0**power for power in range(-3, 7) for n in (1, 2, 5)]
    return min(steps, key=lambda step: abs(math.log(step / value)))


class Cells:
    """The settings of a sweep file's first Confusion Training, whose stages run on demand."""

    def __init__(self, file: Path, storage: str, seeds: Sequence[int]) -> None:
        sweep = load_sweep(file).model_copy(update={"seeds": tuple(seeds)})
        self.planner, self.store = Planner(sweep), Store(storage)
        first = next(d for d in sweep.defenses if isinstance(d, ConfusionTraining))
        self.trials = [trial for trial in self.planner.trials if trial.defense == first]

    def run(self, key: str) -> None:
        """Run a stage, after what it needs; what is stored is taken."""
        stage = self.planner.stages[key]
        if self.store.manifest(key) is None:
            for needed in stage.needs:
                self.run(needed)
            result = perform(stage.packed(), self.store, {}, 0.0)
            assert result.status == "done", result

    def found(self, trial: Trial) -> str:
        """Return the key of the stage that runs the defense."""
        key = self.planner.findings(trial, {}).defend
        assert key is not None
        return key


def gates(cells: Cells) -> Iterator[dict[str, Any]]:
    """Yield R of poisoned and of clean classes by each gate, and what its decision flags."""
    ratios = []
    for trial in cells.trials:
        cells.run(cells.found(trial))
        cells.planner.decision(trial, {})
        found = stored_findings(cells.planner, cells.store, trial)
        poison, _, _ = found.truth()
        assert found.evidence is not None
        classes = found.evidence.num_classes
        held = np.isin(np.arange(classes), np.unique(found.evidence.labels[poison]))
        for gate, changed in GATES.items():
            method = ConfusionTraining(**{**trial.defense.model_dump(), "high": None,
                                          "highest": None, **changed})  # fmt: skip
            values = method.log_ratios(found.evidence)
            one = Ratios(gate=gate, poisoned=tuple(values[held]), clean=tuple(values[~held]))
            if trial.attack.label_map == "all_to_one":
                ratios.append(one)
            rates = measure(method, found, ("tpr", "fpr"))
            yield {
                "attack": trial.attack.label, "rate": trial.attack.rate, "seed": trial.seed,
                "gate": gate,
                "lowest poisoned R": shown(min(one.poisoned, default=math.nan)),
                "highest clean R": shown(max(one.clean, default=math.nan)),
                "tpr": percent(rates["tpr"]), "fpr": percent(rates["fpr"]),
            }  # fmt: skip
    for gate, margin in margins(ratios).items():
        yield {
            "gate": gate, "lowest poisoned R of all": shown(margin.low),
            "highest clean R of all": shown(margin.high), "ratio": round(margin.ratio, 1),
            "admissible": margin.admissible,
        }  # fmt: skip
    yield {"chosen": choice(ratios)}


def shown(log: float) -> float:
    """Return R in three digits, of its log."""
    return float(f"{math.exp(min(log, 700)):.3g}")


def percent(value: float) -> float:
    """Return a share in per cent, to a tenth."""
    return round(100 * value, 1)


class Unmixed(_Round):
    """A round whose pretraining mixes in no wrongly labeled clean images."""

    def _mixed(self, distilled_set: ImageSet) -> ImageSet:
        return distilled_set


@dataclass(frozen=True)
class Change:
    """One factor of the last rounds that differs from the schedule."""

    name: str
    schedule: Schedule
    precision: str | None = None
    form: type[_Round] = _Round


def changes(base: Schedule, precision: str) -> Iterator[Change]:
    """Yield the schedule as it is, then with one factor of its last three rounds changed."""

    def last(field: str, value: float, rounds: int = LAST) -> Schedule:
        kept = getattr(base, field)[:-rounds]
        return replace(base, **{field: (*kept, *(value,) * rounds)})

    yield Change("as it is", base)
    for rate in (0.003, 0.01):
        yield Change(f"learning rate {rate:g}", last("learning_rates", rate))
    yield Change("momentum 0", last("momenta", 0.0))
    for weight in (6, 60):
        yield Change(f"lambda {weight}", last("weights", weight))
    for every in (1, 4):
        yield Change(f"inspected every {every}", last("every", every))
    count = math.ceil(base.iterations[-1] / 4)
    yield Change(f"{count} iterations in the last two", last("iterations", count, 2))
    count = 4 * base.epochs[-1]
    yield Change(f"{count} epochs of the last pretraining", last("epochs", count, 1))
    yield Change("last distilled shares 1/25", last("ratios", 1 / 25, 2))
    yield Change("no wrong labels in pretraining", base, form=Unmixed)
    other = "float32" if precision == "bfloat16" else "bfloat16"
    yield Change(other, base, precision=other)


@dataclass(frozen=True)
class State:
    """Where the rounds are: the pretrained network, the rows that are kept."""

    network: nn.Module
    kept: IntArray


class Rounds:
    """The rounds of Confusion Training on one victim, which may go on from any round."""

    def __init__(
        self, method: ConfusionTraining, inputs: DefenseInputs, ctx: Context, poison: Bools
    ) -> None:
        self.method, self.inputs, self.ctx, self.poison = method, inputs, ctx, poison
        self.schedule = method._rounds()
        logits = training.predict(inputs.victim, inputs.clean_set.images, inputs.recipe, ctx.device)
        self.guessed = logits.argmax(1).to(ctx.device)

    def start(self) -> State:
        """Return the state before the first round."""
        network = training.build(self.inputs.model, self.inputs.shape, self.ctx)
        return State(network, np.arange(len(self.inputs.training_set)))

    def train(
        self, state: State, rounds: range, change: Change, table: list[dict[str, float]]
    ) -> State:
        """Train some rounds from a copy of the state; enter what is remembered after each."""
        inputs, data = self._inputs(change.precision), self.inputs.training_set
        network, kept = copy.deepcopy(state.network), state.kept
        for number in rounds:
            one = change.form(self.method, change.schedule, number, inputs, self.ctx)
            confused = one.train(network, data.take(kept), self.guessed)
            losses, fits = self._seen(confused, inputs)
            table.append({
                "poison": percent(float(fits[self.poison].mean())),
                "clean": percent(float(fits[~self.poison].mean())),
                "pretrained poison": percent(
                    float(self._seen(network, inputs)[1][self.poison].mean())
                ),
                "auroc": percent(ranking(-losses, self.poison).auroc),
                "poison in the inspected": percent(float(self.poison[kept].mean())),
            })  # fmt: skip
            if number < change.schedule.rounds - 1:
                share = 50 if number <= change.schedule.rounds - 3 else 100
                kept = distilled(
                    losses, data.labels, change.schedule.ratios[number], share,
                    inputs.shape.num_classes,
                )  # fmt: skip
        return State(network, kept)

    def _seen(self, network: nn.Module, inputs: DefenseInputs) -> tuple[FloatArray, Bools]:
        """Return the losses (N,) of the training samples, and which have their label predicted."""
        data = inputs.training_set
        logits = training.predict(network, data.images, inputs.recipe, self.ctx.device)
        losses = F.cross_entropy(logits, torch.from_numpy(data.labels), reduction="none")
        return losses.numpy(), logits.argmax(1).numpy() == data.labels

    def _inputs(self, precision: str | None) -> DefenseInputs:
        """Return the inputs, of another precision if one is given."""
        if precision is None:
            return self.inputs
        names = ("training_set", "victim", "clean_set", "labels", "model", "shape", "shards")
        values = {name: getattr(self.inputs, name) for name in names}
        recipe = self.inputs.recipe.model_copy(update={"precision": precision})
        return DefenseInputs("benchmark", self.method.needs(), {**values, "recipe": recipe})


def forgetting(
    cells: Cells, only: Sequence[str] = ("",), attack: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield, for each change whose name contains one of the texts, what the rounds remember."""
    poisons = [trial.attack for trial in cells.trials if trial.attack.rate]
    chosen = next(one for one in poisons if attack in ("", one.name))
    for trial in cells.trials:
        if trial.attack != chosen:
            continue
        stage = cells.planner.stages[cells.found(trial)]
        for key in stage.needs:
            cells.run(key)
        work = stage.packed().unpacked()
        assert isinstance(work, Defend) and isinstance(work.defense, ConfusionTraining)
        # The streams of the stage, so that "as it is" ends where a launched sweep does.
        seed = rng.derive(rng.derive(trial.seed, "defend", work.method), "run")
        ctx = Context(seed=seed)
        given = Inputs(stage.inputs, cells.store, ctx)
        rounds = Rounds(work.defense, work.knowledge(given), ctx, given.mask("poison"))
        schedule = rounds.schedule
        count, named = schedule.rounds, {"attack": trial.attack.label, "seed": trial.seed}
        before: list[dict[str, float]] = []
        begun = rounds.train(
            rounds.start(), range(count - LAST), Change("as it is", schedule), before
        )
        yield {**named, "change": "first rounds", "rounds": before}
        for change in changes(schedule, str(work.recipe.precision)):
            if any(text in change.name for text in only):
                start, table = time.perf_counter(), list[dict[str, float]]()
                rounds.train(begun, range(count - LAST, count), change, table)
                seconds = round(time.perf_counter() - start, 1)
                yield {**named, "change": change.name, "rounds": table, "seconds": seconds}


def main() -> None:
    """Print one line of JSON for each finding."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("gates", "forgetting"))
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--attack", default="", help="the attack of `forgetting`, by name")
    parser.add_argument("--only", nargs="+", default=[""], help="changes whose name contains this")
    args = parser.parse_args()
    cells = Cells(args.sweep, args.storage, args.seeds)
    lines = gates(cells) if args.what == "gates" else forgetting(cells, args.only, args.attack)
    for line in lines:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
