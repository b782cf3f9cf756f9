"""Tuning without a stage: what is searched, what is better, what may be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import Field, ValidationError

from raysweep.defenses import Decision, Defense, Evidence, Gift, Need
from raysweep.errors import KnowledgeError
from raysweep.methods import decision
from raysweep.sweep.tuning import Tune
from raysweep.tuning import space
from raysweep.tuning.ranking import Evaluated, best, excess, front, joined
from raysweep.tuning.stored import false_alarms
from tests.test_tune import LOW, Planted, Reference, WithReference, search


class Wide(Defense):
    """A filter of many parameters."""

    x: float = decision(0.5, ge=0, le=1)
    y: float = decision(0.5, ge=0, le=1)
    n: int = decision(3, ge=1, le=10**6)
    sort: str = decision("u", pattern="[u-w]")
    number: int = decision(0, ge=0)
    other: int = decision(0, ge=0)
    width: int = Field(8, ge=1)

    def needs(self) -> frozenset[Need]:
        return frozenset({"features"})

    def gives(self) -> frozenset[Gift]:
        return frozenset({"train_scores"})

    def decide(self, evidence: Evidence) -> Decision:
        return Decision(flags=evidence.train_scores > self.x)


def searched(**rules: Any) -> Any:
    """Return the outer and the inner space of a sweep file's rules."""
    return space.spaces_of(Wide(), Tune(parameters={Wide().name: rules}))


def inner(**rules: Any) -> Any:
    outer, found = searched(**rules)
    assert not outer
    return found


HALF = {"min": 0.0, "max": 1.0}


def test_a_range_becomes_points_from_end_to_end() -> None:
    (first, *_, last) = every = space.points(inner(x=HALF)) or []
    assert len(every) == space.POINTS and (first["x"], last["x"]) == (0.0, 1.0)
    steps = np.diff([one["x"] for one in every])
    assert np.allclose(steps, steps[0])
    log = inner(x={"min": 0.01, "max": 1.0, "distribution": "log_uniform_values"})
    ratios = [one["x"] for one in space.points(log) or []]
    assert np.allclose(np.diff(np.log(ratios)), np.log(100) / (space.POINTS - 1))
    few = {"min": 3, "max": 5}
    assert space.points(inner(n=few)) == [{"n": 3}, {"n": 4}, {"n": 5}]
    for high, count in ((space.POINTS, space.POINTS), (space.POINTS + 1, space.POINTS)):
        many = [one["n"] for one in space.points(inner(n={"min": 1, "max": high})) or []]
        assert (len(many), many[0], many[-1]) == (count, 1, high) and len(set(many)) == count
    listed = inner(sort={"values": ["u", "v"]}, n=few)
    assert space.points(listed) == [{"sort": kind, "n": n} for kind in "uv" for n in (3, 4, 5)]
    assert space.points({}) == [{}]


def test_a_space_of_several_ranges_is_cut_evenly_into_about_as_many() -> None:
    two = {"x": HALF, "y": HALF}
    assert space.points(inner(**two)) is None
    assert len(space.grid(inner(**two))) == 44**2 and 44**2 <= space.GRID < 45**2
    mixed = space.grid(inner(**two, n={"values": [1, 2, 3]}))
    assert len(mixed) == 3 * 25**2 and {one["n"] for one in mixed} == {1, 2, 3}
    crowded = inner(**two, n={"values": list(range(1, 1501))})
    assert len(space.grid(crowded)) == 1500 * 2**2, "at least both ends of each"
    listed = {"number": {"values": list(range(200))}, "other": {"values": list(range(200))}}
    assert len(space.points(inner(**listed)) or []) == space.MOST_POINTS
    assert space.points(inner(**listed, n={"values": [1, 2]})) is None
    assert len(space.grid(inner(n={"min": 1, "max": 2}))) == 2


def test_values_outside_a_space_are_seen() -> None:
    rules = inner(n={"min": 1, "max": 4}, sort={"values": ["u", "v"]})
    assert space.inside(rules, {"n": 1, "sort": "v"}) and space.inside(rules, {"n": 4, "sort": "u"})
    for n, kind in ((0, "u"), (5, "u"), (2, "w"), (None, "u")):
        assert not space.inside(rules, {"n": n, "sort": kind})


def test_what_decisions_read_is_replayed_and_the_rest_needs_stages() -> None:
    outer, found = searched(x=HALF, width={"min": 2, "max": 4})
    assert set(outer) == {"width"} and set(found) == {"x"}
    both = space.spaces_of(Wide(), Tune(parameters={Wide().name: {"x": HALF}}, metric="ca"))
    assert set(both[0]) == {"x"} and not both[1], "a trained model is asked for"
    assert space.spaces_of(Wide(), Tune(parameters={"another": {"x": HALF}})) == ({}, {})
    assert space.own_values(Wide(x=0.3), inner(x=HALF)) == {"x": 0.3}
    assert space.with_parameters(Wide(x=0.3), {"y": 0.7}) == Wide(x=0.3, y=0.7)
    with pytest.raises(ValidationError):
        space.with_parameters(Wide(), {"x": 2.0})


