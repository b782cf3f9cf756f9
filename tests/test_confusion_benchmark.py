"""The benchmark of Confusion Training: its rule, and that its rounds are those of a sweep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.confusion import Cells, Ratios, choice, forgetting, gates, rounded
from raysweep.methods import Context
from raysweep.metrics.ranking import ranking
from raysweep.stages.content import StoredFindings
from raysweep.stages.inputs import Inputs

SWEEP = """
name: small
dataset: {digits: {clean_size: 200}}
model: linear
recipe: {epochs: 1, precision: float32}
attacks: [none, {blend: {rate: 0.1}}, {badnets: {rate: 0.1}}]
defenses: [confusion_training: {schedule: small, scale: 0.01}]
"""


def found(gates: Mapping[str, tuple[float, float]]) -> list[Ratios]:
    """Return one setting: R of the target class and of another class by gate."""
    return [
        Ratios(gate=gate, poisoned=(math.log(high),), clean=(0.0, math.log(low)))
        for gate, (high, low) in gates.items()
    ]


def test_the_gate_of_the_largest_ratio_is_chosen_and_its_cut_lies_between() -> None:
    two_three = {"2": (1.2, 1.3), "3": (100.0, 10.0), "4": (1e6, 10.0)}
    assert choice(found(two_three)) == ("4", 200.0)
    assert choice(found({"2": (1.2, 1.3)})) is None
    assert choice([]) is None


def test_the_worst_setting_counts_and_a_near_tie_goes_to_fewer_axes() -> None:
    first = found({"2": (1e6, 1.1), "3": (9.7e5, 1.1), "4": (1e6, 1.1)})
    again = found({"2": (4.0, 1.1), "3": (9.6e5, 1.1), "4": (1e6, 1.1)})
    silent = [Ratios(gate=gate, poisoned=(), clean=(0.0, math.log(1.2))) for gate in "234"]
    # Between 1.5, which stands for all that is lower, and 9.6e5.
    assert choice([*first, *again, *silent]) == ("3", 10.0)


def test_cuts_are_round() -> None:
    assert [rounded(value) for value in (1.2, 1.6, 3.1, 3.3, 8.0, 260)] == [1, 2, 2, 5, 10, 200]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    folder = tmp_path_factory.mktemp("confusion")
    (folder / "small.yaml").write_text(SWEEP)
    return Cells(Path(folder / "small.yaml"), str(folder / "store"), [100])


def test_an_unchanged_run_remembers_what_the_stage_of_the_sweep_does(cells: Cells) -> None:
    lines = [json.loads(json.dumps(line)) for line in gates(cells)]
    assert len(lines) == 33 and {line.get("seed") for line in lines[:24]} == {100}
    assert [line["gate"] for line in lines[24:32]] == [line["gate"] for line in lines[:8]]
    for number, line in enumerate(lines[24:32]):
        each = [one["highest clean R"] for one in lines[number:24:8]]
        assert line["highest clean R of all"] == max(each)
    first, unchanged = forgetting(cells, ["as it is"], "badnets")
    _, other = forgetting(cells, ["inspected every 1"], "badnets")
    rounds = [*first["rounds"], *unchanged["rounds"]]
    key = cells.found(cells.trials[2])
    stage = cells.planner.stages[key]
    stored = StoredFindings.unpacked(cells.store.arrays(key), cells.store.outcome(key) or {})
    losses, predicted = stored.findings.losses, stored.findings.statistics["predicted"]
    assert losses is not None
    inputs = Inputs(stage.inputs, cells.store, Context(seed=0))
    poison, fits = inputs.mask("poison"), predicted == inputs.given_labels
    areas = [round(100 * ranking(-one, poison).auroc, 1) for one in losses]
    assert [line["auroc"] for line in rounds] == areas
    assert rounds[-1]["poison"] == round(100 * float(fits[poison].mean()), 1)
    assert rounds[-1]["clean"] == round(100 * float(fits[~poison].mean()), 1)
    assert other["rounds"] != unchanged["rounds"]
