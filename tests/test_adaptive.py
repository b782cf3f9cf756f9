"""Attackers who search: what they seek, what bounds them, what they have seen, and what is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raysweep.attacks.blend import Blend
from raysweep.cli.app import app
from raysweep.datasets.digits import Digits
from raysweep.datasets.ember import Ember
from raysweep.defenses import Defense, Gift, Need
from raysweep.defenses.fine_pruning import FinePruning
from raysweep.defenses.neural_cleanse import NeuralCleanse
from raysweep.defenses.none import NoDefense
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.defenses.strip import Strip
from raysweep.errors import KnowledgeError, SpecError
from raysweep.jobs.launch import launch
from raysweep.jobs.tune import Tuning
from raysweep.jobs.tune import tune as search_sweep
from raysweep.methods import decision
from raysweep.metrics.rates import Share
from raysweep.metrics.visibility import l2, linf, ssim
from raysweep.plan.route import followed
from raysweep.reports import adaptive
from raysweep.reports.adaptive import KNOWN
from raysweep.results.account import NOTHING
from raysweep.results.entries.tuning import searches, tuning
from raysweep.results.records import load
from raysweep.results.tuned import Tuned, TunedMetric, TunedRow
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.ranges import Range
from raysweep.sweep.searching import tuning_faults
from raysweep.sweep.spec import Sweep, Track
from raysweep.sweep.trials import Trial
from raysweep.sweep.tuning import METRICS, SMALLER_IS_BETTER, Objective, Tune
from raysweep.tuning import ranking
from raysweep.tuning.answer import best_answer
from raysweep.tuning.feed import Feed, TuningPlanner, _Pending
from raysweep.tuning.folds import Studies, splits_of
from raysweep.tuning.notes import note
from raysweep.tuning.search import Search
from raysweep.tuning.stored import StoredFindings, measure
from raysweep.tuning.study import Study
from tests.test_tune import Cut, Planted, instance, run_all, setting

ATTACKER = {"who": "attack", "constraints": ["victim_asr >= 0.9"]}
ALPHAS = {"alpha": Range(values=(0.05, 0.1, 0.2, 0.4, 0.8))}


# What is better for an attacker


def test_every_metric_has_the_attackers_direction_unless_one_is_given() -> None:
    flipped = {"tpr", "fpr", "youden", "auroc", "ap", "tpr_at_1fpr", "verdict_correct", "asr", "ra"}
    flipped |= {"false_alarms"}
    for metric in METRICS:
        sides = [metric in SMALLER_IS_BETTER[who] for who in ("defense", "attack")]
        assert (sides[0] != sides[1]) == (metric in flipped | {"rate", "l2", "linf"}), metric
    given = {
        **ATTACKER,
        "metric": ["tpr", "asr", {"name": "ca"}, {"name": "fpr", "goal": "minimize"}],
    }
    goals = {one.name: one.goal for one in Tune.model_validate(given).metric}
    assert goals == {"tpr": "minimize", "asr": "maximize", "ca": "maximize", "fpr": "minimize"}
    assert Tune.model_validate(ATTACKER).metric == (Objective(name="asr", goal="maximize"),)
    assert Tune().metric == (Objective(name="tpr", goal="maximize"),)
    rows: list[Mapping[Any, float]] = [{"asr": 0.2, "tpr": 0.9}, {"asr": 0.7, "tpr": 0.1}]
    joined = [ranking.joined(rows, Tune(who=who, over="worst")) for who in ("defense", "attack")]
    assert joined == [{"asr": 0.7, "tpr": 0.1}, {"asr": 0.2, "tpr": 0.9}]


def test_a_defenders_section_is_packed_as_ever() -> None:
    """Its studies are tied to a digest of these very fields."""
    packed = Tune(constraints=("fpr <= 0.1",)).model_dump(mode="json")
    assert not {"who", "against", "budget"} & packed.keys()
    attacker = Tune.model_validate({**ATTACKER, "against": "tuned", "metric": "tpr"})
    again = Tune.model_validate_json(json.dumps(attacker.model_dump(mode="json")))
    assert again == attacker and again.model_dump()["who"] == "attack"


IMAGES = Digits()


class Verdict(Defense):
    """Says whether a model is backdoored, and leaves it as it is."""

    def needs(self) -> frozenset[Need]:
        return frozenset({"victim"})

    def gives(self) -> frozenset[Gift]:
        return frozenset({"verdict"})


def said(given: dict[str, Any], *defenses: Any, dataset: Any = IMAGES) -> list[str]:
    tune = Tune.model_validate(given)
    faults = tuning_faults(tune, defenses or (FinePruning(),), (Blend(),), (dataset,))
    return [f"{'.'.join(map(str, path))}: {message}" for path, message in faults]


@pytest.mark.parametrize(
    ("given", "defense", "fault"),
    [({"constraints": ["linf <= 0.2"]}, Strip(), "constraints: must bound victim_asr from below"),
     ({"constraints": ["victim_asr <= 0.9"]}, Strip(), "constraints: must bound victim_asr"),
     ({"metric": "tpr"}, FinePruning(), "metric: tpr is undefined for fine_pruning"),
     ({"metric": "asr"}, Verdict(), "metric: asr is undefined for test_adaptive"),
     ({"metric": "false_alarms"}, Strip(), "metric: false_alarms is undefined for strip"),
     ({"labels": "oracle"}, Strip(), "labels: goes with who: defense alone"),
     ({"hold_out": "seed"}, Strip(), "hold_out: goes with who: defense alone"),
     ({"against": "tuned"}, Strip(), "metric: asr is undefined under against: tuned"),
     ({"parameters": {"strip": {"fpr": {}}}}, Strip(), "parameters.strip: 'strip' is no attack"),
     ({"parameters": {"blend": {"alpha": {}}}}, Strip(), "alpha: the method suggests no range"),
     ({"parameters": {"blend": {"alpha": {"values": [0.0]}}}}, Strip(), "0.0 is not allo"),
     ({"who": "defense", "constraints": [], "budget": 0.1}, Strip(), "budget: goes with who: att")],
)  # fmt: skip
def test_what_an_attacker_cannot_be_judged_by_is_refused_when_the_file_is_loaded(
    given: dict[str, Any], defense: Any, fault: str
) -> None:
    told = said({**ATTACKER, **given}, defense)
    assert len(told) == 1 and fault in told[0], told


def test_similarity_of_images_is_refused_where_there_are_none(tmp_path: Path) -> None:
    given = {**ATTACKER, "constraints": ["victim_asr >= 0.9", "ssim >= 0.9", "linf <= 0.1"]}
    (told,) = said(given, dataset=Ember(path=str(tmp_path)))
    assert told.startswith(
        "constraints.1: ssim is undefined on dataset ember, which holds features"
    )
    assert said(given) == [] and said(ATTACKER, NoDefense(), Strip()) == []
    assert said({**ATTACKER, "metric": "verdict_correct"}, NeuralCleanse()) == []


# Visibility


def test_distances_of_images_are_those_of_the_definition() -> None:
    draw = np.random.default_rng(0)
    images = draw.random((4, 3, 14, 17))
    assert (l2(images, images), linf(images, images), ssim(images, images)) == (0.0, 0.0, 1.0)
    changed = images.copy()
    changed[:2] += 0.1
    assert linf(images, changed) == pytest.approx(0.05)
    one = images.copy()
    one[2, 0, 0, 0] += 0.3
    assert linf(images, one) == l2(images, one) == pytest.approx(0.3 / 4)
    assert l2(images, changed) == pytest.approx(0.1 * np.sqrt(3 * 14 * 17) / 2)
    for low in (0.0, 0.2, 0.5):  # of constant images, luminance is all that is left
        flat = np.full((1, 1, 16, 16), low)
        expected = (2 * low * (low + 0.1) + 1e-4) / (low**2 + (low + 0.1) ** 2 + 1e-4)
        assert ssim(flat, flat + 0.1) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("side", [8, 16])
def test_similarity_is_that_of_the_windows_one_by_one(side: int) -> None:
    """By hand: for every window within the image, weighted means, variances and covariance."""
    draw = np.random.default_rng(side)
    x = draw.random((1, 2, side, side + 3))
    y = np.clip(x + 0.2 * draw.normal(size=x.shape), 0, 1)
    reach = 5 if side >= 11 else 3
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-(steps[:, None] ** 2 + steps[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for channel in range(2):
        for row in range(reach, side - reach):
            for column in range(reach, side + 3 - reach):
                place = (
                    slice(row - reach, row + reach + 1),
                    slice(column - reach, column + reach + 1),
                )
                a, b = x[0, channel][place], y[0, channel][place]
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                var_a = (weights * (a - mean_a) ** 2).sum()
                var_b = (weights * (b - mean_b) ** 2).sum()
                both = (weights * (a - mean_a) * (b - mean_b)).sum()
                found.append(
                    (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
                    / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
                )  # fmt: skip
    assert ssim(x, y) == pytest.approx(np.mean(found), rel=1e-9)


# A planted truth: faint triggers evade, and too faint ones do not work


class Bench(Planted):
    """Poison of an opacity has the upper scores above 1 - opacity; the victim learns from 0.1."""

    def __init__(self, tune: Tune) -> None:
        super().__init__()
        self.tune, self._answers = tune, {}

    def stored(self, trial: Trial) -> StoredFindings:
        attack = trial.attack
        assert isinstance(attack, Blend)
        found = instance("blend", (attack.alpha, min(attack.alpha + 0.3, 1.0)))
        worked = 1.0 if attack.alpha >= 0.1 else 0.2
        attacked = {"victim_asr": worked, "victim_ca": 1 - attack.alpha, "rate": attack.rate,
                    "l2": 10 * attack.alpha,
                    "linf": attack.alpha, "ssim": 1 - attack.alpha}  # fmt: skip
        self.opened.append(trial.defense.label)
        return replace(
            found,
            trial=trial,
            key=trial.defense.label,
            attacked=attacked,  # type: ignore[arg-type]
        )


class Ranged(Cut):
    """The same with a range to answer by."""

    low: float = decision(0.9, search={"min": 0.0, "max": 1.0}, ge=0, le=1)


def attacker(bench: Bench, *, defense: Any = None, space: Any = ALPHAS) -> Search:
    met = replace(setting("blend"), defense=defense or Cut(low=0.3))
    search = Search(
        subject=met.attack, outer=space, inner={}, tune=bench.tune, knows="adaptive", part="cut",
        settings=(met,), held_out=(met,), studied=lambda over: Study("s", over, bench.tune),
    )  # fmt: skip
    run_all(search, bench)
    return search


def test_the_faintest_trigger_that_works_is_found() -> None:
    bench = Bench(
        Tune.model_validate({**ATTACKER, "metric": "tpr", "sampler": "grid", "trials": 5})
    )
    search = attacker(bench)
    tried = {one.parameters["alpha"]: one.metrics for one in search.evaluated(bench)}
    assert tried.keys() == set(ALPHAS["alpha"].values or ())
    works = {alpha: one["tpr"] for alpha, one in tried.items() if one["victim_asr"] >= 0.9}
    assert (
        search.chosen(bench) == [{"alpha": min(works, key=works.__getitem__)}] == [{"alpha": 0.1}]
    )
    assert tried[0.05]["tpr"] < tried[0.1]["tpr"] < tried[0.8]["tpr"], "poison that fails evades"


RATES = {"rate": Range(values=(0.2, 0.05))}


@pytest.mark.parametrize(
    ("constraint", "space", "found", "without"),
    [("linf <= 0.25", ALPHAS, 0.2, 0.4), ("linf <= 0.1", ALPHAS, 0.1, 0.4),
     ("l2 <= 3", ALPHAS, 0.2, 0.4), ("ssim >= 0.85", ALPHAS, 0.1, 0.4),
     ("victim_ca >= 0.75", ALPHAS, 0.2, 0.4), ("rate <= 0.1", RATES, 0.05, 0.2)],
)  # fmt: skip
def test_each_constraint_is_kept(constraint: str, space: Any, found: float, without: float) -> None:
    """An attacker who wants to be seen would take more, unless it is bounded."""
    goal = {"name": "tpr", "goal": "maximize"}
    for more, expected in ((constraint, found), ("victim_asr <= 1", without)):
        given = {**ATTACKER, "constraints": [*ATTACKER["constraints"], more], "metric": goal}
        trials = len(next(iter(space.values())).values)
        bench = Bench(Tune.model_validate({**given, "sampler": "grid", "trials": trials}))
        (chosen,) = attacker(bench, space=space).chosen(bench)
        assert list(chosen.values()) == [expected]


def test_a_search_in_which_no_candidate_keeps_the_constraints_says_so() -> None:
    given = {**ATTACKER, "metric": "tpr", "sampler": "grid", "trials": 5}
    for bound, said in (("linf <= 0.01", "no candidate keeps the constraints"), ("linf <= 1", "")):
        constraints = [*ATTACKER["constraints"], bound]
        bench = Bench(Tune.model_validate({**given, "constraints": constraints}))
        search = attacker(bench)
        assert note(search, search.chosen(bench), bench).startswith(said), bound
        assert bool(note(search, search.chosen(bench), bench)) == bool(said)


def test_a_defense_that_answers_has_the_best_decision_on_each_attack() -> None:
    given = {**ATTACKER, "metric": "tpr", "against": "tuned", "sampler": "grid", "trials": 5}
    bench = Bench(Tune.model_validate({**given, "budget": 0.5}))
    defense = Ranged(low=1.0)
    search = attacker(bench, defense=defense)
    for tried in search.evaluated(bench):
        trial = replace(setting("blend"), defense=defense, attack=Blend(**tried.parameters))
        found = bench.stored(trial)
        every = [measure(Ranged(low=low), found) for low in np.linspace(0, 1, 400)]
        brute = max(one["tpr"] for one in every if one["fpr"] <= 0.5)
        assert tried.metrics["tpr"] == brute >= measure(defense, found)["tpr"]
        assert tried.metrics["fpr"] <= 0.5
        assert measure(best_answer(found, 0.0), found)["fpr"] == 0.0
    as_written = Bench(bench.tune.model_copy(update={"against": "own"}))
    own = attacker(as_written, defense=defense).evaluated(as_written)
    assert max(one.metrics["tpr"] for one in own) == 0.0, "the defense as written flags nothing"


# What the searches of an attack see


def splits(**given: Any) -> dict[tuple[str, str], Any]:
    tune = Tune.model_validate({**ATTACKER, **given})
    defenses = (Strip(), SpectralSignatures(), FinePruning())
    trials = [
        replace(setting("blend"), defense=one, seed=seed) for one in defenses for seed in (0, 1, 2)
    ]
    found = splits_of(tune, trials, lambda dataset: dataset.label)
    return {(one.knows, one.part): one for one in found}


def test_one_search_knows_the_defense_and_another_all_but_it() -> None:
    by = splits(report_on={"seed": [2]})
    assert len(by) == 6
    known, other = by["adaptive", "strip"], by["transferred", "strip"]
    assert {(t.defense.name, t.seed) for t in known.settings} == {("strip", 0), ("strip", 1)}
    assert {t.defense.name for t in other.settings} == {"spectral_signatures", "fine_pruning"}
    assert {t.seed for t in other.settings} == {0, 1}
    for one in (known, other):
        assert [(t.defense.name, t.seed) for t in one.held_out] == [("strip", 2)]
    assert known.study == "blend @ 0.1/adaptive strip"
    assert len({one.study for one in by.values()}) == 6
    measured = {t.seed for t in splits()["adaptive", "strip"].held_out}
    assert measured == {0, 1, 2}, "without a third split, what it has seen"


def test_the_truth_of_the_defense_that_is_held_out_is_sealed() -> None:
    bench = Bench(Tune.model_validate({**ATTACKER, "metric": "tpr"}))
    search = attacker(bench)
    outside = replace(search.settings[0], defense=Cut(low=0.5))
    with pytest.raises(KnowledgeError, match="held-out"):
        bench.measured(search.subject, search.stored(outside, bench))


# A whole search on digits, against filters, detectors and removals alike

SWEEP = """
name: attacked
question: How bad does it get when the attacker knows the defense?
dataset: {digits: {size: 300, test_size: 200}}
model: linear
recipe: {epochs: 2, batch_size: 64, learning_rate: 0.1}
attacks:
  - blend: {rate: 0.08, alpha: 0.3, include_target: false}
