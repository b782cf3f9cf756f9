"""Tuning: known optima are found, and held-out labels cannot be reached."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pandas as pd
import pytest
from pydantic import Field, ValidationError

import raysweep
from raysweep import methods
from raysweep.attacks.additive import Additive
from raysweep.attacks.badnets import BadNets
from raysweep.attacks.badnets_clean_label import BadNetsCleanLabel
from raysweep.attacks.blend import Blend
from raysweep.attacks.none import NoAttack
from raysweep.attacks.rotation import Rotation
from raysweep.attacks.sig import SIG
from raysweep.attacks.trojan import Trojan
from raysweep.cli.app import app
from raysweep.datasets.digits import Digits
from raysweep.defenses import Decision, Defense, Evidence, Gift, Need
from raysweep.defenses._scored import Scored
from raysweep.defenses.strip import Strip
from raysweep.errors import KnowledgeError, SpecError
from raysweep.jobs.launch import launch
from raysweep.methods import decision
from raysweep.methods.recipe import Recipe
from raysweep.metrics import rates as reference
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.plan.planner import Planner
from raysweep.results.account import NOTHING
from raysweep.results.tuned import Tuned
from raysweep.store import Store
from raysweep.store.events import CandidateEnd, Done, Event, unpack
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.ranges import Parameters, Range
from raysweep.sweep.trials import Trial
from raysweep.sweep.tuning import Constraint, Objective, Tune
from raysweep.tuning import ranking, space, summary
from raysweep.tuning.candidates import candidate_ends
from raysweep.tuning.folds import Split, Studies, _folds, parts_of
from raysweep.tuning.measurements import Measurements
from raysweep.tuning.search import Candidate, Search
from raysweep.tuning.storage import open_storage
from raysweep.tuning.stored import StoredFindings, false_alarms, measure, stored_findings
from raysweep.tuning.study import Study, every_trial

N = 400
ATTACKS = {
    "badnets": BadNets(rate=0.1), "blend": Blend(rate=0.1), "trojan": Trojan(rate=0.1),
    "sig": SIG(rate=0.05), "rotation": Rotation(rate=0.1), "additive": Additive(rate=0.1),
}  # fmt: skip


class Cut(Defense):
    """Flags what scores above `low`, but not above `high`; `blur` makes scores worse."""

    low: float = decision(0.9, ge=0, le=1)
    high: float = decision(1.0, ge=0, le=1)
    blur: float = Field(0.5, ge=0, le=1)

    def needs(self) -> frozenset[Need]:
        return frozenset({"features"})

    def gives(self) -> frozenset[Gift]:
        return frozenset({"train_scores"})

    def decide(self, evidence: Evidence) -> Decision:
        scores = evidence.train_scores
        return Decision(flags=(scores > self.low) & (scores <= self.high))


def instance(attack: str, band: tuple[float, float], blur: float = 0.0) -> StoredFindings:
    """Return an instance whose poison has scores in a band, and clean samples all others."""
    draw = np.random.default_rng(0)
    poison = np.arange(N) < 40
    scores = draw.random(N)
    scores[poison] = draw.uniform(*band, 40)
    outside = (scores <= band[0]) | (scores > band[1]) | poison
    scores[~outside] = band[0] * draw.random((~outside).sum())
    scores = np.where(draw.random(N) < blur, draw.random(N), scores)
    evidence = Evidence(
        "cut", Cut().needs(),
        {"labels": np.zeros(N, np.int64), "num_classes": 1, "train_scores": scores,
         "statistics": {}},
    )  # fmt: skip
    return StoredFindings(
        trial=setting(attack), evidence=evidence,
        inputs={}, key=f"{attack}-{blur}", seconds=2.0, sealed=False, _poison=poison,
        _cover=np.zeros(N, bool), _eligible=np.zeros(0, bool), _evaluated={},
    )  # fmt: skip


class Planted(Measurements):
    """Measurements of instances that are made, not read; poison of each attack has its own band."""

    def __init__(self, over: str = "mean", **bands: tuple[float, float]) -> None:
        self.bands = bands
        self.tune = Tune(metric="auroc", over=over)  # type: ignore[arg-type]
        self._measured = {}
        self.opened: list[str] = []

    def stored(self, trial: Trial) -> StoredFindings:
        name, defense = trial.attack.name, trial.defense
        self.opened.append(name)
        return instance(name, self.bands[name], getattr(defense, "blur", 0.0))


def setting(attack: str, defense: Defense | None = None) -> Trial:
    return Trial(
        dataset=Digits(), model=TinyCNN(), attack=ATTACKS[attack], defense=defense or Cut(blur=0.0),
        recipe=Recipe(), seed=0,
    )  # fmt: skip


def search(
    searched: space.Space,
    attacks: list[str],
    *,
    outer: space.Space | None = None,
    where: Path | None = None,
    tied: str = "",
    **given: Any,
) -> Search:
    tune = Tune(**given)
    settings = tuple(setting(attack) for attack in attacks)

    def studied(over: space.Space) -> Study:
        return Study("s", over, tune, where=where, tied=tied, steps=len(settings))

    return Search(
        subject=Cut(blur=0.0), outer=outer or {}, inner=searched, tune=tune, knows=tune.labels,
        part="", settings=settings, held_out=settings, studied=studied,
    )  # fmt: skip


LOW = {"low": Range(min=0.0, max=1.0)}
BOTH = {**LOW, "high": Range(min=0.0, max=1.0)}


def best_of(found: Search, measurements: Measurements) -> dict[str, float]:
    chosen = found.chosen(measurements)[0]
    return measurements.joined(Cut(**{"blur": 0.0, **chosen}), found.all_stored(measurements))


# Searching decisions


def test_a_known_optimum_of_one_number_is_found_exactly() -> None:
    measurements = Planted(badnets=(0.6, 1.0))
    found = search(LOW, ["badnets"], constraints=["fpr <= 0"])
    best = best_of(found, measurements)
    assert (best["tpr"], best["fpr"], best["youden"]) == (1.0, 0.0, 1.0)
    assert len(found.evaluated(measurements)) == space.POINTS
    mine = instance("badnets", (0.6, 1.0))
    assert mine.evidence is not None
    clean = np.sort(mine.evidence.train_scores[40:])[-1]
    low = found.chosen(measurements)[0]["low"]
    assert clean <= low < mine.evidence.train_scores[:40].min()


def test_a_known_optimum_of_two_numbers_is_found_by_optuna() -> None:
    measurements = Planted(badnets=(0.4, 0.6))
    found = search(BOTH, ["badnets"], metric="youden", constraints=[], trials=200)
    assert best_of(found, measurements)["youden"] > 0.9
    assert len(found.evaluated(measurements)) == 200


@pytest.mark.parametrize("searched", [BOTH, LOW])
@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_constraints_hold_where_they_can(searched: dict[str, Any], sampler: str) -> None:
    measurements = Planted(badnets=(0.4, 0.6))
    for bound in (0.02, 0.45):
        limits = [f"fpr <= {bound}"]
        found = search(searched, ["badnets"], constraints=limits, trials=120, sampler=sampler)
        assert best_of(found, measurements)["fpr"] <= bound


def test_gaussian_processes_search_too() -> None:
    measurements = Planted(badnets=(0.4, 0.6))
    found = search(BOTH, ["badnets"], metric="youden", constraints=[], trials=15, sampler="gp")
    assert best_of(found, measurements)["youden"] > 0.5


def test_a_grid_is_gone_through_once() -> None:
    listed = {"low": Range(values=(0.1, 0.4, 0.7)), "high": Range(values=(0.6, 0.8))}
    settings = Tune(sampler="grid", metric="youden", constraints=())
    study = Study("g", listed, settings)
    seen: list[Parameters] = []
    every_trial(study, lambda values: (seen.append(values), {"youden": values["low"]})[1])
    assert sorted((v["low"], v["high"]) for v in seen) == sorted(
        itertools.product([0.1, 0.4, 0.7], [0.6, 0.8])
    )


def test_fast_rates_are_those_of_the_definition() -> None:
    """Of flags and of thresholds with ties and NaN: counted as metrics.py counts."""
    mine = instance("badnets", (0.3, 0.9), blur=0.3)
    for low in (0.0, 0.25, 0.5, 1.0):
        flags = Cut(low=low).decide(mine.evidence).flags  # type: ignore[arg-type]
        slow = reference.detection(np.asarray(flags), mine._poison, mine._cover)
        fast = measure(Cut(low=low), mine)
        assert (fast["tpr"], fast["fpr"]) == (slow.tpr.value, slow.fpr.value)
    draw = np.random.default_rng(1)
    scores = np.round(draw.random(200), 1)
    scores[::17] = np.nan
    eligible = draw.random(200) < 0.5
    evidence = Evidence(
        "strip", Strip().needs(), {"labels": np.zeros(9, np.int64), "num_classes": 1,
                                   "reference_scores": draw.random(100), "statistics": {}},
    )  # fmt: skip
    seen = replace(
        mine, evidence=evidence, inputs={"clean": scores, "triggered": scores}, _eligible=eligible
    )
    for fpr in (0.01, 0.2, 0.5):
        threshold = Strip(fpr=fpr).decide(evidence).threshold
        fast = measure(Strip(fpr=fpr), seen)
        assert fast["tpr"] == reference.share((scores > threshold)[eligible]).value
        assert fast["fpr"] == reference.share(scores > threshold).value


# Several objectives


def test_a_pareto_front_equals_brute_force() -> None:
    draw = np.random.default_rng(0)
    settings = Tune(metric=["tpr", "fpr", "seconds"], constraints=["fpr <= 0.8"])
    tried = [
        ranking.Evaluated(
            parameters={"n": n},
            metrics=dict(zip(("tpr", "fpr", "seconds"), draw.integers(0, 8, 3) / 8, strict=True)),
        )
        for n in range(300)
    ]
    feasible = [one for one in tried if one.metrics["fpr"] <= 0.8]
    points = np.array([ranking.losses(one.metrics, settings) for one in feasible])
    expected = {
        tuple(p) for p in points
        if not ((points <= p).all(axis=1) & (points < p).any(axis=1)).any()
    }  # fmt: skip
    found = ranking.front(tried, settings)
    assert [ranking.losses(one.metrics, settings) for one in found] == sorted(
        ranking.losses(one.metrics, settings) for one in found
    )
    assert {ranking.losses(one.metrics, settings) for one in found} == expected
    assert len(found) == len(expected), "of equals one stands"


def test_a_front_over_a_grid_is_found_through_optuna() -> None:
    measurements = Planted(badnets=(0.4, 0.9))
    listed = {"low": Range(values=(0.1, 0.3, 0.5, 0.7)), "high": Range(values=(0.6, 0.8, 1.0))}
    given = {"metric": ["tpr", "fpr"], "constraints": ()}
    exact = search(listed, ["badnets"], **given)
    through = search({}, ["badnets"], outer=listed, sampler="grid", **given)
    run_all(through, measurements)
    assert exact.chosen(measurements) == through.chosen(measurements)
    assert len(exact.chosen(measurements)) > 2


def run_all(found: Search, measurements: Measurements) -> None:
    """Do what a feed does, without stages."""
    while (candidate := found.ask()) is not None:
        seen, pruned = [], False
        for trial in candidate.trials:
            seen.append(found.stored(trial, measurements))
            if len(seen) < len(candidate.trials) and found.should_stop(
                candidate, seen, measurements
            ):
                pruned = True
                break
        found.answered(candidate, seen, measurements, pruned=pruned)


# Score-level parameters, with decisions replayed inside


def test_a_mixed_space_searches_decisions_exactly_for_each_candidate() -> None:
    measurements = Planted(badnets=(0.6, 1.0), blend=(0.6, 1.0))
    found = search(LOW, ["badnets", "blend"], outer={"blur": Range(min=0.0, max=1.0)}, trials=12)
    run_all(found, measurements)
    assert found.finished and len(found.evaluated(measurements)) == 12
    assert found.study.history()[0].state == "complete"  # type: ignore[union-attr]
    best = found.chosen(measurements)[0]
    assert best["blur"] == min(one.parameters["blur"] for one in found.evaluated(measurements))
    again = Cut(**best)
    here = [
        instance("badnets", (0.6, 1.0), best["blur"]),
        instance("blend", (0.6, 1.0), best["blur"]),
    ]
    for low in np.linspace(0, 1, 200):
        other = measurements.joined(again.model_copy(update={"low": low}), here)
        mine = measurements.joined(again, here)
        assert ranking.rank(mine, found.tune) <= ranking.rank(other, found.tune)


@pytest.mark.parametrize("pruner", ["median", "wilcoxon", "hyperband"])
def test_a_bad_candidate_is_not_run_everywhere(pruner: str) -> None:
    bands = dict.fromkeys(ATTACKS, (0.6, 1.0))  # Wilcoxon's test needs more than four instances
    measurements = Planted(**bands)
    blurs = {"blur": Range(values=(0.0, 0.02, 0.03, 0.05, 0.06, 0.9, 0.95, 1.0))}
    coarse = {"low": Range(values=tuple(n / 20 for n in range(21)))}
    found = search(
        coarse, list(bands), outer=blurs, pruner=pruner, sampler="random", trials=40,
        metric="youden", constraints=(),
    )  # fmt: skip
    run_all(found, measurements)
    states = [one.state for one in found.study.history()]  # type: ignore[union-attr]
    assert set(states) <= {"complete", "pruned"} and len(states) == 40
    assert "pruned" in states
    assert len(measurements.opened) < len(bands) * 40
    assert found.chosen(measurements)[0]["blur"] == 0.0


def test_a_candidate_that_fails_or_is_undefined_is_no_zombie() -> None:
    study = Study("f", LOW, Tune(trials=3, constraints=()))
    for outcome in (None, {"tpr": float("nan")}, {"tpr": 0.5}):
        number, _ = study.ask()  # type: ignore[misc]
        study.tell(number, outcome, why="out of memory")
    assert study.ask() is None and study.finished
    assert [one.state for one in study.history()] == ["fail", "fail", "complete"]


def test_the_methods_own_values_are_the_first_to_be_tried() -> None:
    study = Study("w", LOW, Tune(), own={"low": 0.75})
    assert study.ask() == (0, {"low": 0.75})
    outside = Study("w", LOW, Tune(), own={"low": 7.0})
    assert 0 <= outside.ask()[1]["low"] <= 1  # type: ignore[index]


# Studies outlive their process


def test_a_journal_goes_on_after_a_kill(tmp_path: Path) -> None:
    journal, settings = tmp_path / "journal.log", Tune(trials=6, constraints=())
    first = Study("k", LOW, settings, where=journal, tied="a")
    for _ in range(3):
        number, values = first.ask()  # type: ignore[misc]
        first.tell(number, {"tpr": values["low"]})
    _, lost = first.ask()  # type: ignore[misc]
    with journal.open("ab") as torn:
        torn.write(b'{"op_code": 4, "wor')
    open_storage.cache_clear()
    again = Study("k", LOW, settings, where=journal, tied="a")
    number, values = again.ask()  # type: ignore[misc]
    assert values == lost, "what the dead driver had asked for is asked again"
    again.tell(number, {"tpr": values["low"]})
    every_trial(again, lambda values: {"tpr": values["low"]})
    assert again.finished and len(again.evaluated()) == 6
    open_storage.cache_clear()
    third = Study("k", LOW, settings, where=journal, tied="a")
    assert third.ask() is None and len(third.evaluated()) == 6


def test_a_study_that_goes_on_does_not_repeat_its_draws(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    for trials in (4, 8):
        open_storage.cache_clear()
        settings = Tune(trials=trials, sampler="random", constraints=())
        study = Study("r", LOW, settings, where=journal)
        every_trial(study, lambda values: {"tpr": values["low"]})
    assert len({one.parameters["low"] for one in study.evaluated()}) == 8


def test_a_study_refuses_other_data(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    Study("d", LOW, Tune(), where=journal, tied="one")
    with pytest.raises(SpecError, match=r"study 'd' was evaluated on other data.* another name"):
        Study("d", LOW, Tune(), where=journal, tied="two")


def test_a_lost_journal_is_made_from_the_ledger(tmp_path: Path) -> None:
    settings = Tune(trials=5, metric=["tpr", "fpr"])
    first = Study("l", LOW, settings, where=tmp_path / "a.log", tied="x")
    lines: list[Event] = [Done(key="", seconds=1, host="", pid=1)]
    for n in range(5):
        number, values = first.ask()  # type: ignore[misc]
        bad = n == 2
        found = None if bad else {"tpr": values["low"], "fpr": values["low"] / 4}
        told = replace(first.tell(number, found, replayed={"high": 0.5}), t=1)
        lines.append(cast("CandidateEnd", unpack(told.pack())))
    assert candidate_ends(lines, "l", "y") == []
    damaged = ({"attrs": {}}, {"attrs": {"metrics": 1, "replayed": {}}}, {"values": ("x",)})
    lines += [replace(lines[-1], **one) for one in damaged]  # type: ignore[arg-type]
    remembered = candidate_ends(lines, "l", "x")
    again = Study("l", LOW, settings, where=tmp_path / "b.log", tied="x", told=remembered)
    assert again.finished and again.evaluated() == first.evaluated()
    assert again._study.best_trials == [] or len(again._study.best_trials) == len(
        first._study.best_trials
    )


def test_a_journal_opens_in_optuna_itself(tmp_path: Path) -> None:
    """What optuna-dashboard and optuna's own command read: names, values, constraints."""
    journal = tmp_path / "journal.log"
    study = Study("sweep/cut/all", LOW, Tune(trials=4, constraints=["fpr <= 0.1"]), where=journal)
    every_trial(study, lambda values: {"tpr": values["low"], "fpr": values["low"] / 5})
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    opened = optuna.load_study(
        study_name="sweep/cut/all", storage=optuna.storages.JournalStorage(backend)
    )
    assert opened.metric_names == ["tpr"] and len(opened.trials) == 4
    assert all(
        (trial.constraints["fpr <= 0.1"] <= 0) == (trial.params["low"] <= 0.5)
        for trial in opened.trials
    )


