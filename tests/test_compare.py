"""Two sweeps compared, McNemar on what evaluations hold, and data that each seed draws."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import raysweep
from raysweep.attacks.badnets import BadNets
from raysweep.cli.app import app
from raysweep.datasets.digits import Digits
from raysweep.defenses.none import NoDefense
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.errors import StoreError
from raysweep.jobs.compare import compare, victims
from raysweep.methods import Recipe
from raysweep.models.linear import Linear
from raysweep.plan.planner import Planner
from raysweep.results.changes import changes
from raysweep.sweep.spec import Track
from tests.material import row


def sweep(name: str, **given: Any) -> raysweep.Sweep:
    parts: dict[str, Any] = {
        "dataset": Digits(size=200), "model": Linear(), "attacks": [BadNets(rate=0.1)],
        "defenses": [NoDefense(), SpectralSignatures()], "seeds": 2,
        "recipe": Recipe(epochs=1, precision="float32"), "track": Track(wandb="disabled"),
    }  # fmt: skip
    return raysweep.Sweep(name=name, **{**parts, **given})


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with two sweeps: the second trains longer and has other seeds."""
    where = str(tmp_path_factory.mktemp("compare") / "store")
    raysweep.launch(sweep("short"), where, inline=True)
    longer = Recipe(epochs=3, precision="float32")
    raysweep.launch(sweep("long", recipe=longer, seeds=(1, 2)), where, inline=True)
    return where


def rows(asr: dict[str, list[float]], **given: Any) -> pd.DataFrame:
    return pd.DataFrame([
        {**row(defense=defense, defense_name=defense, seed=seed, asr=value, asr_n=900), **given}
        for defense, values in asr.items() for seed, value in enumerate(values)
    ])  # fmt: skip


def test_likes_are_paired_and_the_others_are_named() -> None:
    before = rows(
        {"none": [0.9, 0.8, 0.7], "x": [0.5, 0.5, 0.5], "gone": [0.1]}, **{"recipe.lr": 1}
    )
    after = rows({"none": [0.8, 0.7, 0.6], "x": [0.5, 0.5, 0.5], "new": [0.1]}, **{"recipe.lr": 2})
    found = changes(before, after, ("a", "b"))
    assert (found.trials, found.both) == ((7, 7), 6)
    assert [name.split(" · ")[3] for name in found.only_first] == ["gone"]
    assert [name.split(" · ")[3] for name in found.only_second] == ["new"]
    assert found.parameters.to_numpy().tolist() == [["recipe.lr", "1", "2", 6]]
    asr = found.cells[found.cells["metric"] == "asr"].set_index("defense")
    assert asr["difference"].tolist() == pytest.approx([-0.1, 0.0]) and asr["n"].tolist() == [3, 3]
    assert asr.loc["none", "high"] < 0 <= asr.loc["x", "high"]
    over = found.defenses[found.defenses["metric"] == "asr"].set_index("defense")
    assert over.loc["none", "p"] == 0.25 and over.loc["none", "holm"] == 0.5, "Holm of two"


def test_a_parameter_that_varies_within_a_sweep_tells_its_trials_apart() -> None:
    two = [rows({"none": [value]}, **{"recipe.lr": lr}) for lr, value in ((1, 0.9), (2, 0.5))]
    found = changes(pd.concat(two), pd.concat(two[::-1]), ("a", "b"))
    assert found.both == 2 and (found.cells["difference"] == 0).all()


def test_two_stored_sweeps_are_compared(storage: str) -> None:
    found = compare("short", "long", storage)
    assert (found.both, found.same, found.trials) == (2, 0, (4, 4)), "seed 1 of two defenses"
    assert found.parameters["parameter"].tolist() == ["recipe.epochs"]
    assert set(found.cells["metric"]) >= {"ca", "asr", "tpr"}
    twice = raysweep.compare("short", "short", storage)
    assert (twice.same, twice.both) == (4, 4) and (twice.cells["difference"] == 0).all()
    assert twice.only_first == twice.only_second == ()
    with pytest.raises(StoreError, match="long"):
        compare("short", "absent", storage)


def test_the_command_prints_tables_or_json(storage: str) -> None:
    said = CliRunner().invoke(app, ["compare", "short", "long", "--storage", storage, "--all"])
    assert said.exit_code == 0
    for part in ("2 are in both", "only in short", "only in long", "recipe.epochs", "settings"):
        assert part in " ".join(said.output.split()), part
    whole = CliRunner().invoke(app, ["compare", "short", "long", "--storage", storage, "--json"])
    values = json.loads(whole.output)
    assert values["both"] == 2 and values["cells"][0]["n"] == 1


def test_the_command_writes_the_page(storage: str, tmp_path: Path) -> None:
    page = tmp_path / "changes.html"
    words = ["compare", "short", "long", "--storage", storage, "--output", str(page)]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0 and str(page) in said.output.replace("\n", "")
    assert "<title>short → long · raysweep</title>" in page.read_text()
    assert re.search(r"recipe.epochs</th><td>1</td><td>3</td><td>2<", page.read_text())
    raysweep.compare("short", "short", storage, output=page)
    assert "from short (first) to short (second)" in page.read_text()
    said = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "absent" / "a.html")])
    assert said.exit_code != 0 and not (tmp_path / "absent").exists()


def test_victims_are_compared_by_what_their_evaluations_hold(storage: str) -> None:
    found = victims("short", storage=storage)
    assert set(found["metric"]) == {"ca", "asr"} and len(found) == 4, "a defense, two seeds"
    loaded = raysweep.load("short", storage).set_index(["defense_name", "seed"])
    for line in found.itertuples():
        own, none = ((name, line.seed) for name in ("spectral_signatures", "none"))
        shift = loaded.loc[own, line.metric] - loaded.loc[none, line.metric]
        assert (line.only_one - line.only_other) / line.n == pytest.approx(shift)
        assert line.n == loaded.loc[none, f"{line.metric}_n"] and 0 < line.p <= line.holm <= 1


# Data that each seed draws


def test_each_seed_draws_its_own_data_where_that_is_asked_for() -> None:
    drawn = Planner(sweep("drawn", dataset=Digits(size=200, resample=True), seeds=3))
    data = [drawn.route(trial, {}).data for trial in drawn.trials]
    assert len(set(data)) == 3, "one for each seed, shared by its defenses"
    labels = {trial.dataset.label for trial in drawn.trials}
    assert labels == {"digits(size=200, resample=True)"}, "so that seeds are averaged"
    fixed = Planner(sweep("fixed", dataset=Digits(size=200)))
    assert {fixed.route(trial, {}).data for trial in fixed.trials} == {data[0]}, "of seed 0"
    every = [one.dataset.kept(one.dataset.read_labels()) for one in drawn.trials[:3]]
    for part in range(3):
        assert not np.array_equal(every[0][part], every[1][part])


def test_what_a_seed_drew_is_recorded(tmp_path: Path) -> None:
    asked = sweep(
        "drawn",
        dataset=Digits(size=200, resample=True),
        defenses=[NoDefense(), SpectralSignatures()],
    )
    done = raysweep.launch(asked, str(tmp_path / "store"), inline=True).rows
    assert done["status"].eq("ok").all()
    assert done.groupby("seed")["dataset.subset_seed"].agg(list).to_dict() == {0: [0, 0], 1: [1, 1]}
    assert done["dataset.resample"].all() and done["trial"].nunique() == 4
