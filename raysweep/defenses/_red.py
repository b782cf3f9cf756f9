"""RED's inference: the class, if any, that suspiciously small perturbations reach.

Z. Xiang, D. J. Miller, G. Kesidis: Reverse Engineering Imperceptible Backdoor Attacks on Deep
Neural Networks for Detection and Training Set Cleansing, Computers & Security 2021,
arXiv:2010.07489. Two-level order statistics over reciprocals of perturbation norms.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import special, stats

from raysweep.defenses import Curve, Flags, FloatArray, _effects
from raysweep.methods.context import Arrays

PAIRS = "pairs of classes, smallest pattern first"
SMALLNESS = "1 / L2 norm of a pair's pattern"
Null = Literal["exclude_target", "drop_top", "effects", "mad"]
Pooled = Literal["exclude_target", "drop_top"]
TRIALS = 4000  # simulated sets
TOGETHER = 500  # of them in memory


def gamma_shape(log_mean: FloatArray, mean_log: FloatArray) -> FloatArray:
    """Return the maximum-likelihood shape of Gamma distributions located at 0.

    A free location can collapse onto the smallest value and hide an outlier.
    """
    s = np.maximum(np.asarray(log_mean) - np.asarray(mean_log), 1e-12)
    shape = (3 - s + np.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    for _ in range(6):
        value = np.log(shape) - special.digamma(shape) - s
        slope = 1 / shape - special.polygamma(1, shape)
        shape = np.maximum(shape - value / slope, shape / 2)
    result: FloatArray = shape
    return result


def tested(norms_KK: FloatArray, reached_KK: Flags, null: Null) -> Arrays:
    """Return the evidence of an attack in the norms of all pairs' patterns.

    It holds the `reciprocals` (K, K), 0 where a search failed; the `anomaly` of each class (K,);
    its `p_class` (K,); and `p_value` and `p_calibrated` that there is no attack. Where a p-value
    is not finite, or with `mad`, all are NaN and anomalies are deviations in MADs.

    Args:
        norms_KK: from source (row) to target (column); 0 is a pair that was not searched, or a
            source that is there before any step.
        reached_KK: pairs whose search succeeded.
        null: how pairs without an attack are held to be distributed.
    """
    positive = norms_KK > 0
    ratios = 1 / np.where(positive, np.maximum(norms_KK, 1e-12), 1)
    used = reached_KK & positive
    reciprocals = np.where(used, ratios, 0.0)
    p_class, p_value, calibrated_p = np.full(len(norms_KK), np.nan), np.nan, np.nan
    if null == "effects":
        p_class, p_value = _effects.p_values(np.log(ratios), used, positive & ~used)
        calibrated_p = p_value
    elif null != "mad":
        p_class, pooled = p_values(reciprocals, null)
        p_value, calibrated_p = float(pooled), calibrated(float(pooled), used, null)
    if np.isfinite(p_class).all() and np.isfinite(p_value):
        anomaly = -np.log10(np.maximum(p_class, 1e-300))
    else:
        anomaly, p_value, calibrated_p = deviations(reciprocals), np.nan, np.nan
    return {
        "reciprocals": reciprocals, "anomaly": anomaly, "p_class": p_class,
        "p_value": np.array(p_value), "p_calibrated": np.array(calibrated_p),
    }  # fmt: skip


def p_values(
    reciprocals_KK: FloatArray, null: Pooled = "exclude_target"
) -> tuple[FloatArray, FloatArray]:
    """Return (K,) p-values of classes as targets, and the p-value that there is no attack.

    Args:
        reciprocals_KK: 1 / norm from source (row) to target (column); 0 where the search failed,
            and on the diagonal. Zeros are left out of null and evaluation. Axes before the last
            two hold several sets, of which each is judged alone.
        null: `exclude_target`: for each class the pairs with another target; `drop_top`: all but
            the K - 1 largest, (K - 1)^2 if every pair was reached.

    Raises:
        ValueError: if a null holds fewer than three pairs.
    """
    classes = reciprocals_KK.shape[-1]
    values = reciprocals_KK
    if null == "drop_top":
        pooled = values.reshape(*values.shape[:-2], 1, classes**2)
        values = np.sort(pooled)[..., : -(classes - 1)].swapaxes(-1, -2)
    used = values > 0
    logs = np.where(used, np.log(np.where(used, values, 1)), 0)
    counts, sums, log_sums = used.sum(-2), values.sum(-2), logs.sum(-2)
    if null == "exclude_target":
        counts, sums, log_sums = (v.sum(-1)[..., None] - v for v in (counts, sums, log_sums))
    if counts.min() < 3:
        raise ValueError(
            f"RED's null needs at least 3 pairs of classes that were reached, got {counts.min()} "
            f"of {classes * (classes - 1)}; raise steps or learning_rate, or lower pi"
        )
    means = sums / counts
    shape = gamma_shape(np.log(means), log_sums / counts)
    highest = reciprocals_KK.max(-2)
    # Survival functions keep the small p-values that 1 - G loses.
    tail = np.minimum(stats.gamma.sf(highest, shape, scale=means / shape), 1 - 1e-16)
    own = np.where(highest > 0, -np.expm1((classes - 1) * np.log1p(-tail)), 1.0)
    if null == "drop_top":
        # One null for all classes: its least tail is that of the largest of all.
        return own, -np.expm1(classes * (classes - 1) * np.log1p(-tail.min(-1)))
    first = np.minimum(own.min(-1), 1 - 1e-16)
    return own, -np.expm1(classes * np.log1p(-first))


def deviations(reciprocals_KK: FloatArray) -> FloatArray:
    """Return the MADs (K,) by which the largest reciprocal of each target exceeds the median."""
    used = reciprocals_KK[reciprocals_KK > 0]
    if len(used) < 3:
        raise ValueError(f"RED's null needs at least 3 pairs that were reached, got {len(used)}")
    median = np.median(used)
    spread = max(float(np.median(np.abs(used - median))), 1e-12)
    result: FloatArray = (reciprocals_KK.max(0) - median) / spread
    return result


def calibrated(p_value: float, used_KK: Flags, null: Pooled, trials: int = TRIALS) -> float:
    """Return the chance of a p-value as small as this in attack-free sets of the same pairs.

    Simulated, since the two levels are not independent: independent Gamma reciprocals of shape 20.
    The observed set counts as one of them, so that it is never below 1 / (trials + 1): B. Phipson,
    G. Smyth: Permutation P-values Should Never Be Zero, 2010.

    Args:
        p_value: of `p_values`.
        used_KK: the pairs that it was made of.
        null: with which it was made.
        trials: simulated sets.
    """
    simulated = _simulated(np.packbits(used_KK).tobytes(), len(used_KK), null, trials)
    return float((np.searchsorted(simulated, p_value, "right") + 1) / (trials + 1))


@lru_cache(64)
def _simulated(used: bytes, classes: int, null: Pooled, trials: int) -> FloatArray:
    """Return the sorted p-values (trials,) of attack-free sets of the packed mask of pairs."""
    draw = np.random.default_rng(0)
    mask = np.unpackbits(np.frombuffer(used, np.uint8), count=classes**2).reshape(classes, classes)
    sets = (
        draw.gamma(20.0, 0.01, (min(TOGETHER, trials - start), classes, classes)) * mask
        for start in range(0, trials, TOGETHER)
    )
    return np.sort(np.concatenate([p_values(some, null)[1] for some in sets]))


def ranked(reciprocals_KK: FloatArray, target: int) -> dict[str, Curve]:
    """Return the reciprocals of pairs into the target and into all others, largest first.

    Pairs that never reach pi are left out.
    """
    others = np.delete(reciprocals_KK, target, 1)
    parts = {"into the suspected class": reciprocals_KK[:, target], "into other classes": others}
    ranked = {name: np.sort(part[part > 0])[::-1] for name, part in parts.items()}
    return {
        name: Curve(x=np.arange(1.0, len(values) + 1), y=values, x_title=PAIRS, y_title=SMALLNESS)
        for name, values in ranked.items()
        if len(values)
    }