# Held-out labels


def test_held_out_labels_cannot_be_reached() -> None:
    sealed = instance("blend", (0.2, 0.3)).closed()
    with pytest.raises(KnowledgeError, match=r"held-out instance .*attack=blend.* while tuning"):
        measure(Cut(), sealed)
    for attribute in ("scores", "ranks", "cases", "sorted_inputs"):
        with pytest.raises(KnowledgeError):
            getattr(instance("blend", (0.2, 0.3)).closed(), attribute)
    measurements = Planted(blend=(0.2, 0.3))
    measurements.measured(Cut(), sealed.opened())
    with pytest.raises(KnowledgeError):  # remembered metrics must not bypass the seal
        measurements.measured(Cut(), sealed)


def test_a_planted_leak_fails() -> None:
    """A search that looks at what it is reported on fails, for decisions and for stages."""

    class Leaky(Search):
        def all_stored(self, measurements: Measurements) -> list[StoredFindings]:
            return [self.stored(one, measurements) for one in (*self.settings, *self.held_out)]

        def _candidate(self, number: int, outer: Parameters) -> Candidate:
            made = super()._candidate(number, outer)
            leaked = tuple(self.trial_in(one, outer) for one in self.held_out)
            return replace(made, trials=made.trials + leaked)

    measurements = Planted(badnets=(0.6, 1.0), blend=(0.1, 0.2))
    for outer in ({}, {"blur": Range(min=0.0, max=1.0)}):
        honest = search(LOW, ["badnets"], outer=outer, trials=3)
        given = {field.name: getattr(honest, field.name) for field in fields(Search)}
        given |= {"held_out": (setting("blend"),), "study": None}
        public = {name: value for name, value in given.items() if name[0] != "_"}
        leaky = Leaky(**public)
        with pytest.raises(KnowledgeError, match="attack=blend"):
            run_all(leaky, measurements)
            leaky.chosen(measurements)


