"""RED: the objective of both terms in closed form, the final estimate, the verdict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raysweep import methods
from raysweep.defenses import Decision, DefenseInputs, Evidence, Findings, _red
from raysweep.defenses._descent import descent
from raysweep.defenses._red import calibrated, p_values
from raysweep.defenses.red import RED
from raysweep.methods.context import Context
from raysweep.metrics.ranking import ranking
from raysweep.sweep.tuning import Tune
from raysweep.tuning.space import spaces_of
from tests.numerics.test_red import (
    CLASSES,
    RECIPE,
    SIDE,
    SMALL,
    evidence,
    found_p,
    matrix,
    pairs,
    planted,
)

PIXELS = SIDE * SIDE
JOINT = RED(
    images=20, steps=6, learning_rate=0.03, milestones=(2, 4), momentum=0.5, pi=1.0, weight=0.7
)


def linear(seed: int) -> tuple[nn.Module, np.ndarray]:
    """Return a linear network that is undecided between its classes, and its weights (K, D)."""
    weights = np.random.default_rng(seed).normal(0, 0.1, (CLASSES, PIXELS))
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.from_numpy(weights))  # type: ignore[arg-type]
    return network, weights


def posterior(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    logits = images @ weights.T
    raised = np.exp(logits - logits.max(1, keepdims=True))
    result: np.ndarray = raised / raised.sum(1, keepdims=True)
    return result


def descended(
    images: np.ndarray, removed: np.ndarray, weights: np.ndarray, target: int, method: RED
) -> np.ndarray:
    """Return the pattern after SGD along the gradient in closed form; nothing is clipped.

    With a = w_t - sum_c p_c w_c, the gradient of log p_t(y), that of log(1 - p_t(y)) is
    -p_t / (1 - p_t) a.
    """
    v, velocity = np.zeros(PIXELS), np.zeros(PIXELS)
    for step in range(method.steps):
        p, q = posterior(images + v, weights), posterior(removed - v, weights)
        first = -(weights[target] - p @ weights).mean(0)
        odds = q[:, target] / (1 - q[:, target])
        second = -(odds[:, None] * (weights[target] - q @ weights)).mean(0)
        velocity = method.momentum * velocity + first + method.weight * second
        v -= method.learning_rate * 0.1 ** sum(step >= m for m in method.milestones) * velocity
    return v


@pytest.mark.parametrize("target", [1, 4])
def test_the_search_descends_the_objective_of_both_terms(target: int) -> None:
    network, weights = linear(target)
    draw = np.random.default_rng(target)
    images, removed = (0.5 + 0.02 * draw.normal(size=(n, PIXELS)) for n in (12, 20))
    # Images of the target that are held to be the target's, with p_t neither 0 nor 1.
    removed += 0.3 * (weights[target] - weights.mean(0))
    assert 0.1 < posterior(removed, weights)[:, target].mean() < 0.95
    inputs = DefenseInputs("red", frozenset({"victim"}), {"victim": network, "recipe": RECIPE})
    ours = [torch.from_numpy(part).float().reshape(-1, 1, SIDE, SIDE) for part in (images, removed)]
    for method in (JOINT, JOINT.model_copy(update={"weight": 0.0})):
        found, reached = method.smallest(
            inputs, ours[0][None], ours[1], target, method.weight, Context(seed=0)
        )
        expected = descended(images, removed, weights, target, method)
        assert not reached.any(), "all steps are taken"
        assert 0.02 < np.abs(expected).max() < 0.2, "nothing is clipped"
        np.testing.assert_allclose(found.numpy().reshape(-1), expected, rtol=1e-3, atol=1e-5)


def test_a_pixel_that_is_black_or_white_in_all_images_can_change() -> None:
    """The gradient on a bound is that of the objective, as in closed form, with every torch."""
    network, weights = linear(2)
    images = np.random.default_rng(2).uniform(0.2, 0.8, (12, PIXELS))
    images[:, 0], images[:, 1] = 0, 1
    inputs = DefenseInputs("red", frozenset({"victim"}), {"victim": network, "recipe": RECIPE})
    ours = torch.from_numpy(images).float().reshape(1, -1, 1, SIDE, SIDE)
    tried = torch.zeros(1, 1, SIDE, SIDE, requires_grad=True)
    target, weight = 1, 0.7
    gradient, _ = descent(inputs, ours, ours[0], tried, target, weight, "cpu", at_once=12)
    p = posterior(images, weights)
    toward = weights[target] - p @ weights
    odds = p[:, target] / (1 - p[:, target])
    expected = -toward.mean(0) - weight * (odds[:, None] * toward).mean(0)
    np.testing.assert_allclose(gradient.numpy().reshape(-1), expected, rtol=1e-4, atol=1e-6)


def test_the_final_estimate_has_its_own_weight() -> None:
    """The scan with the first term alone, the estimate with both."""
    case, ctx = planted(60, 0, 80, 2.0), Context(seed=1)
    method = SMALL.model_copy(update={"weight": 1.0, "images": 20})
    assert method.scan_weight == 0 != method.weight
    shards = [method.shard(part, case.inputs(), ctx) for part in method.parts(CLASSES)]
    found = method.run(case.inputs(shards=shards), ctx)
    decided = method.decide(evidence(case, found))
    assert decided.classes == (1,) and int(found.statistics["source"]) == 0
    inside = case.train.labels == 1
    scores = np.asarray(found.train_scores)
    assert ranking(scores[inside], case.mask[inside]).auroc > 0.97
    pattern = found.statistics["pattern"]
    for weight, same in ((1.0, True), (0.0, False)):
        searched, _ = method._search(case.inputs(), ctx, 1, weight)
        assert np.allclose(pattern, searched[0], atol=1e-6) == same


def test_a_scarce_class_leaves_the_other_sources_their_images() -> None:
    case, ctx = planted(60, 0, 80, 2.0), Context(seed=1)
    method = SMALL.model_copy(update={"images": 30, "weight": 1.0})
    everything, reached = method._search(case.inputs(), ctx, 1, 1.0)
    kept = np.flatnonzero(case.train.labels != 3)
    two = np.flatnonzero(case.train.labels == 3)[:2]
    scarce = case.train.take(np.sort(np.concatenate([kept, two])))
    inputs = case.inputs(training_set=scarce, labels=scarce.labels)
    patterns, again = method._search(inputs, ctx, 1, 1.0)
    for at in (2, 4):
        np.testing.assert_allclose(patterns[at], everything[at], rtol=1e-4, atol=1e-6)
        assert again[at] == reached[at]
    rows = torch.from_numpy(two)
    images = case.train.images[rows].float()[None] / 255
    removed = method._drawn(case.train, 1, ctx)
    alone, _ = method.smallest(inputs, images, removed, 1, 1.0, ctx)
    np.testing.assert_allclose(patterns[3], alone[0], rtol=1e-4, atol=1e-6)
    assert not np.allclose(patterns[3], everything[3], atol=1e-3)


def concluded(
    values: np.ndarray, reached: np.ndarray | None = None, method: RED = SMALL
) -> tuple[Findings, Decision]:
    """Return what `run` and `decide` make of a scan that found patterns of norm 1 / value."""
    case = planted(60, 0, 80, 2.0)
    norms = 1 / np.where(values > 0, values, np.inf)
    patterns = np.broadcast_to((norms / SIDE)[..., None, None, None], (*norms.shape, 1, SIDE, SIDE))
    hit = values > 0 if reached is None else reached
    shards = [
        {"patterns": patterns[:, t].astype(np.float32), "reached": hit[:, t]}
        for t in range(CLASSES)
    ]
    found = method.run(case.inputs(shards=shards), Context(seed=1))
    return found, method.decide(evidence(case, found))


def test_patterns_that_do_not_reach_pi_count_for_nothing() -> None:
    values = matrix(0, CLASSES, planted=(0, 1))
    reached = values > 0
    for pair in ((2, 4), (5, 1)):
        values[pair], reached[pair] = 100.0, False
    found, decided = concluded(values, reached)
    assert decided.classes == (1,) and int(found.statistics["source"]) == 0
    assert found.statistics["reciprocals"][2, 4] == found.statistics["reciprocals"][5, 1] == 0
    without = np.where(reached, values, 0)
    np.testing.assert_allclose(found.statistics["reciprocals"], without, rtol=1e-5)
    expected = calibrated(p_values(without)[1], without > 0, "exclude_target")
    assert decided.p_value == pytest.approx(expected, rel=0.05)


def test_the_target_is_that_of_the_smallest_p_not_of_the_smallest_pattern() -> None:
    """The reverse pair is small as well: poison lies near its source."""
    values = matrix(0, CLASSES)
    values[:, 1] *= 3
    values[1, 0] = 1.1 * values.max()
    found, decided = concluded(values)
    assert int(values.max(0).argmax()) == 0
    assert int(found.statistics["target"]) == 1 and decided.classes == (1,)
    hits = 0
    for seed in range(50):
        reverse = matrix(seed, planted=(3, 7))
        reverse[7, 3] = 0.36 / 0.22 * reverse[7, 3]
        own, p = p_values(reverse)
        hits += calibrated(p, pairs(10), "exclude_target") <= 0.05 and int(own.argmin()) == 7
    assert hits >= 49


def test_fits_are_finite_and_deviations_stand_in_for_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(0)
    off = ~np.eye(CLASSES, dtype=bool)
    alike, nulls = np.where(off, 0.2, 0.0), ("exclude_target", "drop_top")
    spread = 10 ** draw.uniform(-12, 12, alike.shape)
    almost = 1 + draw.normal(size=alike.shape) * 1e-9
    for values in (alike, alike * 5e12, alike * almost, alike * spread):
        for null in nulls:
            own, p = p_values(values, null)  # type: ignore[arg-type]
            assert np.isfinite(own).all() and 0 <= p <= 1
    monkeypatch.setattr(_red, "gamma_shape", lambda mean, _: np.full_like(mean, np.nan))
    values = matrix(0, CLASSES)
    for factor, classes in ((10, (1,)), (1, ())):
        values[0, 1] = factor * np.median(values)
        found, decided = concluded(values)
        by_mad, same = concluded(values, method=SMALL.model_copy(update={"null": "mad"}))
        assert decided.classes == same.classes == classes and decided.p_value is None
        assert decided.facts == {"MADs decide": 1.0} and not same.facts
        np.testing.assert_array_equal(found.statistics["anomaly"], by_mad.statistics["anomaly"])


def test_each_rule_flags_its_own_samples() -> None:
    """Scores of the class and of others, and flips, of which no two rules make the same."""
    scores = np.array([0.0, 1.0, 5.0, 6.0, -9.0, -9.0])
    labels = np.array([0, 0, 0, 0, 1, 1])
    flips = np.array([True, False, False, True, False, False])
    given = found_p(6, 1e-6)
    statistics = {**given.statistics, "flips": flips, "reference": np.linspace(-1, 0.6, 101)}
    values = {
        "labels": labels, "num_classes": 6, "train_scores": scores, "statistics": statistics,
    }  # fmt: skip
    wanted = {"quantile": [1, 2, 3], "split": [2, 3], "flip": [0, 3]}
    for rule, rows in wanted.items():
        method = RED.model_validate({"rule": rule})
        flags = method.decide(Evidence("red", method.needs(), values)).flags
        assert flags is not None and np.flatnonzero(flags).tolist() == rows
    assert RED().rule == "quantile" and RED().quantile == 0.95


def test_tuning_takes_the_authors_ranges() -> None:
    ranges = methods.search_ranges(RED)
    assert ranges.keys() == {
        "images", "pi", "learning_rate", "weight", "scan_weight", "theta", "quantile",
    }  # fmt: skip
    assert ranges["weight"] == ranges["scan_weight"] == {"min": 0.0, "max": 2.0}
    outer, inner = spaces_of(RED(), Tune(parameters={"red": {"weight": {}, "theta": {}}}))
    assert set(outer) == {"weight"} and set(inner) == {"theta"}
    assert set(spaces_of(RED(), Tune())[1]) == {"theta", "quantile"}, "replayed unasked"
    assert methods.reduction_fields(RED) == {
        "weight", "null", "score", "reference", "knows",
    }  # fmt: skip
