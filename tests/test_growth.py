"""Defenses that ask for more parts while a sweep runs: what is planned, run, kept and tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raysweep.attacks.badnets import BadNets
from raysweep.cli.app import app
from raysweep.datasets.digits import Digits
from raysweep.defenses.datamodels import Datamodels
from raysweep.defenses.random_filter import RandomFilter
from raysweep.jobs.launch import launch
from raysweep.methods.recipe import Recipe
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.plan.planner import Planner
from raysweep.plan.route import Outcomes, Route
from raysweep.reports.material import gather
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.spec import Sweep

FEW = {"models": 400, "first": 100, "per_shard": 50}
SWEEP = """
name: grown
dataset: {digits: {size: 200}}
model: linear
recipe: {epochs: 2}
attacks: {badnets: {rate: 0.1}}
defenses:
  - none
  - datamodels: {models: 200, first: 50, per_shard: 25, until: %s, base: linear, epochs: 2,
                 sizes: [20], restarts: 2}
seeds: 1
tune: {metric: tpr, labels: oracle}
track: {wandb: disabled}
"""


def planned(*defenses: Any) -> tuple[Planner, Any]:
    sweep = Sweep(
        name="t", dataset=Digits(), model=TinyCNN(), attacks=[BadNets()], seeds=1,
        defenses=list(defenses), recipe=Recipe(epochs=1, precision="float32"),
    )  # fmt: skip
    planner = Planner(sweep)

    def route(outcomes: Outcomes) -> Route:
        return planner.route(planner.trials[-1], outcomes)

    return planner, route


def shards(route: Route) -> int:
    return len(route.shards)


def test_pauses_double_and_end_before_the_last_part() -> None:
    assert Datamodels(**FEW).pauses(10) == ()
    assert Datamodels(**FEW, until=0.5).pauses(10) == (2, 4)
    assert Datamodels(**{**FEW, "models": 425}, until=0.5).pauses(10) == (2, 4, 8)
    assert Datamodels(**{**FEW, "first": 5000}, until=0.5).pauses(10) == ()
    assert "at most, fewer if" in Datamodels(until=0.5).forecast(1000)


def test_a_route_waits_at_each_pause_until_it_is_enough() -> None:
    planner, route = planned(Datamodels(**FEW, until=0.5))
    outcomes: dict[str, Any] = {}
    for count in (2, 4):
        found = route(outcomes)
        assert shards(found) == count and found.evaluate is None
        assert found.waiting == found.defend
        satisfied = route({**outcomes, found.waiting: {"enough": True}})
        assert shards(satisfied) == count
        assert satisfied.waiting == satisfied.decide, "the decision is next"
        reads = planner.stages[satisfied.waiting].reads | planner.stages[satisfied.waiting].inputs
        assert reads["defend"] == found.waiting
        outcomes[found.waiting] = {"enough": False}
    last = route(outcomes)
    assert shards(last) == 8 and last.waiting == last.decide
    assert list(last.pauses) == list(outcomes), "what was not enough is part of the trial"


def test_shards_are_those_of_a_sweep_that_never_pauses() -> None:
    _, route = planned(Datamodels(**FEW, until=0.5))
    _, at_once = planned(Datamodels(**FEW))
    first, every = route({}).shards, at_once({}).shards
    assert len(first) == 2 and set(first) < set(every)


def test_who_matches_a_growing_defense_waits_with_it() -> None:
    _, route = planned(Datamodels(**FEW, until=0.5), RandomFilter(like="datamodels"))
    found = route({})
    assert found.waiting == found.reference and found.waiting.startswith("defend-")
    settled = route({found.waiting: {"enough": True}})
    assert settled.reference.startswith("decide-") and settled.decide


def run(folder: Path, until: float) -> tuple[Path, Any]:
    file = folder / f"{until}.yaml"
    file.write_text(SWEEP % until)
    done = launch(load_sweep(file), file.read_text(), str(folder / "store"), inline=True)
    assert (done.rows["status"] == "ok").all(), done.rows["error"].tolist()
    return file, done


def models(rows: pd.DataFrame) -> float:
    return float(rows.set_index("defense_name")["found.models"]["datamodels"])


@pytest.mark.further
def test_a_sweep_trains_models_until_they_agree(tmp_path: Path) -> None:
    _, easy = run(tmp_path, 0.01)
    assert models(easy.rows) == 50
    file, hard = run(tmp_path, 1.0)
    assert models(hard.rows) == 200, "all of them, and no more"
    kinds = gather("grown", str(tmp_path / "store")).stages
    assert (kinds[kinds["kind"] == "shard"]["status"] == "cached").sum() == 2
    assert (kinds["kind"] == "defend").sum() == 3, "at 50, 100 and 200 models"
    cost = hard.rows["own_seconds"].sum() + hard.rows["shared_seconds"].sum()
    assert cost == pytest.approx(kinds["seconds"].sum())
    again = launch(load_sweep(file), file.read_text(), str(tmp_path / "store"), inline=True)
    assert again.ran == 0 and models(again.rows) == 200
    facts = hard.rows.filter(like="found.").dropna(how="all").iloc[0]
    assert -1 <= facts["found.correlation with left-out models"] <= 1
    assert facts["found.variance of a margin"] > 0


@pytest.mark.further
def test_tuning_decides_on_what_has_grown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, _ = run(tmp_path, 1.0)
    with pytest.raises(SystemExit) as end:
        app(["tune", str(file), "--storage", str(tmp_path / "store"), "--inline"])
    assert end.value.code in (0, None)
    said = capsys.readouterr().out
    assert "datamodels" in said and "failed" not in said