def folds(defense: Defense, planted: Planted, **given: Any) -> list[Search]:
    tune = Tune(**given)
    outer, inner = space.spaces_of(defense, tune)
    trials = [setting(attack, defense) for attack in planted.bands]

    class Open(Studies):
        def open(self, split: Split, space: Any) -> Study:
            return Study(split.part or "all", space, tune, steps=len(split.settings))

        def record(self, *given: Any) -> None:
            del given

    studies = Open(None, None)  # type: ignore[arg-type]
    return _folds(tune, trials, (outer, inner), studies, lambda dataset: dataset.label)


MINE = {"test_tune": {"low": {"min": 0.0, "max": 1.0}}}


def test_transfer_never_looks_at_what_it_leaves_out() -> None:
    measurements = Planted(badnets=(0.6, 1.0), blend=(0.5, 1.0), sig=(0.8, 1.0))
    for one in folds(Cut(blur=0.0), measurements, parameters=MINE):
        measurements.opened.clear()
        one.chosen(measurements)
        assert one.part not in measurements.opened
        assert set(measurements.opened) == set(measurements.bands) - {one.part}


def test_transfer_reports_on_the_attack_that_was_left_out() -> None:
    measurements = Planted(badnets=(0.6, 1.0), blend=(0.5, 1.0), sig=(0.8, 1.0))
    searches = folds(Cut(blur=0.0), measurements, parameters=MINE)
    rows = summary.tuned_rows(searches, measurements)
    assert [row.held_out for row in rows] == ["badnets", "blend", "sig", NOTHING]
    by = {row.held_out: row for row in rows}
    for row in rows[:3]:
        tpr, fpr = row.metrics["tpr"], row.metrics["fpr"]
        assert row.labels == "transfer" and tpr.tuned > 0.5 and tpr.interval is not None
        assert tpr.oracle >= tpr.tuned - 1e-9 and fpr.oracle <= 0.05
        assert tpr.interval[0] <= tpr.tuned <= tpr.interval[1]
    (mean,) = summary.means(rows, searches[0].tune)
    assert mean.held_out == "mean of 3" and mean.metrics["tpr"].tuned == pytest.approx(
        np.mean([row.metrics["tpr"].tuned for row in rows[:3]])
    )
    shares = [row.metrics["fpr"] for row in rows[:3]]
    kept = [sum(getattr(fpr, who) <= 0.05 for fpr in shares) for who in ("tuned", "default")]
    assert mean.note == f"constraints hold: tuned {kept[0]}, own {kept[1]}"
    # Tuned on the others, the threshold lies above the weakest poison of blend.
    assert by["blend"].metrics["tpr"].tuned < by["blend"].metrics["tpr"].oracle
    with pytest.raises(SpecError, match="at least two values of attack"):
        folds(Cut(blur=0.0), Planted(badnets=(0.6, 1.0)), parameters=MINE)


