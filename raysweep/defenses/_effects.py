"""Effects of sources and targets in a table of pairs, and the pairs and targets that stand out.

Some classes are easy to reach, and some easy to leave, without any attack: the log reciprocal norm
of the pattern from s to t is held to be a_s + b_t + noise. A pair stands out by its studentized
residual (W. Stefansky: Rejecting Outliers in Factorial Designs, Technometrics 1972), a target by
its effect among the effects of all targets (F. Grubbs: Procedures for Detecting Outlying
Observations in Samples, Technometrics 1969); the least of several p-values counts as that of
independent ones. A pair whose search ended without success is censored: its value is at most that
of the pattern at the end (J. Tobin: Estimation of Relationships for Limited Dependent Variables,
Econometrica 1958), fitted by expectation and maximization.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from raysweep.defenses import Flags, FloatArray

ROUNDS = 500  # of expectation and maximization, at most


def p_values(logs_KK: FloatArray, reached_KK: Flags, bounded_KK: Flags) -> tuple[FloatArray, float]:
    """Return (K,) p-values of classes as targets, and the p-value that there is no attack.

    Args:
        logs_KK: log(1 / norm) from source (row) to target (column).
        reached_KK: pairs whose search succeeded.
        bounded_KK: pairs whose search did not: `logs_KK` is the most that the value can be. All
            other pairs, such as the diagonal, are left out.

    Raises:
        ValueError: if fewer than three pairs are left to estimate the noise from.
    """
    classes = len(logs_KK)
    # A class that no search left, or reached, has no effect to be estimated.
    sources, targets = (np.asarray(reached_KK.any(axis)) for axis in (1, 0))
    used = (reached_KK | bounded_KK) & sources[:, None] & targets
    s, t = np.nonzero(used)
    design = np.concatenate([np.eye(classes)[s], np.eye(classes)[t]], 1)
    inverse = np.linalg.pinv(design)
    freedom = len(s) - int(np.linalg.matrix_rank(design)) if len(s) else 0
    if freedom < 3:
        raise ValueError(
            f"RED's null of effects needs at least 3 pairs more than effects, got {len(s)} pairs "
            f"for {int(sources.sum())} sources and {int(targets.sum())} targets; raise steps or "
            f"learning_rate, lower pi, or take null: exclude_target"
        )
    values, hit = logs_KK[used], reached_KK[used]
    effects, scale = _fitted(values, hit, design, inverse, freedom)
    leverage = np.einsum("ij,ji->i", design, inverse)
    residuals = (values - design @ effects) / scale / np.sqrt(np.maximum(1 - leverage, 1e-12))
    apart = np.where(hit & (leverage < 1 - 1e-9), _outlying(residuals, freedom), 1.0)
    own = np.ones(classes)
    for target in np.flatnonzero(targets):
        into = apart[t == target]
        own[target] = _least(into.min(), int(hit[t == target].sum()))
    easy = effects[classes:][targets]
    if len(easy) > 3:
        spread = max(float(easy.std(ddof=1)), 1e-12) * (1 - 1 / len(easy)) ** 0.5
        ease = _outlying((easy - easy.mean()) / spread, len(easy) - 1)
        own[targets] = _least(np.minimum(own[targets], ease), 2)
    return own, float(_least(own.min(), int(targets.sum())))


def _fitted(
    values: FloatArray, hit: Flags, design: FloatArray, inverse: FloatArray, freedom: int
) -> tuple[FloatArray, float]:
    """Return the effects and the scale of the noise; values without a hit are upper bounds."""
    filled, spare = values.astype(np.float64), np.zeros(len(values))
    effects, scale = inverse @ filled, 0.0
    for _ in range(ROUNDS):
        expected = design @ effects
        scale = max(float(((filled - expected) ** 2 + spare).sum() / freedom) ** 0.5, 1e-12)
        if hit.all():
            break
        # Mean and variance of the noise below the bound.
        z = (values[~hit] - expected[~hit]) / scale
        ratio = np.exp(stats.norm.logpdf(z) - stats.norm.logcdf(z))
        moved = expected[~hit] - scale * ratio
        change = float(np.abs(moved - filled[~hit]).max())
        filled[~hit] = moved
        spare[~hit] = scale**2 * np.maximum(1 - z * ratio - ratio**2, 0)
        effects = inverse @ filled
        if change < 1e-6 * scale:
            break
    return effects, scale


def _outlying(residuals: FloatArray, freedom: int) -> FloatArray:
    """Return the chance that one residual, divided by its standard error, is as large."""
    left = np.maximum(freedom - residuals**2, 1e-12)
    result: FloatArray = stats.t.sf(residuals * np.sqrt((freedom - 1) / left), freedom - 1)
    return result


def _least(p: FloatArray, count: int) -> FloatArray:
    """Return the chance that the least of `count` independent p-values is as small as `p`."""
    result: FloatArray = -np.expm1(count * np.log1p(-np.minimum(p, 1 - 1e-16)))
    return result
