"""Metrics: closed forms, brute force, scikit-learn, and the defects of other benchmarks' code."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from raysweep.metrics.intervals import t_interval, wilson
from raysweep.metrics.judgment import Judgment, Outputs, Truth, judge
from raysweep.metrics.ranking import ranking, roc, separability
from raysweep.metrics.rates import (
    Share,
    accuracy,
    attack_success,
    detection,
    robust_accuracy,
    share,
)


def mask(*ones: int, n: int) -> np.ndarray:
    return np.isin(np.arange(n), ones)


def scored(seed: int, n: int = 300, ties: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    positive = draw.random(n) < 0.3
    scores = draw.normal(size=n) + positive
    return (np.round(scores * ties) / ties if ties else scores), positive


# Predictions


def test_accuracy_counts_rejected_clean_inputs_as_errors() -> None:
    labels = np.array([0, 1, 2, 3])
    predicted = np.array([0, 1, 2, 0])
    assert accuracy(predicted, labels) == Share(value=0.75, n=4)
    assert accuracy(predicted, labels, mask(0, 3, n=4)) == Share(value=0.5, n=4)


def test_attack_success_leaves_out_the_target_class() -> None:
    # Peers 4.2.8: with the target class counted, a perfect defense shows an ASR of 1/K.
    labels = np.repeat(np.arange(10), 20)
    mapped = np.zeros(200, int)
    assert attack_success(labels, mapped, labels != mapped) == Share(value=0.0, n=180)
    assert attack_success(labels, mapped, np.ones(200, bool)).value == pytest.approx(0.1)


def test_clean_accuracy_is_of_all_classes_and_success_of_those_without_the_target() -> None:
    """10,000 and 9,000 of CIFAR-10; ABL's own accuracy is of the latter."""
    labels, none = np.arange(10_000) % 10, np.zeros(10_000, bool)
    mapped = np.zeros(10_000, int)
    truth = Truth(
        labels=labels, mapped=mapped, eligible=labels != mapped, given=labels, poison=none,
        cover=none, targets=(0,),
    )  # fmt: skip
    predicted = np.where((labels == 0) | (labels == 1), 1, labels)
    predicted[labels == 2] = 3
    judgment = judge(truth, Outputs(clean=predicted, triggered=mapped))
    assert judgment.ca == Share(value=0.8, n=10_000)
    assert judgment.ca_eligible == Share(value=8 / 9, n=9000)
    assert judgment.ca_target == Share(value=0.0, n=1000)
    assert judgment.asr == Share(value=1.0, n=9000)
    assert accuracy(predicted[labels != 0], labels[labels != 0]) == Share(value=8 / 9, n=9000)


def test_accuracy_of_targets_is_of_every_class_that_the_attacker_wants() -> None:
    """Of a clean model too; of sources 0 and 1 of an attack on all classes, classes 1 and 2."""
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    none = np.zeros(8, bool)

    def of_targets(mapped: np.ndarray, eligible: np.ndarray) -> Share:
        truth = Truth(
            labels=labels, mapped=mapped, eligible=eligible, given=labels, poison=none,
            cover=none, targets=(),
        )  # fmt: skip
        predicted = np.array([0, 0, 1, 0, 2, 0, 0, 0])
        return judge(truth, Outputs(clean=predicted, triggered=labels)).ca_target

    after = (labels + 1) % 4
    assert of_targets(labels * 0 + 1, labels > 1) == Share(value=0.5, n=2)
    assert of_targets(after, labels < 2) == Share(value=0.5, n=4)
    assert of_targets(after, labels >= 0) == Share(value=0.5, n=8)
    without = of_targets(labels * 0, none)
    assert math.isnan(without.value) and without.n == 0, "no attack wants a class"


def test_rejected_triggered_inputs_are_neither_successes_nor_robust() -> None:
    labels, mapped = np.array([1, 2, 3, 0]), np.zeros(4, int)
    eligible = labels != mapped
    hit = np.zeros(4, int)
    assert attack_success(hit, mapped, eligible).value == 1
    assert attack_success(hit, mapped, eligible, mask(0, n=4)) == Share(value=2 / 3, n=3)
    assert robust_accuracy(labels, labels, eligible, mask(0, 1, n=4)) == Share(value=1 / 3, n=3)
    assert robust_accuracy(hit, labels, eligible).value == 0