defenses: [none, spectral_signatures, strip: {overlays: 8}]
seeds: 2
tune:
  who: attack
  constraints: [victim_asr >= 0.3, linf <= 0.45]
  parameters: {blend: {alpha: {values: [0.1, 0.4, 0.9]}, rate: {values: [0.03, 0.1, 0.95]}}}
  sampler: grid
  trials: 9
  report_on: {seed: [1]}
track: {wandb: disabled}
"""


class Searched:
    """A sweep whose attacks are searched by the first test that asks, and what is left of it."""

    def __init__(self, folder: Path) -> None:
        self.file, self.store = folder / "a.yaml", str(folder / "store")
        self.file.write_text(SWEEP)
        self.sweep = load_sweep(self.file)

    @cached_property
    def tuned(self) -> Tuned:
        done = tuned_inline(self.sweep, self.store)
        assert done.tuned is not None
        return done.tuned

    def row(self, defense: str, knows: str) -> TunedRow:
        (row,) = (r for r in self.tuned.rows if (r.defense, r.labels) == (defense, knows))
        return row


WRITTEN, STRIP = "blend(include_target=False, alpha=0.3)", "strip(overlays=8)"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return Searched(tmp_path_factory.mktemp("attacked"))


def tuned_inline(sweep: Sweep, store: str, **given: Any) -> Tuning:
    return search_sweep(sweep, SWEEP, store, inline=True, **given)


def outcomes(searched: Searched, trial: Trial) -> dict[str, float]:
    """Return what was stored of a trial, of its victim by itself, and of its trigger."""
    planner, store = TuningPlanner(searched.sweep, whole=True), Store(searched.store)
    route = followed(partial(planner.route, trial), store.outcome)
    keys = (route.evaluate, route.undefended, route.visibility)
    found, victim, seen = ({**(store.outcome(key or "") or {})} for key in keys)
    return {"asr": found["asr"], "victim_asr": victim["asr"], **seen}  # type: ignore[dict-item]


def trials_of(searched: Searched, defense: str, seed: int) -> Iterator[tuple[Blend, Trial]]:
    planner = TuningPlanner(searched.sweep, whole=True)
    (trial,) = (
        t for t in planner.every if (t.defense.label, t.seed) == (defense, seed)
    )  # fmt: skip
    for alpha in (0.1, 0.4, 0.9):
        for rate in (0.03, 0.1):
            attack = Blend(alpha=alpha, rate=rate, include_target=False)
            yield attack, replace(trial, attack=attack)


@pytest.mark.parametrize("defense", ["spectral_signatures", STRIP])
def test_the_search_finds_what_brute_force_over_what_is_stored_finds(
    searched: Searched, defense: str
) -> None:
    row = searched.row(defense, "adaptive")
    tried = [(a, outcomes(searched, t)) for a, t in trials_of(searched, defense, 0)]
    kept = [(a, one) for a, one in tried if one["victim_asr"] >= 0.3 and one["linf"] <= 0.45]
    assert 0 < len(kept) < len(tried), "the constraints bind"
    best = max(one["asr"] for _, one in kept)
    assert {"alpha": row.parameters["alpha"], "rate": row.parameters["rate"]} in [
        {"alpha": a.alpha, "rate": a.rate} for a, one in kept if one["asr"] == best
    ]
    # Reported on a seed that no search has seen, as a trial that was run to its end.
    found = Blend(**row.parameters, include_target=False)  # type: ignore[arg-type]
    (there,) = (t for a, t in trials_of(searched, defense, 1) if a == found)
    assert row.metrics["asr"].tuned == outcomes(searched, there)["asr"]
    assert row.metrics["linf"].tuned == outcomes(searched, there)["linf"]


def test_rows_say_what_was_known_and_what_it_cost(searched: Searched) -> None:
    rows = searched.tuned.rows
    assert len(rows) == 6 and {row.labels for row in rows} == {"default", "adaptive", "transferred"}
    other = searched.row("spectral_signatures", "transferred")
    assert other.attacker is not None and other.attacker.attack == f"{WRITTEN} @ 0.08"
    assert (other.held_out, other.attacker.seen) == ("spectral_signatures", f"{STRIP}; seed 0")
    assert other.attacker.measured == "seed 1; n = 1"
    own = searched.row("spectral_signatures", "default")
    assert (own.held_out, own.tried, own.parameters) == (NOTHING, 0, {"alpha": 0.3, "rate": 0.08})
    known = searched.row("spectral_signatures", "adaptive")
    assert known.tried == 6, "three candidates ask for more than may be poisoned"
    assert known.attacker is not None and known.attacker.stages > known.tried and known.seconds > 0
    (account,) = (s for s in searched.tuned.searches if s.search == known.search)
    states = [one.state for one in account.history or ()]
    assert states.count("complete") == 6 and states.count("pruned") == 3
    for row in (own, known):  # each TPR is of its own number of poisoned samples
        rate, tpr = row.parameters["rate"], row.metrics["tpr"]
        assert isinstance(rate, float)
        assert tpr.interval == pytest.approx(Share(value=tpr.tuned, n=round(rate * 300)).interval)
    packed = searched.tuned.pack()
    assert Tuned.unpack(packed).pack() == packed


def test_a_default_row_is_that_of_the_records(searched: Searched) -> None:
    """The victim is evaluated as the undefended trial is, and a launch runs no stage again."""
    conclusion = launch(searched.sweep, SWEEP, searched.store, inline=True)
    records = load("attacked", searched.store).set_index(["defense_name", "seed"])
    assert conclusion.unfinished == 0
    for name, label in (("spectral_signatures", "spectral_signatures"), ("strip", STRIP)):
        row = searched.row(label, "default")
        assert row.metrics["asr"].tuned == records.loc[(name, 1), "asr"]
        assert row.metrics["victim_asr"].tuned == records.loc[("none", 1), "asr"]
        assert row.metrics["victim_ca"].tuned == records.loc[("none", 1), "ca"]
    assert not any("visibility" in column or "undefended" in column for column in records)


def test_studies_are_tied_to_the_defenses_that_an_attack_meets(searched: Searched) -> None:
    planner = TuningPlanner(searched.sweep, whole=True)
    trials = [t for t in planner.every if t.defense.label == STRIP and t.seed == 0]
    settings = searched.sweep.tune
    assert settings is not None
    (split,) = splits_of(settings.model_copy(update={"report_on": {}}), trials, planner.data)
    studies, space = Studies(planner, Store(searched.store)), {"alpha": ALPHAS["alpha"]}
    met = replace(split, settings=tuple(replace(t, defense=Strip(overlays=9)) for t in trials))
    assert studies._tied(split, space) == studies._tied(split, space) != studies._tied(met, space)


def test_a_candidate_waits_for_its_victim_and_its_trigger(searched: Searched) -> None:
    planner = TuningPlanner(searched.sweep, whole=True)
    trial = next(t for t in planner.every if t.defense.label == STRIP)
    route = planner.route(trial, {})
    nothing: Any = None  # is measured
    feed, pending = Feed(planner, [], nothing), _Pending(trials=(trial,), issued=1)
    schedule: Any = SimpleNamespace(
        upstream_failed={}, failed={}, done={route.evaluate}, outcomes={}
    )
    assert feed._standing(pending, schedule) == ([route.undefended, route.visibility], [])


def test_every_search_of_an_attack_is_a_run_of_its_own(searched: Searched) -> None:
    entries = list(searches(searched.tuned, "attacked", Track()))
    assert len({one.run for one in entries}) == len(entries) == 4, "attacks as written are none"
    names = [f"search · {WRITTEN} @ 0.08 · {STRIP} · {known}" for known in tuple(KNOWN)[1:]]
    assert {*names} < {one.name for one in entries} and all(one.history for one in entries)
    summary = tuning(searched.tuned, "attacked", Track()).summary
    assert {f"tuned_asr/{known}" for known in KNOWN} <= summary.keys()


def test_the_page_shows_the_worst_case_of_each_defense_beside_its_default_case(
    searched: Searched,
) -> None:
    assert searched.tuned.rows
    page = (Path(searched.store) / "sweeps/attacked/report.html").read_text()
    assert "An attacker searched: maximize asr, with victim_asr &gt;= 0.3 and linf" in page
    assert "All are measured on seed 1 alone, which no search has seen" in page
    worst, found = (
        {column.title: list(column.values) for column in sheet.columns}
        for sheet in adaptive.sheets(searched.tuned)
    )
    assert worst["defense"] == ["spectral_signatures", STRIP]
    for number in range(2):
        values = [float(str(worst[f"ASR, {name}"][number])) for name in KNOWN]
        assert float(str(worst["ASR, worst"][number])) == max(values)
    assert found["badges"] == ["default", "adaptive", "transferred"] * 2
    assert found["the search has seen"][:2] == ["nothing", "spectral_signatures; seed 0"]
    assert {"ASR of the victim", "L∞", "SSIM", "rate", "constraints", "stages"} <= found.keys()
    bars, *others = adaptive.drawings(searched.tuned)
    assert [line.name for line in bars.lines] == list(KNOWN)
    assert len(others) == 2 + 2, "candidates and importances of each defense"


def test_the_worst_case_keeps_the_constraints(searched: Searched) -> None:
    settings = searched.tuned.settings
    row = searched.row(STRIP, "default")

    def one(asr: float, victim: float) -> TunedRow:
        values = {"asr": asr, "victim_asr": victim, "linf": 0.1}
        metrics = {
            name: TunedMetric(tuned=value, default=value, oracle=value)
            for name, value in values.items()
        }
        return replace(row, metrics=metrics)

    by = {"default": one(0.2, 0.9), "adaptive": one(0.9, 0.1), "transferred": one(0.4, 0.5)}
    assert adaptive.worst(by, settings) == "transferred"  # type: ignore[arg-type]
    assert adaptive.kept(by["adaptive"], settings) == "broken: victim_asr >= 0.3"
    assert adaptive.worst({"adaptive": by["adaptive"]}, settings) is None
    equal = {"default": by["transferred"], "adaptive": by["transferred"]}
    assert adaptive.worst(equal, settings) == "default"  # type: ignore[arg-type]
    minimized = settings.model_copy(update={"metric": (Objective(name="asr", goal="minimize"),)})
    assert adaptive.worst(by, minimized) == "default"  # type: ignore[arg-type]


@pytest.mark.further
def test_a_search_that_was_stopped_goes_on(searched: Searched, tmp_path: Path) -> None:
    """What is stored stays, nothing is asked twice, and the end is that of one that was not."""
    import signal

    sweep, store = searched.sweep, str(tmp_path / "store")

    def stop(run: Run) -> None:
        if len(run.schedule.ran) >= 25:
            signal.raise_signal(signal.SIGTERM)

    first = tuned_inline(sweep, store, watch=stop)
    assert first.interrupted == signal.SIGTERM and first.tuned is None
    second = tuned_inline(sweep, store)
    assert second.tuned is not None and second.cached >= first.ran >= 25
    for one, other in zip(second.tuned.rows, searched.tuned.rows, strict=True):
        assert (one.parameters, one.tried) == (other.parameters, other.tried)
        assert {n: m.tuned for n, m in one.metrics.items() if m.tuned == m.tuned} == {
            n: m.tuned for n, m in other.metrics.items() if m.tuned == m.tuned
        }


def test_the_commands_tell_what_was_found_and_refuse_what_means_nothing(
    searched: Searched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app(["plan", str(searched.file), "--storage", searched.store], standalone_mode=False)
    told = capsys.readouterr().out
    assert f"would search alpha, rate of {WRITTEN}: 4 searches of at most 9 candidates" in told
    command = ["tune", str(searched.file), "--inline", "--storage", searched.store]
    with pytest.raises(SpecError, match="--write writes tuned defenses"):
        app([*command, "--write", str(tmp_path / "w.yaml")], standalone_mode=False)
    app(command, standalone_mode=False)
    told = capsys.readouterr().out
    assert "0 stages ran" in told and "badge" in told
    assert "adaptive: searched against the very defense of the row" in told
    row = searched.row(STRIP, "adaptive")
    alpha, rate = row.parameters["alpha"], row.parameters["rate"]
    line = f"rate: {rate}, include_target: false, alpha: {alpha}}}}}  # adaptive to {STRIP}"
    assert line in told
    assert f"transferred has seen {STRIP}; seed 0: 6 candidates" in told


def test_a_search_whose_candidates_all_failed_ends_with_an_error(
    searched: Searched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.yaml"
    text = SWEEP.replace("[0.03, 0.1, 0.95]", "[0.95]").replace("trials: 9", "trials: 3")
    file.write_text(text.replace("name: attacked", "name: impossible"))
    command = ["tune", str(file), "--inline", "--storage", searched.store]
    assert app(command, standalone_mode=False) == 1
    told = capsys.readouterr().out
    assert f"every candidate failed: {WRITTEN} @ 0.08 against spectral_signatures, adaptive" in told
    assert "rate 0.95 asks for" in told and "nothing better than the attack as written" in told
