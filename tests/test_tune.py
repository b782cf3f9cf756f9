"""Tuning: known optima are found, and held-out labels cannot be reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import Field, ValidationError

from raysweep import tune as tuning
from raysweep.cli import app
from raysweep.defenses import Decision, Defense, Evidence, Gift, Need
from raysweep.defenses._scored import Scored
from raysweep.defenses.strip import Strip
from raysweep.errors import KnowledgeError, SpecError
from raysweep.loading import load_sweep
from raysweep.methods import decision
from raysweep.replay import Instance, false_alarms, measure
from raysweep.spec import Constraint, Tune

N = 400


class Cut(Defense):
    """Flags what scores above `low`, but not above `high`."""

    low: float = decision(0.9, ge=0, le=1)
    high: float = decision(1.0, ge=0, le=1)
    unused: int = Field(0)

    def needs(self) -> frozenset[Need]:
        return frozenset({"features"})

    def gives(self) -> frozenset[Gift]:
        return frozenset({"train_scores"})

    def decide(self, evidence: Evidence) -> Decision:
        scores = evidence.train_scores
        return Decision(flags=(scores > self.low) & (scores <= self.high))


def instance(attack: str, band: tuple[float, float], seed: int = 0) -> Instance:
    """Return an instance whose poison has scores in a band, and clean samples all others."""
    draw = np.random.default_rng(seed)
    poison = np.arange(N) < 40
    scores = draw.random(N)
    scores[poison] = draw.uniform(*band, 40)
    outside = (scores <= band[0]) | (scores > band[1]) | poison
    scores[~outside] = band[0] * draw.random((~outside).sum())
    evidence = Evidence(
        "cut", Cut().needs(),
        {"labels": np.zeros(N, np.int64), "num_classes": 1, "train_scores": scores,
         "statistics": {}},
    )  # fmt: skip
    return Instance(
        where={"dataset": "d", "attack": attack, "rate": 0.1, "seed": seed}, evidence=evidence,
        inputs={}, key=f"{attack}-{seed}", sealed=False, _poison=poison,
        _cover=np.zeros(N, bool), _eligible=np.zeros(0, bool),
    )  # fmt: skip


def search(space: dict[str, Any], journal: Path | None = None, **given: Any) -> tuning.Search:
    settings = Tune(**given)
    return tuning.Search(
        defense=Cut(),
        space=space,
        settings=settings,
        journal=journal,
        constraints=[Constraint.parse(text) for text in settings.constraints],
    )


BOTH = {"low": {"min": 0.0, "max": 1.0}, "high": {"min": 0.0, "max": 1.0}}


def test_a_known_optimum_of_one_number_is_found_exactly() -> None:
    mine = instance("a", (0.6, 1.0))
    found = search({"low": {"min": 0.0, "max": 1.0}}, constraints=["fpr <= 0"])
    best = found.best([mine])
    assert measure(Cut(**best), mine) == {"tpr": 1.0, "fpr": 0.0, "youden": 1.0}
    assert found.evaluations == tuning.POINTS
    clean = np.sort(mine.evidence.train_scores[40:])[-1]
    lowest = mine.evidence.train_scores[:40].min()
    assert clean <= best["low"] < lowest


def test_a_known_optimum_of_two_numbers_is_found_by_optuna() -> None:
    mine = instance("a", (0.4, 0.6))
    found = search(BOTH, metric="youden", constraints=[], trials=200)
    assert measure(Cut(**found.best([mine])), mine)["youden"] > 0.9
    assert found.evaluations == 200


@pytest.mark.parametrize("space", [BOTH, {"low": BOTH["low"]}])
def test_constraints_hold_where_they_can(space: dict[str, Any]) -> None:
    mine = instance("a", (0.4, 0.6))
    for bound in (0.02, 0.2, 0.45):
        found = search(space, constraints=[f"fpr <= {bound}"], trials=150)
        assert measure(Cut(**found.best([mine])), mine)["fpr"] <= bound


def test_a_journal_goes_on_and_is_tied_to_its_evidence(tmp_path: Path) -> None:
    mine, journal = instance("a", (0.4, 0.6)), tmp_path / "journal.log"
    first = search(BOTH, journal, metric="youden", constraints=[], trials=60)
    best = first.best([mine])
    with journal.open("ab") as torn:
        torn.write(b'{"op_code": 4, "wor')
    again = search(BOTH, journal, metric="youden", constraints=[], trials=60)
    assert again.best([mine]) == best and again.evaluations == 0
    other = search(BOTH, journal, metric="youden", constraints=[], trials=60)
    other.best([instance("b", (0.4, 0.6))])
    assert other.evaluations == 60, "other evidence is another study"


def test_held_out_labels_cannot_be_reached() -> None:
    sealed = instance("b", (0.2, 0.3)).closed()
    with pytest.raises(KnowledgeError, match=r"held-out instance .*attack=b.* while tuning"):
        measure(Cut(), sealed)
    found = search({"low": BOTH["low"]})
    with pytest.raises(KnowledgeError):
        found.best([instance("a", (0.6, 1.0)), sealed])
    # A value that is remembered from another fold is no way around the seal.
    found.best([sealed.opened()])
    with pytest.raises(KnowledgeError):
        found.best([sealed])


def test_a_planted_leak_fails() -> None:
    """A search that is given the held-out part itself, sealed as it is, fails."""

    class Leaky(tuning.Search):
        def best(self, over: Any) -> tuning.Values:
            return super().best([*over, *self.leaked])  # type: ignore[attr-defined]

    parts = [instance("a", (0.6, 1.0)), instance("b", (0.1, 0.2))]
    settings = Tune(constraints=())
    leaky = Leaky(defense=Cut(), space={"low": BOTH["low"]}, settings=settings, constraints=[])
    leaky.leaked = [parts[0].closed()]  # type: ignore[attr-defined]
    with pytest.raises(KnowledgeError):
        list(tuning._studied(leaky, parts))


def test_transfer_reports_on_the_attack_that_was_left_out() -> None:
    parts = [instance("a", (0.6, 1.0)), instance("b", (0.5, 1.0)), instance("c", (0.8, 1.0))]
    rows = list(tuning._studied(search({"low": BOTH["low"]}, constraints=["fpr <= 0.05"]), parts))
    assert [row.held_out for row in rows] == ["a", "b", "c", tuning.NOTHING]
    by = {row.held_out: row for row in rows}
    for row in rows[:3]:
        assert row.labels == "transfer" and row.tuned["tpr"] > 0.5
        assert row.oracle["tpr"] >= row.tuned["tpr"] - 1e-9 and row.oracle["fpr"] <= 0.05
    # Tuned on a and c, the threshold lies above the weakest poison of b.
    assert by["b"].tuned["tpr"] < by["b"].oracle["tpr"] and by["b"].parameters["low"] > 0.5
    with pytest.raises(SpecError, match="at least two values of attack"):
        list(tuning._studied(search({"low": BOTH["low"]}), parts[:1]))


def test_worst_case_and_mean_differ() -> None:
    parts = [instance("a", (0.6, 1.0)), instance("b", (0.3, 1.0))]
    space = {"low": BOTH["low"]}
    mean = search(space, constraints=["fpr <= 0.2"]).metrics({"low": 0.6}, parts)
    worst = search(space, over="worst", constraints=["fpr <= 0.2"]).metrics({"low": 0.6}, parts)
    assert worst["tpr"] < mean["tpr"] and worst["fpr"] >= mean["fpr"]


class Reference(Scored):
    """A filter with clean reference scores."""


def with_reference(seed: int) -> Instance:
    base = instance("a", (0.6, 1.0), seed)
    reference = np.random.default_rng(seed + 9).random(500)
    evidence = Evidence(
        "reference", Reference().needs(),
        {"labels": np.zeros(N, np.int64), "num_classes": 1, "statistics": {"reference": reference},
         "train_scores": base.evidence.train_scores},
    )  # fmt: skip
    from dataclasses import replace

    return replace(base, evidence=evidence).closed()


def test_clean_only_uses_its_budget_and_reads_no_truth() -> None:
    sealed = with_reference(0)
    found = tuning.Search(
        defense=Reference(on="training_set"),
        constraints=[],
        settings=Tune(labels="clean_only"),
        space={"fpr": {"min": 0.001, "max": 0.5, "distribution": "log_uniform_values"}},
    )
    chosen = found.blind([sealed], 0.1)
    assert chosen is not None
    rate = false_alarms(Reference(on="training_set", fpr=chosen["fpr"]), sealed)
    assert 0.07 < rate <= 0.1
    assert search({"low": BOTH["low"]}).blind([instance("a", (0.6, 1.0)).closed()], 0.1) is None
    with pytest.raises(ValidationError, match="can only be a budget of false alarms"):
        Tune(labels="clean_only", constraints=("tpr >= 0.9",))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strip": {"overlays": {"min": 1, "max": 5}}}, "'overlays' is no decision parameter"),
        ({"strip": {"fpr": {"min": 0.5, "max": 2.0}}}, r"strip\.fpr: 2\.0 is not allowed"),
    ],
)
def test_spaces_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        tuning.space_of(Strip(), given)
    assert tuning.space_of(Strip(), {})["fpr"]["min"] == 0.001
    with pytest.raises(SpecError, match="min below max"):
        tuning.distribution({"min": 2, "max": 1})
    with pytest.raises(ValidationError, match="must be like"):
        Tune(constraints=("asr < 1",))


SWEEP = """
name: tuned
dataset: digits
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 4, batch_size: 64}
attacks: [badnets: {rate: 0.1}, blend: {rate: 0.1}, none]
defenses: [none, spectral_signatures, strip: {overlays: 8}]
seeds: 1
track: {wandb: disabled}
tune: {constraints: [fpr <= 0.1]}
"""


def test_a_sweep_is_tuned_without_a_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, store, to = tmp_path / "t.yaml", str(tmp_path / "store"), tmp_path / "better.yaml"
    file.write_text(SWEEP)
    command = ["tune", str(file), "--inline", "--storage", store]
    app([*command, "--write", str(to)], standalone_mode=False)
    said = capsys.readouterr().out
    table = pd.DataFrame(json.loads((tmp_path / "store/sweeps/tuned/tuned.json").read_text()))
    assert set(table["defense"]) == {"spectral_signatures", "strip(overlays=8)"}
    assert set(table["held_out"]) == {"badnets", "blend", tuning.NOTHING}
    assert (table["labels"] == "transfer").all() and "transfer" in said
    before = sorted((tmp_path / "store/objects").rglob("*.safetensors"))
    app(command, standalone_mode=False)
    assert sorted((tmp_path / "store/objects").rglob("*.safetensors")) == before
    better = load_sweep(to)
    assert better.tune is None
    strip = next(d for d in better.defenses if d.name == "strip")
    final = table[
        (table["held_out"] == tuning.NOTHING) & (table["defense"] != "spectral_signatures")
    ]
    assert strip.fpr == final["parameters"].iloc[0]["fpr"]  # type: ignore[attr-defined]
    with pytest.raises(SpecError, match="is there already"):
        app([*command, "--write", str(to)], standalone_mode=False)