def test_no_eligible_input_is_undefined_not_zero() -> None:
    none = np.zeros(3, bool)
    result = attack_success(np.zeros(3, int), np.zeros(3, int), none)
    assert math.isnan(result.value) and result.n == 0
    assert all(math.isnan(end) for end in result.interval)


@pytest.mark.parametrize("eligible", [np.array([0, 1, 1]), np.ones(2, bool)])
def test_a_mask_that_is_no_mask_is_refused(eligible: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(3,\) bool"):
        attack_success(np.zeros(3, int), np.zeros(3, int), eligible)


def test_predictions_and_labels_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must both be \(N,\)"):
        accuracy(np.zeros(3, int), np.zeros(1, int))


# Separability


def spread_out(apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points of two labels, 100 of the first's 300 poisoned and moved along (1, 1)."""
    points = np.random.default_rng(seed).normal(size=(500, 2)) * (1, 30)
    poison, labels = np.arange(500) < 100, (np.arange(500) >= 300).astype(int)
    points[poison] += apart
    return points, labels, poison


def test_separability_is_the_auroc_along_fishers_direction() -> None:
    # Of unit normals d apart the AUROC is Phi(d / sqrt 2); the wide axis adds next to none.
    assert separability(*spread_out(2.0)) == pytest.approx(0.921, abs=0.02)
    assert separability(*spread_out(40.0)) == 1.0
    assert separability(*spread_out(0.0)) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("poisoned", [8, 25])
def test_separability_of_noise_is_half_however_few_are_poisoned(poisoned: int) -> None:
    draw = np.random.default_rng(0)
    poison, one = np.arange(500) < poisoned, np.zeros(500, int)
    found = [separability(draw.normal(size=(500, 8)), one, poison) for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_separability_neither_sees_rotation_nor_scale_nor_other_labels() -> None:
    points, labels, poison = spread_out(1.5)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(2, 2)))[0]
    plain = separability(points, labels, poison)
    assert separability(7 * points @ turn + 5, labels, poison) == pytest.approx(plain, abs=2e-3)
    moved = points + 1000 * (labels == 1)[:, None]
    assert separability(moved, labels, poison) == plain


def test_separability_weighs_labels_with_their_poison() -> None:
    far, near = spread_out(40.0), spread_out(2.0)
    keep = np.arange(500) < 75
    keep |= np.arange(500) >= 100  # 75 of the far poison, against 25 of the near
    points = np.concatenate([far[0][keep], near[0][75:]])
    labels = np.concatenate([far[1][keep], near[1][75:] + 2])
    poison = np.concatenate([far[2][keep], near[2][75:]])
    alone = separability(*(part[75:] for part in near))
    assert separability(points, labels, poison) == pytest.approx(0.75 + 0.25 * alone)


def test_separability_of_nothing_is_undefined() -> None:
    points, labels, poison = spread_out(2.0)
    assert math.isnan(separability(points, labels, poison & False))
    assert math.isnan(separability(points, labels, np.arange(500) < 3))
    assert math.isnan(separability(points * np.nan, labels, poison))
    assert math.isnan(separability(points, labels, labels == 0)), "a label of poison alone"


def judged(found: dict[str, Any], labels: np.ndarray, poison: np.ndarray) -> Judgment:
    none = np.zeros(4, int)
    truth = Truth(
        labels=none, mapped=none, eligible=none > 0, given=labels, poison=poison,
        cover=poison & False, targets=(0,),
    )  # fmt: skip
    return judge(truth, Outputs(clean=none, triggered=none, **found))


def test_spaces_of_a_defense_are_judged_by_name() -> None:
    points, labels, poison = spread_out(40.0)
    judgment = judged({"spaces": {"before": points * 0, "after": points}}, labels, poison)
    assert judgment.separability == {"before": 0.5, "after": 1.0}
    metrics, _ = judgment.pack()
    assert (metrics["separability_before"], metrics["separability_after"]) == (0.5, 1.0)


def test_a_judgment_does_not_depend_on_the_order_in_which_arrays_are_read() -> None:
    points, labels, poison = spread_out(40.0)
    spaces = dict.fromkeys("dacb", points)
    one, other = (
        judged({"spaces": spaces}, labels, poison),
        judged({"spaces": dict(sorted(spaces.items()))}, labels, poison),
    )
    assert list(one.pack()[0]) == list(other.pack()[0]), "the columns of the records"


def test_losses_tell_after_each_step_how_well_a_low_one_finds_poison() -> None:
    poison = mask(0, 1, n=6)
    low, high = [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]
    half, broken = [0, 2, 1, 1, 1, 1], [0, np.nan, 1, 1, 1, 1]
    losses = {"losses": np.array([low, high, half, broken], np.float32)}
    drawn = judged(losses, poison * 0, poison).curves.losses
    assert drawn is not None and drawn.auroc is not None and drawn.rest is not None
    assert np.allclose(drawn.auroc, [1, 0, 0.5, 0.5])
    assert np.array_equal(drawn.rest[1, :3], [1, 0, 1]), "medians"
    clean = judged(losses, poison * 0, poison & False).curves.losses
    assert clean is not None and clean.auroc is None and clean.poison is None


# What an evaluation stores

EVERY_METRIC = [
    "ca", "ca_n", "ca_eligible", "ca_eligible_n", "ca_target", "ca_target_n", "asr", "asr_n", "ra",
    "ra_n", "removed", "tpr", "tpr_n", "fpr", "fpr_n", "fpr_no_cover", "cover_removal", "auroc",
    "ap", "tpr_at_1fpr", "separability_axes", "input_tpr", "input_tpr_n", "input_fpr",
    "input_fpr_n", "input_auroc", "input_ap", "input_tpr_at_1fpr", "verdict", "verdict_classes",
    "verdict_correct", "target_found", "anomaly", "p_value",
]  # fmt: skip
EVERY_CURVE = [
    "train_roc_fpr", "train_roc_tpr", "losses_poison", "losses_rest", "losses_auroc",
    "input_roc_fpr", "input_roc_tpr", "hits_ca", "hits_asr",
]  # fmt: skip


def whole_judgment(poisoned: int = 30, classes: list[int] | None = None) -> Judgment:
    """Return the judgment of a defense that gives everything that a defense can give."""
    draw = np.random.default_rng(0)
    n, inputs = 200, 60
    poison, labels = np.arange(n) < poisoned, draw.integers(0, 4, inputs)
    return judge(
        Truth(
            labels=labels, mapped=labels * 0, eligible=labels > 0, given=draw.integers(0, 2, n),
            poison=poison, cover=np.arange(n) >= n - 10, targets=(0,) if poisoned else (),
        ),
        Outputs(
            clean=draw.integers(0, 4, inputs), triggered=draw.integers(0, 4, inputs),
            train_scores=draw.random(n) + poison, losses=draw.random((5, n)),
            input_scores={
                "clean": draw.random(inputs), "triggered": draw.random(inputs) + 0.3,
            },
            spaces={"axes": draw.normal(size=(n, 3))},
            flags=draw.random(n) < 0.2, threshold=0.7,
            classes=[0, 2] if classes is None else classes,
            class_scores=np.array([3.5, 1.0, 0.5]),
        ),
    )  # fmt: skip


def test_every_metric_and_curve_is_stored_under_its_name() -> None:
    metrics, arrays = whole_judgment().pack()
    assert list(metrics) == EVERY_METRIC and list(arrays) == EVERY_CURVE
    assert {array.dtype.name for name, array in arrays.items() if "hits" not in name} == {"float32"}


@pytest.mark.parametrize(("poisoned", "classes"), [(30, [0, 2]), (30, []), (0, [1])])
def test_a_judgment_is_what_was_packed(poisoned: int, classes: list[int]) -> None:
    whole = whole_judgment(poisoned, classes)
    metrics, arrays = whole.pack()
    stored = json.loads(json.dumps(metrics | {"poison_count": 30, "n_train": 200}))
    again = Judgment.unpack(stored, arrays)
    assert repr(again.pack()) == repr((metrics, arrays))
    assert (again.ca, again.ra, again.verdict) == (whole.ca, whole.ra, whole.verdict)
    assert whole.verdict is not None and whole.verdict.classes == tuple(classes)
    for name in ("ca", "asr"):
        assert again.hits[name].tolist() == whole.hits[name].tolist()
        assert whole.hits[name].mean() == getattr(whole, name).value, "what was rejected is no hit"
    assert again.flagged is not None and whole.flagged is not None
    assert again.flagged.fpr == whole.flagged.fpr and again.flagged.tpr.n == poisoned
    assert math.isnan(again.flagged.tpr.value) == (poisoned == 0), "undefined, not 0"


@pytest.mark.parametrize(
    ("poisoned", "classes", "correct", "found"),
    [(30, [0, 2], True, True), (30, [2], False, False), (30, [], False, False),
     (0, [], True, None), (0, [1], False, None)],
)  # fmt: skip
def test_a_verdict_on_a_backdoored_model_must_name_a_true_target(
    poisoned: int, classes: list[int], correct: bool, found: bool | None
) -> None:
    verdict = whole_judgment(poisoned, classes).verdict
    assert verdict is not None
    assert (verdict.correct, verdict.target_found) == (correct, found)


def test_what_a_defense_does_not_give_is_not_judged() -> None:
    bare = judged({}, np.zeros(9, int), np.zeros(9, bool))
    metrics, arrays = bare.pack()
    assert list(metrics) == EVERY_METRIC[:10] and list(arrays) == ["hits_ca", "hits_asr"]
    again = Judgment.unpack(metrics, arrays)
    parts = (again.flagged, again.ranking, again.detected, again.verdict, again.curves.losses)
    assert parts == (None,) * 5 and again.separability == {} and again.curves.rocs() == {}
    with pytest.raises(KeyError, match="asr"):
        Judgment.unpack(dict.fromkeys(EVERY_METRIC[:6], 0.5), {})


# Flags


def test_all_flagged_and_none_flagged() -> None:
    poison, cover = mask(0, 1, n=10), mask(2, n=10)
    every = detection(np.ones(10, bool), poison, cover)
    assert (every.tpr.value, every.fpr.value, every.fpr_no_cover.value) == (1, 1, 1)
    assert every.cover_removal == Share(value=1, n=1)
    # Peers 4.2.3: with nothing flagged, other code books all poison as false positives.
    nothing = detection(np.zeros(10, bool), poison, cover)
    assert (nothing.tpr, nothing.fpr) == (Share(value=0, n=2), Share(value=0, n=8))


def test_covers_are_negatives_and_counted_apart() -> None:
    poison, cover = mask(0, 1, n=10), mask(2, 3, n=10)
    rates = detection(cover, poison, cover)
    assert rates.tpr == Share(value=0, n=2)
    assert rates.fpr == Share(value=0.25, n=8)
    assert rates.fpr_no_cover == Share(value=0, n=6)
    assert rates.cover_removal == Share(value=1, n=2)


def test_without_poison_tpr_is_undefined() -> None:
    rates = detection(mask(0, n=5), np.zeros(5, bool), np.zeros(5, bool))
    assert math.isnan(rates.tpr.value) and rates.tpr.n == 0
    assert rates.fpr == Share(value=0.2, n=5)
    assert math.isnan(rates.cover_removal.value)


def test_row_numbers_instead_of_flags_are_refused() -> None:
    # Peers 4.2.7: positions within a class once passed for rows of the dataset.
    with pytest.raises(ValueError, match="bool"):
        detection(np.array([3, 7, 1]), np.zeros(3, bool), np.zeros(3, bool))


# Scores


def test_perfect_mirrored_and_constant_scores() -> None:
    positive = np.arange(200) >= 150
    perfect = ranking(np.arange(200.0), positive)
    assert (perfect.auroc, perfect.ap, perfect.tpr_at_1fpr) == (1, 1, 1)
    mirrored = ranking(-np.arange(200.0), positive)
    assert (mirrored.auroc, mirrored.tpr_at_1fpr) == (0, 0)
    constant = ranking(np.zeros(200), positive)
    assert (constant.auroc, constant.ap, constant.tpr_at_1fpr) == (0.5, 0.25, 0)


@pytest.mark.parametrize("ties", [None, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_the_share_of_ordered_pairs(seed: int, ties: int | None) -> None:
    scores, positive = scored(seed, ties=ties)
    high, low = scores[positive][:, None], scores[~positive][None]
    pairs = (high > low).mean() + (high == low).mean() / 2
    assert ranking(scores, positive).auroc == pytest.approx(pairs, abs=1e-12)


@pytest.mark.parametrize("ties", [None, 1, 3])
def test_ranking_agrees_with_scikit_learn(ties: int | None) -> None:
    scores, positive = scored(7, n=2000, ties=ties)
    mine = ranking(scores, positive)
    assert mine.auroc == pytest.approx(reference.roc_auc_score(positive, scores), abs=1e-12)
    assert mine.ap == pytest.approx(reference.average_precision_score(positive, scores), abs=1e-12)
    fpr, tpr, _ = reference.roc_curve(positive, scores, drop_intermediate=False)
    assert mine.tpr_at_1fpr == pytest.approx(tpr[fpr <= 0.01].max(), abs=1e-12)


@pytest.mark.parametrize("ties", [None, 2])
def test_tpr_at_1fpr_by_trying_every_threshold(ties: int | None) -> None:
    scores, positive = scored(11, n=1000, ties=ties)
    best = max(
        (scores[positive] >= cut).mean()
        for cut in [*scores, math.inf]
        if (scores[~positive] >= cut).mean() <= 0.01
    )
    assert ranking(scores, positive).tpr_at_1fpr == pytest.approx(best, abs=1e-12)


def test_one_percent_includes_exactly_one_percent() -> None:
    positive = np.arange(110) < 10
    scores = np.where(positive, 1.0, 0.0)
    scores[50] = 2.0  # one of 100 negatives above all poison
    assert ranking(scores, positive).tpr_at_1fpr == 1
    scores[51] = 2.0
    assert ranking(scores, positive).tpr_at_1fpr == 0


def test_infinite_scores_rank_and_nan_is_an_error() -> None:
    positive = np.array([True, True, False, False])
    assert ranking(np.array([np.inf, 1.0, 0.0, -np.inf]), positive).auroc == 1
    # Samples that a method does not look at get -inf, and tie with each other.
    assert ranking(np.array([-np.inf, 1.0, -np.inf, -np.inf]), positive).auroc == 0.75
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        ranking(np.array([np.nan, 1, 0, 0]), positive)


def test_unsigned_scores_do_not_wrap_around() -> None:
    positive = np.array([False, True, True])
    assert ranking(np.array([0, 1, 2], np.uint8), positive).auroc == 1


@pytest.mark.parametrize("positive", [np.ones(4, bool), np.zeros(4, bool)])
def test_one_class_alone_has_no_ranking(positive: np.ndarray) -> None:
    result = ranking(np.arange(4.0), positive)
    assert math.isnan(result.auroc) and math.isnan(result.ap) and math.isnan(result.tpr_at_1fpr)
    assert [len(axis) for axis in roc(np.arange(4.0), positive)] == [0, 0]


def test_nothing_at_all_has_no_ranking() -> None:
    assert math.isnan(ranking(np.empty(0), np.empty(0, bool)).auroc)


def test_ranking_ignores_order_and_monotone_transforms() -> None:
    scores, positive = scored(3, ties=5)
    expected = ranking(scores, positive)
    order = np.random.default_rng(0).permutation(len(scores))
    assert ranking(scores[order], positive[order]) == expected
    assert ranking(np.exp(scores), positive) == expected
    assert ranking(scores * 1e-9 - 3, positive) == expected
    assert ranking(-scores, positive).auroc == pytest.approx(1 - expected.auroc, abs=1e-12)
    assert ranking(scores, ~positive).auroc == pytest.approx(1 - expected.auroc, abs=1e-12)


@pytest.mark.parametrize("separation", [0.0, 1.0, 6.0])
def test_roc_thinning_keeps_the_area(separation: float) -> None:
    draw = np.random.default_rng(5)
    positive = draw.random(20_000) < 0.05
    scores = draw.normal(size=20_000) + separation * positive
    fpr, tpr = roc(scores, positive, points=200)
    assert 20 <= len(fpr) <= 202
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()
    # 200 points cut the curve into steps of at most 1 %: the area moves by less than that.
    assert np.trapezoid(tpr, fpr) == pytest.approx(ranking(scores, positive).auroc, abs=0.005)


def test_a_short_roc_is_whole() -> None:
    fpr, tpr = roc(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    assert fpr.tolist() == [0, 0, 1, 1] and tpr.tolist() == [0, 0.5, 0.5, 1]


# Intervals


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 10), (263, 10_000), (5, 9)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    from scipy import stats

    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert share(np.arange(n) < successes).interval == wilson(successes, n)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_t_interval_closed_form_and_coverage() -> None:
    # Student's t at 2 degrees of freedom, 97.5 %: 4.3027; deviation of 1, 2, 3 is 1.
    low, high = t_interval(np.array([1.0, 2.0, 3.0]))
    half = 4.302653 / math.sqrt(3)
    assert (low, high) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    draws = np.random.default_rng(1).normal(size=(2000, 4))
    covered = np.mean([low <= 0 <= high for low, high in map(t_interval, draws)])
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 draws


def test_t_interval_of_one_value_is_undefined() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(math.isnan(end) for end in t_interval(np.array([1.0])))