def test_forms_of_one_attack_and_attacks_of_one_family_are_held_out_together(
    tmp_path: Path,
) -> None:
    one, other = setting("blend"), replace(setting("blend"), attack=Blend(rate=0.2, alpha=0.4))
    patches = [
        replace(one, attack=attack(rate=0.1)) for attack in (BadNets, Trojan, BadNetsCleanLabel)
    ]
    named = parts_of([one, other, *patches], "attack", str)
    together = "badnets+trojan+badnets_clean_label"
    assert [named[t] for t in (one, other, *patches)] == ["blend", "blend", *[together] * 3]
    assert set(parts_of([one, patches[1]], "attack", str).values()) == {"blend", "trojan"}
    rates = parts_of([one, other], "rate", str)
    assert rates[one] != rates[other]
    files = [replace(one, dataset=Digits(label_noise=noise)) for noise in (0.0, 0.1)]
    assert set(parts_of(files, "dataset", lambda _: "same content").values()) == {
        "digits+digits(label_noise=0.1)"
    }
    clean = replace(one, attack=NoAttack())
    assert parts_of([one, clean], "attack", str)[clean] == ""
    assert parts_of([one, clean], "seed", str)[clean] == "0"


def test_worst_case_and_mean_differ() -> None:
    measurements = Planted(badnets=(0.6, 1.0), blend=(0.3, 1.0))
    over = [measurements.stored(setting(a)) for a in measurements.bands]
    mean = measurements.joined(Cut(low=0.6), over)
    worst = Planted("worst", **measurements.bands).joined(Cut(low=0.6), over)
    assert worst["tpr"] < mean["tpr"] and worst["fpr"] >= mean["fpr"]