# What is better


def tried(**metrics: float) -> Evaluated:
    return Evaluated(parameters=dict(metrics), metrics=metrics)


def test_what_is_better_keeps_constraints_first_and_knows_what_is_undefined() -> None:
    nan = float("nan")
    rows = [{"tpr": 0.2, "fpr": 0.1}, {"tpr": nan, "fpr": 0.3}, {"tpr": 0.6, "fpr": nan}]
    assert joined(rows, Tune()) == pytest.approx({"tpr": 0.4, "fpr": 0.2})
    assert joined(rows, Tune(over="worst")) == {"tpr": 0.2, "fpr": 0.3}
    assert np.isnan(joined([{"tpr": nan}, {"tpr": nan}], Tune(over="worst"))["tpr"])
    bounds = Tune(constraints=["fpr <= 0.1", "tpr >= 0.5"])
    assert excess({"fpr": 0.3, "tpr": 0.1}, bounds) == pytest.approx(0.2 + 0.4)
    assert excess({"fpr": 0.3, "tpr": 0.9}, bounds) == pytest.approx(0.2)
    assert excess({"fpr": 0.1, "tpr": 0.5}, bounds) == 0
    assert excess({"fpr": nan, "tpr": 0.9}, bounds) == np.inf, "what is unknown counts as broken"
    unknown = tried(tpr=0.99, fpr=nan)
    assert best([unknown, tried(tpr=0.6, fpr=0.3)], bounds) is not unknown
    kept, broken = tried(tpr=0.5, fpr=0.1), tried(tpr=0.9, fpr=0.2)
    undefined = tried(tpr=nan, fpr=0.0)
    assert best([broken, kept, undefined], bounds) is kept
    assert best([undefined, kept], Tune(constraints=())) is kept


def test_a_front_holds_what_keeps_constraints_and_nothing_is_better_than() -> None:
    both = Tune(metric=["tpr", "fpr"], constraints=["fpr <= 0.5"])
    a, b, c = tried(tpr=0.9, fpr=0.5), tried(tpr=0.6, fpr=0.1), tried(tpr=0.6, fpr=0.2)
    d, same = tried(tpr=1.0, fpr=0.6), tried(tpr=0.6, fpr=0.1)
    found = front([c, b, same, d, a], both)
    assert found == [a, b] and found[1] is b, "of equals the first that was tried"
    assert front([tried(tpr=1.0, fpr=0.9), d], both) == [d], "none keeps them: the least broken"
    one = Tune(metric="tpr", constraints=["fpr <= 0.5"])
    assert front([c, a, b], one) == [a]


# Searches


def test_a_search_that_may_see_clean_data_alone_reads_no_truth() -> None:
    bench = Planted(badnets=(0.6, 1.0))
    blind = search(LOW, ["badnets"], labels="clean_only")
    (sealed,) = blind.all_stored(bench)
    with pytest.raises(KnowledgeError, match="attack=badnets"):
        sealed.truth()
    (seen,) = search(LOW, ["badnets"], labels="oracle").all_stored(bench)
    assert seen.truth()[0].sum() == 40


@pytest.mark.parametrize(
    ("constraints", "budget"),
    [(["fpr <= 0.1", "fpr <= 0.02"], 0.02), (["fpr <= 0.2"], 0.2), ([], 0.05)],
)
def test_a_blind_search_uses_the_most_of_the_strictest_budget(
    constraints: list[str], budget: float
) -> None:
    bench = WithReference(badnets=(0.6, 1.0), blend=(0.6, 1.0))
    filtering = Reference(on="training_set")
    rule = {"min": 0.001, "max": 0.5, "distribution": "log_uniform_values"}
    _, fpr = space.spaces_of(filtering, Tune(parameters={filtering.name: {"fpr": rule}}))
    blind = search(fpr, ["badnets", "blend"], labels="clean_only", constraints=constraints)
    blind.subject = filtering
    (chosen,) = blind.chosen(bench)
    over = blind.all_stored(bench)

    def rate(value: Any) -> float:
        defense = Reference(on="training_set", fpr=value)
        return float(np.mean([false_alarms(defense, one) for one in over]))

    every = [rate(one["fpr"]) for one in space.points(fpr) or []]
    assert rate(chosen["fpr"]) == max(one for one in every if one <= budget)
    blind.failures.append("out of memory")
    assert blind.chosen(bench) == []


def test_a_candidate_that_failed_is_told_why_and_never_chosen() -> None:
    bench = Planted(badnets=(0.6, 1.0))
    for given in ({}, {"outer": {"blur": LOW["low"]}}):
        patient = search(LOW, ["badnets"], trials=1, **given)
        candidate = patient.ask()
        assert candidate is not None and not patient.finished
        assert not patient.should_stop(candidate, [], bench), "nothing is stopped unless asked for"
        assert patient.ask() is None, "no other is wanted while it is out"
        patient.answered(candidate, [], bench, why="out of memory")
        assert patient.failures == ["out of memory"] and patient.finished
        assert patient.chosen(bench) == []
