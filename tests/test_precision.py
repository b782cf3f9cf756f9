"""`precision: auto`: one answer a plan, asked where it is made, and forced by a setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.cli.app import app
from raysweep.errors import PlanError
from raysweep.exchange import poisoned_sets
from raysweep.jobs.launch import launch
from raysweep.plan.costs import Costs
from raysweep.plan.planner import Planner
from raysweep.store import Store
from raysweep.sweep.loading import from_text
from raysweep.sweep.spec import Sweep
from raysweep.sweep.yaml import parse

OTHER = {"float32": "bfloat16", "bfloat16": "float32"}
TEXT = """
name: auto
dataset: {digits: {size: 200}}
model: {tiny_cnn: {width: 4}}
recipe: {epochs: %d%s}
attack: {badnets: {rate: 0.1}}
defenses: [none, spectral_signatures, strip: {overlays: 2}]
track: {wandb: disabled}
""".replace("strip: {overlays: 2}", "{strip: {overlays: 2}}")


def sweep(named: str = "", epochs: int = 1) -> Sweep:
    text = TEXT % (epochs, f", precision: {named}" if named else "")
    return from_text(parse("auto.yaml", text))


def planned(given: Sweep) -> Planner:
    planner = Planner(given)
    for trial in planner.trials:
        planner.route(trial, {})
    return planner


def test_auto_is_what_the_setting_says(auto: str) -> None:
    assert set(planned(sweep()).stages) == set(planned(sweep(auto)).stages)
    assert not set(planned(sweep()).stages) <= set(planned(sweep(OTHER[auto])).stages)


def test_a_plan_asks_once(auto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(sweep(epochs=10_000))  # so many that no guess is the least
    told = planned(sweep(auto, epochs=10_000))
    seconds = {key: Costs(told, Store(str(tmp_path)))(stage) for key, stage in told.stages.items()}
    monkeypatch.setenv("RAYSWEEP_PRECISION", OTHER[auto])
    for trial in planner.trials:
        planner.route(trial, {})
    assert set(planner.stages) == set(told.stages)
    costs = Costs(planner, Store(str(tmp_path)))
    assert {key: costs(stage) for key, stage in planner.stages.items()} == seconds


def test_a_launch_trains_in_it_and_records_it(auto: str, tmp_path: Path) -> None:
    done = launch(sweep(), TEXT, str(tmp_path), inline=True)
    assert (done.rows["status"] == "ok").all(), done.rows["error"].tolist()
    assert set(done.rows["recipe.precision"]) == {auto}
    assert launch(sweep(auto), TEXT, str(tmp_path), inline=True).ran == 0


def test_an_export_finds_what_was_launched_where_auto_is_another(
    auto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(sweep(), TEXT, str(tmp_path), inline=True)
    monkeypatch.setenv("RAYSWEEP_PRECISION", OTHER[auto])
    (given,) = poisoned_sets(sweep(), Store(str(tmp_path)))
    assert given.attack == "badnets"


def test_doctor_says_it(auto: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["doctor", "--storage", str(tmp_path)], standalone_mode=False)
    assert f"(precision auto: {auto})" in capsys.readouterr().out


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_PRECISION", "bf16")
    with pytest.raises(
        PlanError, match=r"RAYSWEEP_PRECISION must be float32 or bfloat16, .*'bf16'"
    ):
        Planner(sweep())