class Reference(Scored):
    """A filter with clean reference scores."""


class WithReference(Planted):
    def stored(self, trial: Trial) -> StoredFindings:
        base = super().stored(trial)
        assert base.evidence is not None
        reference = np.random.default_rng(9).random(500)
        evidence = Evidence(
            "reference", Reference().needs(),
            {"labels": np.zeros(N, np.int64), "num_classes": 1,
             "statistics": {"reference": reference},
             "train_scores": base.evidence.train_scores},
        )  # fmt: skip
        return replace(base, evidence=evidence, sealed=True)


def test_clean_only_uses_its_budget_and_reads_no_truth() -> None:
    measurements = WithReference(badnets=(0.6, 1.0))
    fpr = {"fpr": Range(min=0.001, max=0.5, distribution="log_uniform_values")}
    found = search(fpr, ["badnets"], labels="clean_only", constraints=["fpr <= 0.1"])
    found.subject = Reference(on="training_set")
    (chosen,) = found.chosen(measurements)
    sealed = measurements.stored(setting("badnets"))
    rate = false_alarms(Reference(on="training_set", fpr=chosen["fpr"]), sealed)
    assert 0.07 < rate <= 0.1
    blind = search(LOW, ["badnets"], labels="clean_only")
    assert blind.chosen(Planted(badnets=(0.6, 1.0))) == []
    with pytest.raises(ValidationError, match="can only be a budget of false alarms"):
        Tune(labels="clean_only", constraints=("tpr >= 0.9",))


# Spaces and settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strip": {"overlay": {"min": 1, "max": 5}}}, "'overlay' is no parameter of it"),
        ({"strip": {"fpr": {"min": 0.5, "max": 2.0}}}, r"strip\.fpr: 2\.0 is not allowed"),
        ({"strip": {"on": {}}}, "suggests no range"),
    ],
)
def test_spaces_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        space.spaces_of(Strip(), Tune(parameters=given))


