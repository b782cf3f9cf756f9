"""Metrics: closed forms, brute force, invariances, and agreement with scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from raysweep import metrics


def case(seed: int, n: int = 200, levels: int = 10) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.2
    positive[0], positive[1] = True, False
    scores = rng.integers(0, levels, n).astype(float) + positive
    return scores, positive


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, 10, 10_000])
def test_ranking_agrees_with_brute_force_and_scikit_learn(seed: int, levels: int) -> None:
    scores, positive = case(seed, levels=levels)
    found = metrics.ranking(scores, positive)
    gaps = scores[positive][:, None] - scores[~positive][None, :]
    assert found.auroc == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())
    assert found.auroc == pytest.approx(roc_auc_score(positive, scores))
    assert found.ap == pytest.approx(average_precision_score(positive, scores))
    best = 0.0
    for threshold in [*np.unique(scores), np.inf]:
        flags = scores >= threshold
        if flags[~positive].mean() <= 0.01:
            best = max(best, flags[positive].mean())
    assert found.tpr_at_1fpr == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_ranking_is_invariant_to_order_and_monotone_maps(seed: int) -> None:
    scores, positive = case(seed)
    order = np.random.default_rng(seed).permutation(len(scores))
    assert metrics.ranking(scores[order], positive[order]) == metrics.ranking(scores, positive)
    assert metrics.ranking(np.exp(scores), positive) == metrics.ranking(scores, positive)
    flipped = metrics.ranking(-scores, positive).auroc
    assert flipped == pytest.approx(1 - metrics.ranking(scores, positive).auroc)


def test_infinite_scores_rank_and_nan_is_an_error() -> None:
    positive = np.array([True, False, False])
    assert metrics.ranking(np.array([np.inf, 0.0, -np.inf]), positive).auroc == 1.0
    with pytest.raises(ValueError, match="1 of 3 scores are NaN"):
        metrics.ranking(np.array([np.nan, 0.0, 1.0]), positive)


def test_undefined_is_nan_and_never_zero() -> None:
    none = np.zeros(5, bool)
    assert math.isnan(metrics.ranking(np.arange(5.0), none).auroc)
    assert math.isnan(metrics.detection(none, none, none).tpr.value)
    assert math.isnan(metrics.attack_success(np.zeros(5, int), np.zeros(5, int), none).value)
    assert len(metrics.roc(np.arange(5.0), none)[0]) == 0


def test_detection_counts_covers_as_negatives() -> None:
    poison = np.array([1, 1, 0, 0, 0, 0], bool)
    cover = np.array([0, 0, 1, 1, 0, 0], bool)
    every, none = np.ones(6, bool), np.zeros(6, bool)
    full = metrics.detection(every, poison, cover)
    assert (full.tpr.value, full.fpr.value, full.fpr.n) == (1.0, 1.0, 4)
    empty = metrics.detection(none, poison, cover)
    assert (empty.tpr.value, empty.fpr.value) == (0.0, 0.0)
    covers = metrics.detection(cover, poison, cover)
    assert (covers.tpr.value, covers.fpr.value) == (0.0, 0.5)
    assert (covers.fpr_no_cover.value, covers.cover_removal.value) == (0.0, 1.0)


def test_rejection_is_an_error_for_accuracy_and_no_success_for_the_attack() -> None:
    labels, predicted = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 0])
    rejected = np.array([True, False, False, False])
    assert metrics.accuracy(predicted, labels).value == 0.75
    assert metrics.accuracy(predicted, labels, rejected).value == 0.5
    mapped, eligible = np.zeros(4, int), labels != 0
    hits = np.array([0, 0, 0, 3])
    found = metrics.attack_success(hits, mapped, eligible)
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)
    out = np.array([False, True, False, False])
    assert metrics.attack_success(hits, mapped, eligible, out).value == pytest.approx(1 / 3)
    assert metrics.robust_accuracy(hits, labels, eligible).value == pytest.approx(1 / 3)


def test_roc_keeps_its_ends_and_its_area_when_thinned() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(50_000) < 0.01
    scores = rng.normal(size=50_000) + 2 * positive
    fpr, tpr = metrics.roc(scores, positive)
    assert len(fpr) <= 210
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(
        metrics.ranking(scores, positive).auroc, abs=0.01
    )


def test_intervals() -> None:
    low, high = metrics.wilson(0, 10)
    assert low == 0 and high == pytest.approx(0.2775, abs=1e-3)
    low, high = metrics.wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))
    with pytest.raises(ValueError):
        metrics.wilson(3, 2)
    low, high = metrics.t_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == (pytest.approx(2 - 2.4841, abs=1e-3), pytest.approx(2 + 2.4841, abs=1e-3))
    assert math.isnan(metrics.t_interval(np.array([1.0]))[0])
