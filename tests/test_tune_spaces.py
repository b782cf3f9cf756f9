"""What is searched: quantized ranges, tuples, conditions, invalid combinations, grids, ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from pydantic import Field, model_validator

from raysweep.defenses import Decision, Defense, Evidence, Gift, Need
from raysweep.defenses.neural_cleanse import NeuralCleanse
from raysweep.defenses.strip import Strip
from raysweep.errors import SpecError
from raysweep.methods import decision
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.ranges import Parameters, Range
from raysweep.sweep.searching import tuning_faults
from raysweep.sweep.tuning import Stop, Tune
from raysweep.tuning import space
from raysweep.tuning.feed import Feed, TuningPlanner
from raysweep.tuning.search import Search
from raysweep.tuning.stopping import why_stopped
from raysweep.tuning.stored import StoredFindings, measure
from raysweep.tuning.study import Study, every_trial
from tests.test_tune import LOW, SWEEP, Planted, instance, run_all, search, setting


class Ruled(Defense):
    """A filter with one of two rules, whose `low` lies below its `high`."""

    rule: str = decision("sprt", pattern="sprt|cut")
    alpha: float = decision(0.1, ge=0, le=1)
    low: float = decision(0.0, ge=0, le=1)
    high: float = decision(1.0, ge=0, le=1)
    layers: tuple[int, ...] = Field((1, 2))
    mode: str = Field("a", pattern="[abc]")
    width: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError("low must be at most high")
        return self

    def needs(self) -> frozenset[Need]:
        return frozenset({"features"})

    def gives(self) -> frozenset[Gift]:
        return frozenset({"train_scores"})

    def decide(self, evidence: Evidence) -> Decision:
        return Decision(flags=(evidence.train_scores > self.low))


def ranged(**fields: Any) -> Range:
    return Range.model_validate_json(json.dumps(fields))


def values(searched: Range) -> list[Any]:
    return [one["x"] for one in space.grid({"x": searched})]


def drawn(searched: Range, **given: Any) -> list[Any]:
    """Return what a study asks for, which another study of the same journal reads alike."""
    study = Study("d", {"x": searched}, Tune(constraints=(), trials=30, **given))
    found = every_trial(study, lambda one: {"tpr": 0.5})
    assert [one.parameters["x"] for one in found] == [
        row.parameters["x"] for row in study.history()
    ]
    return [one.parameters["x"] for one in found]


def test_quantized_ranges_hold_multiples_alone() -> None:
    q = ranged(min=0.01, max=0.3, q=0.05, distribution="q_uniform")
    steps = ranged(min=0.01, max=0.3, step=0.05)
    assert values(q) == [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
    assert values(steps) == [0.01, 0.06, 0.11, 0.16, 0.21, 0.26]
    assert values(ranged(min=3, max=20, step=8)) == [3, 11, 19]
    log = ranged(min=3, max=40, q=5, distribution="q_log_uniform_values")
    assert values(log) == [5, 10, 15, 20, 25, 30, 35, 40]
    for one in (q, steps, log):
        assert {*drawn(one, sampler="random")} <= {*values(one)}, one
        assert all(space.inside({"x": one}, {"x": value}) for value in values(one))
    assert not space.inside({"x": q}, {"x": 0.07}) and not space.inside({"x": log}, {"x": 7})
    fine = ranged(min=0, max=10**6, q=2, distribution="q_uniform")
    assert len(values(fine)) == space.POINTS and all(value % 2 == 0 for value in values(fine))
    whole = ranged(min=1, max=200, q=1, distribution="q_log_uniform_values")
    assert all(isinstance(value, int) for value in drawn(whole))


def test_tuples_and_constants_are_searched_as_they_are_written(tmp_path: Path) -> None:
    listed = {"layers": ranged(values=[[1, 2], [3]]), "width": ranged(value=4)}
    study = Study("t", listed, Tune(constraints=(), trials=6), where=tmp_path / "j.log")
    seen = every_trial(study, lambda one: {"tpr": float(len(one["layers"]))})  # type: ignore[arg-type]
    assert {one.parameters["layers"] for one in seen} == {(1, 2), (3,)}
    assert {one.parameters["width"] for one in seen} == {4}
    assert space.inside(listed, {"layers": (3,), "width": 4})
    assert not space.inside(listed, {"layers": (1,), "width": 4})
    assert space.grid(listed) == [{"layers": (1, 2), "width": 4}, {"layers": (3,), "width": 4}]


CONDITIONED = {
    "rule": {"values": ["sprt", "cut"]},
    "alpha": {"values": [0.1, 0.2], "when": {"rule": "sprt"}},
    "low": {"values": [0.3, 0.4], "when": {"rule": ["cut"]}},
}


def conditioned(**given: Any) -> tuple[Any, Any]:
    rules = {name: ranged(**rule) for name, rule in {**CONDITIONED, **given}.items()}
    return space.spaces_of(Ruled(), Tune(parameters={Ruled().name: rules}))


def test_a_parameter_is_searched_only_where_its_condition_holds() -> None:
    outer, inner = conditioned()
    assert not outer
    wanted = [("sprt", 0.1, None), ("sprt", 0.2, None), ("cut", None, 0.3), ("cut", None, 0.4)]
    fields = ("rule", "alpha", "low")
    assert [tuple(map(one.get, fields)) for one in space.grid(inner)] == wanted
    study = Study("c", inner, Tune(constraints=(), trials=30))
    seen = every_trial(study, lambda one: {"tpr": float(one.get("alpha", 0))})  # type: ignore[arg-type]
    assert {tuple(map(one.parameters.get, fields)) for one in seen} == {*wanted}
    assert space.inside(inner, {"rule": "cut", "alpha": 7, "low": 0.3}), "alpha does not apply"
    assert not space.inside(inner, {"rule": "sprt", "alpha": 7, "low": 0.3})
    # What needs stages is asked for with what its condition names; a value that is not searched
    # stands for itself.
    outer, inner = conditioned(width={"min": 2, "max": 4, "when": {"rule": "cut"}})
    assert set(outer) == {"width", "rule"} and set(inner) == {"alpha", "low"}
    assert space.grid(inner, {"rule": "cut"}) == [{"low": 0.3}, {"low": 0.4}]
    fixed = {"alpha": ranged(min=0.1, max=0.2, when={"mode": ["b"]})}
    assert space.grid(fixed, Ruled(mode="a").model_dump()) == [{}]
    assert len(space.grid(fixed, Ruled(mode="b").model_dump())) == space.POINTS


def test_conditions_in_a_circle_are_refused() -> None:
    circle = {
        "alpha": ranged(min=0.1, max=0.2, when={"low": 0.1}),
        "low": ranged(min=0.1, max=0.2, when={"alpha": 0.1}),
    }
    tune = Tune(parameters={Ruled().name: circle})
    assert [message for _, message in tuning_faults(tune, [Ruled()])] == [
        "the conditions go in a circle"
    ] * 2


def ruled(outer: Any, inner: Any, **given: Any) -> Search:
    found = search(inner, ["badnets"], outer=outer, **given)
    found.subject = Ruled()
    found.settings = (setting("badnets", Ruled()),)
    return found


def test_an_invalid_combination_is_an_infeasible_candidate() -> None:
    both = {"low": ranged(values=[0.2, 0.8]), "high": ranged(values=[0.5, 1.0])}
    bench = Planted(badnets=(0.6, 1.0))
    given = {"metric": "youden", "constraints": ()}
    within = ruled({}, both, **given)
    pairs = [(0.2, 0.5), (0.2, 1.0), (0.8, 1.0)]
    tried = within.evaluated(bench)
    assert [(one.parameters["low"], one.parameters["high"]) for one in tried] == pairs
    asked = ruled(both, {}, sampler="grid", trials=4, **given)
    candidates = []
    while (candidate := asked.ask()) is not None:
        candidates.append(candidate)
        seen = [asked.stored(trial, bench) for trial in candidate.trials]
        asked.answered(candidate, seen, bench, why=candidate.invalid)
    (refused,) = [one for one in candidates if one.invalid]
    assert "does not allow" in refused.invalid and "low must be at most high" in refused.invalid
    assert asked.study is not None and asked.finished
    states = [one.state for one in asked.study.history()]
    assert sorted(states) == ["complete"] * 3 + ["pruned"]
    assert {one.parameters["low"] for one in asked.evaluated(bench)} == {0.2, 0.8}
    (broken,) = [t.constraints for t in asked.study._study.trials if t.state.name == "PRUNED"]
    assert max(broken.values()) > 0, "Optuna's samplers see that it is infeasible"


def test_an_infeasible_candidate_is_fed_to_its_search_without_a_stage(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(SWEEP)
    planner = TuningPlanner(load_sweep(file), whole=False)
    both = {"low": ranged(values=[0.8]), "high": ranged(values=[0.5])}
    asked = ruled(both, {}, trials=1, constraints=())
    feed = Feed(planner, [asked], Planted(badnets=(0.6, 1.0)))
    assert feed.more(1) and not planner.trials
    nothing: Any = None  # no stage is looked at
    (told,) = feed.planned(nothing)
    assert told.state == "PRUNED" and "low must be at most high" in told.attrs["failed"]
    assert asked.finished and asked.chosen(feed.measurements) == []


@pytest.mark.parametrize(
    ("trials", "wanted"), [(3, [4, 102, 200]), (2, [4, 200]), (5, [4, 53, 102, 151, 200])]
)
def test_a_grid_covers_its_space_with_the_candidates_given(trials: int, wanted: list[int]) -> None:
    overlays = {"overlays": Range(min=4, max=200)}
    study = Study("g", overlays, Tune(sampler="grid", trials=trials, constraints=()))
    seen = every_trial(study, lambda one: {"tpr": 0.5})
    assert [one.parameters["overlays"] for one in seen] == wanted
    two = {**overlays, "fpr": ranged(min=0.0, max=1.0), "on": ranged(values=["a", "b"])}
    points = space.covering(two, 20)
    assert len(points) == 18 and {one["overlays"] for one in points} == {4, 102, 200}
    with pytest.raises(SpecError, match=r"tune.trials: 7 .*both ends .* has 8; give trials: 8"):
        space.covering(two, 7)


def test_a_grid_with_more_trials_goes_on_with_its_new_points(tmp_path: Path) -> None:
    overlays, journal = {"overlays": Range(min=4, max=200)}, tmp_path / "j.log"
    for trials, wanted in ((3, {4, 102, 200}), (5, {4, 53, 102, 151, 200})):
        study = Study("g", overlays, Tune(sampler="grid", trials=trials), where=journal)
        seen = every_trial(study, lambda one: {"tpr": 0.5, "fpr": 0.0})
        assert sorted(one.parameters["overlays"] for one in seen) == sorted(wanted)  # type: ignore[type-var]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid", "nsga2"])
@pytest.mark.parametrize("metric", ["tpr", ["tpr", "fpr"]])
def test_every_sampler_searches_under_constraints_and_conditions(sampler: Any, metric: Any) -> None:
    _, inner = conditioned(low={"min": 0.0, "max": 1.0, "when": {"rule": "cut"}})
    tune = Tune(sampler=sampler, metric=metric, trials=16, constraints=("fpr <= 0.5",))
    study = Study("s", inner, tune)
    seen = every_trial(study, lambda one: {"tpr": 0.5, "fpr": float(one.get("low", 0.1))})  # type: ignore[arg-type]
    assert study.finished and len(seen) >= 10


def test_an_unknown_constraint_is_told_to_the_study_as_broken() -> None:
    study = Study("u", LOW, Tune(trials=1, constraints=("fpr <= 0.1",)))
    number, _ = study.ask()  # type: ignore[misc]
    told = study.tell(number, {"tpr": 0.9, "fpr": float("nan")})
    assert told.constraints["fpr <= 0.1"] > 0 and np.isfinite(told.constraints["fpr <= 0.1"])
    (trial,) = study._study.trials
    assert trial.constraints["fpr <= 0.1"] > 0


# The end of a search


def test_a_search_ends_when_it_is_told_to() -> None:
    patient = Stop(patience=2)
    ranks: list[tuple[float, ...] | None] = [(0.5,), (0.4,), None, (0.4,)]
    assert why_stopped(patient, ranks[:3], 0, 0) == ""
    assert why_stopped(patient, ranks, 0, 0) == "no better candidate among the last 2"
    assert why_stopped(patient, [*ranks[:3], (0.3,)], 0, 0) == ""
    assert why_stopped(Stop(hours=0.5), [], 1799, 0) == ""
    assert why_stopped(Stop(hours=0.5), [], 1800, 0) == "0.5 hours are over"
    assert why_stopped(Stop(gpu_hours=2), [], 0, 7199) == ""
    assert why_stopped(Stop(gpu_hours=2), [], 0, 7200) == "2 GPU hours are used"


def test_patience_and_gpu_hours_hold_after_a_restart(tmp_path: Path) -> None:
    journal = tmp_path / "j.log"
    for stop, ended in (({"patience": 3}, 4), ({"patience": 5}, 6), ({"gpu_hours": 6}, 6)):
        tune = Tune(trials=50, constraints=(), stop=stop)
        study = Study("p", LOW, tune, where=journal, steps=2)
        # The first candidate is the best; each has two instances of half a GPU hour.
        seen = every_trial(study, lambda one: {"tpr": 0.5, "gpu_seconds": 1800.0})
        assert len(seen) == ended and study.finished and study.stopped, stop


def test_candidates_that_the_user_names_are_the_first(tmp_path: Path) -> None:
    two = {**LOW, "high": Range(min=0.0, max=1.0)}
    journal, tune = tmp_path / "j.log", Tune(trials=6, constraints=(), sampler="random")
    given: list[Parameters] = [{"low": 0.25, "high": 0.5}, {"high": 0.125}]
    study = Study("f", two, tune, where=journal, first=given, own={"low": 0.0, "high": 1.0})
    seen = [one.parameters for one in every_trial(study, lambda one: {"tpr": 0.5})]
    assert seen[0] == given[0] and seen[1]["high"] == 0.125 and len(seen) == 6
    assert seen[2] == {"low": 0.0, "high": 1.0}, "then the method's own"
    more = tune.model_copy(update={"trials": 7})
    again = Study("f", two, more, where=journal, first=[*given, {"low": 0.75, "high": 1.0}])
    assert every_trial(again, lambda one: {"tpr": 0.5})[-1].parameters == {"low": 0.75, "high": 1}
    exact = search(LOW, ["badnets"], constraints=())
    exact.first = ({"low": 0.123},)
    assert exact.evaluated(Planted(badnets=(0.6, 1.0)))[0].parameters == {"low": 0.123}


# The pruner


def test_a_candidate_that_breaks_constraints_is_stopped_although_its_objective_is_good() -> None:
    """A `low` of 0 flags everything: TPR 1 and FPR 1."""
    names = ["badnets", "blend", "sig", "rotation", "additive", "trojan"]
    bench = Planted(**dict.fromkeys(names, (0.6, 1.0)))
    low = {"low": Range(values=(0.6, 0.61, 0.62, 0.63, 0.64, 0.0))}
    found = search(
        {}, names, outer=low, pruner="median", sampler="grid", trials=6,
        constraints=["fpr <= 0.1"],
    )  # fmt: skip
    run_all(found, bench)
    assert found.study is not None
    states = {one.parameters["low"]: one.state for one in found.study.history()}
    assert states[0.0] == "pruned" and states[0.6] == "complete"


def test_a_pruner_meets_the_instances_in_an_order_that_is_drawn() -> None:
    names = ["badnets", "blend", "sig", "rotation", "additive", "trojan"]

    def met(pruner: str, seed: int = 0) -> list[str]:
        found = search(LOW, names, outer={"blur": LOW["low"]}, pruner=pruner, seed=seed)
        candidate = found.ask()
        assert candidate is not None
        return [trial.attack.name for trial in candidate.trials]

    assert met("none") == names != met("median") == met("median") != met("median", seed=1)
    assert sorted(met("median")) == sorted(names)


# False alarms, verdicts, and what a defense can be judged by


def clean(name: str = "badnets") -> StoredFindings:
    made = instance(name, (0.6, 1.0))
    return replace(made, clean=True, key="clean", _poison=np.zeros_like(made._poison))


class Accusing(Ruled):
    """A verdict: the classes whose statistic exceeds `alpha`."""

    def gives(self) -> frozenset[Gift]:
        return frozenset({"verdict"})

    def decide(self, evidence: Evidence) -> Decision:
        return Decision(classes=tuple(np.flatnonzero(evidence.statistics["index"] > self.alpha)))


def accused(index: list[float], *, at_rate_0: bool) -> StoredFindings:
    evidence = Evidence(
        "accusing", Accusing().needs(),
        {"labels": np.zeros(4, np.int64), "num_classes": 3,
         "statistics": {"index": np.array(index)}},
    )  # fmt: skip
    return replace(
        instance("badnets", (0.6, 1.0)), evidence=evidence, clean=at_rate_0, _targets=(1,)
    )


def test_false_alarms_are_those_of_clean_trials() -> None:
    alarms = measure(Ruled(low=0.3), clean())
    share = float((clean().evidence.train_scores > 0.3).mean())  # type: ignore[union-attr]
    assert alarms["false_alarms"] == share > 0
    assert np.isnan(alarms["tpr"]) and np.isnan(alarms["fpr"]), "attacked trials alone"
    attacked = measure(Ruled(low=0.3), instance("badnets", (0.6, 1.0)))
    assert np.isnan(attacked["false_alarms"]) and attacked["fpr"] >= 0
    quiet, loud = accused([0.0, 0.0, 0.0], at_rate_0=True), accused([0.0, 0.0, 0.9], at_rate_0=True)
    told = [measure(Accusing(), one) for one in (quiet, loud)]
    assert [one["false_alarms"] for one in told] == [0.0, 1.0]
    assert [one["verdict_correct"] for one in told] == [1.0, 0.0]
    right, wrong = ([0.0, 0.5, 0.0], [0.5, 0.0, 0.0])
    assert measure(Accusing(), accused(right, at_rate_0=False))["verdict_correct"] == 1.0
    assert measure(Accusing(), accused(wrong, at_rate_0=False))["verdict_correct"] == 0.0


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{metric: verdict_correct}", r"tune.metric: verdict_correct is undefined for .*which gi"),
        ("{parameters: {lidd: {}}}", r"yaml:11: tune.parameters.lidd: .*no defense; .*'lid'"),
        ("{parameters: {strip: {overlay: {}}}}", r"tune.parameters.strip.overlay: .*overlays"),
        ("{first: [lid: {k: 1}]}", r"tune.first.0.lid: 'lid' is no defense of this sweep"),
        ("{first: [strip: {overlays: 1}]}", r"tune.first.0.strip.overlays: .*not searched.*fpr"),
        ("{first: [strip: {fpr: 7}]}", r"tune.first.0.strip: .*not allowed"),
        ("{constraints: [false_alarms < 1]}", "tune.constraints: must be like"),
        ("{stop: {patience: 0}}", "tune.stop.patience: must be at least 1"),
        ("{stop: {minutes: 3}}", "tune.stop.minutes: unknown field"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_defenses_is_said_when_the_file_is_loaded(
    tmp_path: Path, section: str, said: str
) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(SWEEP.replace("{constraints: [fpr <= 0.1]}", f"\n  {section[1:-1]}"))
    with pytest.raises(SpecError, match=said):
        load_sweep(file)


def test_an_objective_that_a_defense_cannot_have_is_refused() -> None:
    parameters = {"neural_cleanse": {"cut": ranged(min=1.0, max=3.0)}}
    undefined = Tune(parameters=parameters)
    said = [message for _, message in tuning_faults(undefined, [NeuralCleanse()])]
    assert len(said) == 2 and all("undefined for neural_cleanse" in one for one in said)
    fits = Tune(
        parameters=parameters, metric="verdict_correct", constraints=("false_alarms <= 0.1",)
    )
    assert not list(tuning_faults(fits, [NeuralCleanse(), Strip()][:1]))
    assert space.spaces_of(NeuralCleanse(), fits)[1].keys() == {"cut"}, "a verdict is replayed"