@pytest.mark.parametrize(
    "written",
    [
        {"distribution": "log_uniform_values", "max": 0.5, "min": 1e-3}, {"min": 2, "max": 200},
        {"values": [0.1, 3, "deep", True, None]}, {},
    ],
)  # fmt: skip
def test_ranges_are_kept_as_they_were_written(written: dict[str, Any]) -> None:
    """Studies are tied to a digest of them, and `tuned.json` holds them."""
    text = json.dumps(written)
    searched = Range.model_validate_json(text)
    assert json.dumps(searched.pack()) == text and searched.suggested == (not written)
    tune = Tune.model_validate_json(f'{{"parameters": {{"strip": {{"fpr": {text}}}}}}}')
    assert json.dumps(tune.model_dump(mode="json")["parameters"]["strip"]["fpr"]) == text
    assert Range.model_validate(written) == searched


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{min: 0.5, max: 0.1}", "fpr: needs min below max, or values, got 0.5 and 0.1"),
        ("{min: 0.1}", "fpr: needs min below max, or values, got 0.1 and None"),
        ("{distribution: uniform}", "fpr: needs min below max, or values"),
        ("{min: 0, max: 1, distribution: log_uniform_values}", "fpr: needs min above 0 for log_un"),
        ("{min: 0.1, max: 0.2, values: [0.1]}", "fpr: takes values alone, or min, max and distri"),
        ("{min: low, max: 1}", "fpr.min: must be a number, got 'low'"),
        ("{values: []}", "fpr.values: must hold at least one value"),
        ("{values: [{a: 1}]}", r"fpr.values.0: must be a number, text, true, false or null"),
        ("{values: [.1, 7]}", "fpr: 7 is not allowed: must be"),
        ("{values: 0.1}", "fpr.values: must be a list"),
        ("{values: null}", "fpr: values must be a list"),
        ("{value: 2}", "fpr: 2 is not allowed: must be"),
        ("{value: 0.1, max: 0.2}", "fpr: takes value alone, or min, max"),
        ("{min: 0.1, max: 0.2, distribution: 5}", "fpr.distribution: must be .*got 5"),
        ("{min: 0.1, max: 0.2, distribution: uniformm}", "fpr.distribution: .*uniform.*log_unif"),
        ("{min: 0.1, max: 0.2, distribution: constant}", "fpr: constant takes values, or value"),
        ("{min: 0.1, max: 0.2, distribution: int_uniform}", "fpr: needs whole min and max for int"),
        ("{min: 0.1, max: 0.2, q: 0.05}", "fpr: q goes with q_uniform or q_log_uniform_values"),
        ("{min: 0.1, max: 0.2, q: 1, distribution: q_uniform}", "fpr: holds no multiple of q, 1,"),
        ("{min: 0.1, max: 0.2, distribution: log_uniform_values, step: 1}", "fpr: step goes with"),
        ("{min: 0.1, max: 0.2, step: 0}", "fpr.step: must be more than 0"),
        ("{mu: 0.1, sigma: 0.02, distribution: normal}",
         r"fpr: normal weights .*such as \{min: 0.06, max: 0.14, distribution: uniform\}"),
        ("{mu: -3, sigma: 0.5, distribution: q_log_normal, q: 1}",
         r"fpr: .*\{min: 0.01832, max: 0.1353, distribution: q_log_uniform_values\} "),
        ("{min: 0.1, max: 0.2, distribution: normal}", "fpr: normal weights .*write min and max"),
        ("{min: 0.1, max: 0.2, distribution: beta}", "fpr: beta weights"),
        ("{values: [0.1, 0.2], probabilities: [0.5, 0.5]}", "fpr: probabilities weight random dra"),
        ("{min: -6.9, max: -1.2, distribution: log_uniform}",
         r"fpr: log_uniform has exponents .*\{min: 0.001008, max: 0.3012, distribution: log_unif"),
        ("{min: 1, max: 2, distribution: inv_log_uniform_values}", "fpr: inv_log_uniform_values"),
        ("{min: 0.1, max: 0.2, when: {onn: x}}", "fpr.when: 'onn' is no other parameter of it"),
        ("{min: 0.1, max: 0.2, when: {fpr: 1}}", "fpr.when: 'fpr' is no other parameter of it"),
        ("{mim: 0.1, max: 0.2}", r"fpr.mim: unknown field, got 0.1; .*min"),
    ],
)  # fmt: skip
def test_a_wrong_range_is_said_with_its_line(tmp_path: Path, written: str, said: str) -> None:
    file = tmp_path / "t.yaml"
    searched = f"tune:\n  parameters:\n    strip:\n      fpr: {written}"
    file.write_text(SWEEP.replace("tune: {constraints: [fpr <= 0.1]}", searched))
    with pytest.raises(SpecError, match=rf"t\.yaml:13: tune\.parameters\.strip\.{said}"):
        load_sweep(file)


@pytest.mark.parametrize("name", sorted(methods.available("defenses")))
def test_suggested_ranges_are_allowed_and_hold_the_methods_own_values(name: str) -> None:
    kind = methods.load("defenses", name)
    required = {"like": "strip"} if "like" in kind.model_fields else {}
    defense = kind.model_validate(required)
    own = methods.search_ranges(kind)
    given: Any = {name: {field: {} for field in own}}
    tune = Tune(parameters=given, metric="seconds", constraints=())
    outer, inner = space.spaces_of(defense, tune)
    for field, values in {**outer, **inner}.items():
        value = getattr(defense, field)
        assert value is None or space.inside({field: values}, {field: value}), field


def test_what_is_replayed_depends_on_what_is_wanted() -> None:
    given = {"strip": {"overlays": {}, "fpr": {}}}
    outer, inner = space.spaces_of(Strip(), Tune(parameters=given))
    assert set(outer) == {"overlays"} and set(inner) == {"fpr"} and inner["fpr"].min == 0.001
    outer, inner = space.spaces_of(Strip(), Tune(parameters=given, metric="ca"))
    assert set(outer) == {"overlays", "fpr"} and not inner
    assert space.spaces_of(Strip(), Tune())[1].keys() == {"fpr"}


def test_settings_read_as_they_are_written() -> None:
    assert Tune(metric="asr").metric == (Objective(name="asr", goal="minimize"),)
    both = Tune(metric=["tpr", {"name": "seconds"}])
    assert [one.goal for one in both.metric] == ["maximize", "minimize"]
    assert Tune(metric={"name": "fpr", "goal": "maximize"}).metric[0].goal == "maximize"
    assert Constraint.parse("seconds <= 3").excess({"seconds": 5.0}) == 2.0
    for wrong, said in (
        ({"constraints": ("asr < 1",)}, "must be like"),
        ({"constraints": ("tpr <= 1.2.3",)}, "must be like"),
        ({"metric": ["tpr", "fpr"], "pruner": "median"}, "pruner works on one metric"),
        ({"sampler": "cmaes"}, "Input should be 'tpe', 'gp', 'random', 'grid' or 'nsga2'"),
        ({"metric": ["tpr", "fpr"], "stop": {"patience": 3}}, "patience works on one metric"),
        ({"stop": {"patience": 0}}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=said):
            Tune(**wrong)


SWEEP = """
name: tuned
dataset: digits
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 1, batch_size: 64}
attacks: [badnets: {rate: 0.1}, blend: {rate: 0.1}, none]
defenses: [none, spectral_signatures, strip: {overlays: 8}]
seeds: 1
track: {wandb: disabled}
tune: {constraints: [fpr <= 0.1]}
"""


def test_a_replayed_decision_is_judged_as_a_trial_that_was_run(tmp_path: Path) -> None:
    """Flags and thresholds alike: the metrics of replayed findings are those of the records."""
    text = SWEEP.replace(", blend: {rate: 0.1}, none", "")
    file, store = tmp_path / "t.yaml", str(tmp_path / "store")
    file.write_text(text)
    sweep = load_sweep(file)
    launch(sweep, text, store, inline=True)
    rows = raysweep.load("tuned", store).set_index(["attack_name", "defense_name"])
    planner = Planner(sweep)
    for trial in (one for one in planner.trials if one.defense.gives()):
        row = rows.loc[(trial.attack.name, trial.defense.name)]
        replayed = measure(trial.defense, stored_findings(planner, Store(store), trial))
        detector = "input_" if trial.defense.name == "strip" else ""
        ranked = ("tpr", "fpr", "auroc", "ap", "tpr_at_1fpr")
        columns = {"ca": "ca", "asr": "asr", "ra": "ra"}
        for name, column in (columns | {name: f"{detector}{name}" for name in ranked}).items():
            assert replayed[name] == pytest.approx(float(row[column]), nan_ok=True), (trial, name)


def test_a_threshold_that_is_not_stored_is_not_judged() -> None:
    mine = instance("badnets", (0.3, 0.9))
    for reference_score, defined in ((np.inf, False), (0.5, True)):
        evidence = Evidence(
            "strip", Strip().needs(),
            {"labels": np.zeros(9, np.int64), "num_classes": 1, "statistics": {},
             "reference_scores": np.full(9, reference_score)},
        )  # fmt: skip
        scores = np.array([0.2, 0.7])
        seen = replace(
            mine, evidence=evidence, inputs={"clean": scores, "triggered": scores},
            _eligible=np.ones(2, bool),
        )  # fmt: skip
        assert np.isnan(measure(Strip(fpr=0.5), seen)["tpr"]) == (not defined)


def same_again(file: Path) -> Any:
    """Return what a tuning left, whose typed form packs to the very bytes that were written."""
    written = file.read_bytes()
    assert Tuned.unpack(written).pack() == written
    return json.loads(written)


def test_a_sweep_is_tuned_without_a_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, store, to = tmp_path / "t.yaml", str(tmp_path / "store"), tmp_path / "better.yaml"
    file.write_text(SWEEP)
    command = ["tune", str(file), "--inline", "--storage", store]
    app([*command, "--write", str(to)], standalone_mode=False)
    said = capsys.readouterr().out
    told = same_again(tmp_path / "store/sweeps/tuned/tuned.json")
    table = pd.DataFrame(told["rows"])
    assert set(table["defense"]) == {"spectral_signatures", "strip(overlays=8)"}
    assert set(table["held_out"]) == {"badnets", "blend", NOTHING}
    assert (table["labels"] == "transfer").all() and "transfer" in said
    before = sorted((tmp_path / "store/objects").rglob("*.safetensors"))
    app(command, standalone_mode=False)
    assert "0 stages ran" in capsys.readouterr().out
    assert sorted((tmp_path / "store/objects").rglob("*.safetensors")) == before
    page = (tmp_path / "store/sweeps/tuned/report.html").read_text()
    assert "Tuned parameters, reported where they were held out" in page and "rates by fpr" in page
    better = load_sweep(to)
    assert better.tune is None
    strip = next(d for d in better.defenses if d.name == "strip")
    final = table[(table["held_out"] == NOTHING) & (table["defense"] != "spectral_signatures")]
    found = final["parameters"].iloc[0]["fpr"]
    assert strip.fpr == float(f"{found:.4g}")  # type: ignore[attr-defined]
    assert f"strip: {{overlays: 8, fpr: {strip.fpr}}}" in to.read_text(), "the author's own text"  # type: ignore[attr-defined]
    assert "distinct thresholds for 400 values: the calibration set has" in "".join(table["note"])
    shown = optuna.get_all_study_names(
        open_storage(tmp_path / "store/sweeps/tuned/tune/journal.log")
    )
    assert len(shown) == 6, "every search, though Optuna was asked for none of its candidates"
    with pytest.raises(SpecError, match="is there already"):
        app([*command, "--write", str(to)], standalone_mode=False)


MIXED = (
    SWEEP.replace(
        "tune: {constraints: [fpr <= 0.1]}",
        """
tune:
  trials: 3
  metric: tpr
  parameters:
    strip: {overlays: {min: 2, max: 30}, fpr: {}}
""",
    )
    .replace("name: tuned", "name: mixed")
    .replace("spectral_signatures, ", "")
)


def test_a_setting_that_fails_is_a_note_and_costs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **more: Any) -> Any:
        raise ValueError("no such picture")

    monkeypatch.setattr(Blend, "stamp", broken)
    file, store = tmp_path / "t.yaml", tmp_path / "store"
    three = "badnets: {rate: 0.1}, sig: {rate: 0.05},"
    file.write_text(SWEEP.replace("badnets: {rate: 0.1},", three))
    command = ["tune", str(file), "--inline", "--storage", str(store)]
    assert app(command, standalone_mode=False) == 1, "searches whose candidates all failed"
    said = " ".join(capsys.readouterr().out.split())
    assert "no such picture" in said
    assert "every candidate failed: spectral_signatures, held out badnets; spectral_sig" in said
    rows = same_again(store / "sweeps/tuned/tuned.json")["rows"]
    by = {row["held_out"]: row for row in rows if row["defense"] == "spectral_signatures"}
    # Only where the broken attack is held out can anything be searched; it cannot be reported on.
    assert all("no such picture" in by[part]["note"] for part in ("badnets", "sig", "nothing"))
    assert "tuned_tpr" not in by["blend"] and "not stored" in by["blend"]["note"]
    assert by["badnets"]["tuned_tpr"] == by["badnets"]["default_tpr"] and by["sig"]["kept_own"]


@pytest.mark.further
def test_score_level_parameters_run_stages_and_share_everything_upstream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, store = tmp_path / "m.yaml", tmp_path / "store"
    file.write_text(MIXED)
    command = ["tune", str(file), "--inline", "--storage", str(store)]
    app(command, standalone_mode=False)
    capsys.readouterr()
    told = same_again(store / "sweeps/mixed/tuned.json")
    assert len(told["rows"]) == 3 and all(row["tried"] == 3 for row in told["rows"])
    kinds = [path.name.partition("-")[0] for path in (store / "objects").rglob("*.safetensors")]
    assert kinds.count("train") == 2, "a victim for each attack, whatever was tried"
    assert "evaluate" not in kinds and "decide" not in kinds
    tried = {
        one["parameters"]["overlays"] for search in told["searches"] for one in search["history"]
    }
    assert len(tried) >= 3 and kinds.count("defend") <= 2 * (len(tried) + 1)
    # The journal is lost: the ledger remembers, and nothing runs again.
    (store / "sweeps/mixed/tune/journal.log").unlink()
    open_storage.cache_clear()
    app(command, standalone_mode=False)
    assert "0 stages ran" in capsys.readouterr().out
    again = json.loads((store / "sweeps/mixed/tuned.json").read_text())
    assert [r["parameters"] for r in again["rows"]] == [r["parameters"] for r in told["rows"]]


@pytest.mark.further
def test_metrics_of_models_need_whole_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CA and ASR cannot be replayed: the decision itself is asked for, and models are trained."""
    file, store = tmp_path / "w.yaml", tmp_path / "store"
    section = "{trials: 2, metric: asr, constraints: [ca >= 0.2], hold_out: attack}"
    text = SWEEP.replace("{constraints: [fpr <= 0.1]}", section).replace("name: tuned", "name: w")
    file.write_text(text.replace(", strip: {overlays: 8}", ", fine_tuning").replace(
        "hold_out: attack}",
        "hold_out: attack, parameters: {fine_tuning: {learning_rate: {min: 0.001, max: 0.1}},"
        " spectral_signatures: {fraction: {}}}}",
    ))  # fmt: skip
    app(["tune", str(file), "--inline", "--storage", str(store)], standalone_mode=False)
    capsys.readouterr()
    told = same_again(store / "sweeps/w/tuned.json")
    assert {row["defense"] for row in told["rows"]} == {"spectral_signatures", "fine_tuning"}
    for row in told["rows"]:
        assert (
            0 <= row["tuned_asr"] <= 1 and 0 <= row["tuned_ca"] <= 1 and "failed" not in row["note"]
        )
        assert row["tried"] == 2
