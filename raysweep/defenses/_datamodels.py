"""Datamodel estimation and the local search for the strongest feature.

A. Khaddaj, G. Leclerc, A. Makelov, K. Georgiev, H. Salman, A. Ilyas, A. Madry: Rethinking Backdoor
Attacks, ICML 2023, arXiv:2307.10163. n: training samples, m: models, W: (n, n), row z: how much
each sample, if trained on, changes the model's output on z.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from raysweep import rng
from raysweep.counts import count_of
from raysweep.defenses import FloatArray
from raysweep.methods.context import Context

Masks = NDArray[np.bool_]
PASSES, SWAPS = 100, 100
BLOCK = 2048


def subset_masks(root: int, first: int, count: int, samples: int, alpha: float) -> Masks:
    """Return the subsets that models `first` to `first + count` are trained on, (count, n).

    Regenerated from the seed alone, so that masks need not be stored.
    """
    drawn = [
        rng.generator(root, "subset", number).random(samples) < alpha
        for number in range(first, first + count)
    ]
    return np.stack(drawn)


def difference_of_means(
    margins_MN: NDArray[np.floating], masks_MN: Masks, *, held_out: bool = False
) -> NDArray[np.float32]:
    """Return W: mean output with a sample in the subset minus the mean without it.

    Args:
        margins_MN: output of each model on each sample, (m, n).
        masks_MN: (m, n) mask of the samples that each model was trained on.
        held_out: use for row z only the models that were not trained on z, as the definition of a
            feature's strength does; its effect on itself, on the diagonal, is of all models.

    Raises:
        ValueError: if some sample is in all subsets, or in none.
    """
    models, samples = margins_MN.shape
    masks = masks_MN.astype(np.float32)
    weights = np.zeros((samples, samples), np.float32)
    for start in range(0, samples, BLOCK):
        cut = slice(start, start + BLOCK)
        exact = margins_MN[:, cut].astype(np.float64)
        used = (1 - masks[:, cut]) if held_out else np.ones(exact.shape, np.float32)
        # Centered per sample: smaller numbers, so that float32 sums keep their digits.
        mean = (used * exact).sum(0) / np.maximum(used.sum(0), 1)
        outputs = ((exact - mean) * used).astype(np.float32)
        inside, totals = used.T @ masks, used.sum(0)[:, None]
        sums = outputs.T @ masks
        outside = totals - inside
        np.divide(sums, inside, out=weights[cut], where=inside > 0)
        weights[cut] += np.divide(
            sums, outside, out=np.zeros_like(sums), where=outside > 0
        )  # the centered outputs sum to 0, so the sum outside is minus the sum inside
        empty = (inside == 0) | (outside == 0)
        rows = np.arange(start, min(start + BLOCK, samples))
        empty[rows - start, rows] = False
        if held_out:
            own = masks[:, cut]
            seen, unseen = ((exact * x).sum(0) / np.maximum(x.sum(0), 1) for x in (own, 1 - own))
            weights[rows, rows] = seen - unseen
        if empty.any():
            raise ValueError(
                f"{int(empty.sum())} pairs of samples have no model with, or none without, the "
                f"other among {models}; train more models, or bring alpha nearer to 0.5"
            )
    return weights


def ridge(margins_MN: NDArray[np.floating], masks_MN: Masks, penalty: float) -> NDArray[np.float32]:
    """Return W of the least squares fit of outputs by masks with an L2 penalty.

    Args:
        margins_MN: (m, n).
        masks_MN: (m, n).
        penalty: times the number of models.
    """
    models = len(margins_MN)
    outputs = margins_MN - margins_MN.mean(0, dtype=np.float64)
    masks = masks_MN - masks_MN.mean(0, dtype=np.float64)
    if masks.shape[1] <= models:
        gram = masks.T @ masks + penalty * models * np.eye(masks.shape[1])
        fitted = np.linalg.solve(gram, masks.T @ outputs)
    else:
        gram = masks @ masks.T + penalty * models * np.eye(models)
        fitted = masks.T @ np.linalg.solve(gram, outputs)
    weights: NDArray[np.float32] = np.ascontiguousarray(fitted.T, np.float32)
    return weights


def objective_matrix(weights: NDArray[np.float32], size: int) -> NDArray[np.float64]:
    """Return A with v^T A v proportional to (1/k) v^T W h(v) for every v of k ones.

    h(v) = v / |v| - (1 - v) / |1 - v|: A is W with -(k / n) times its row sums on the diagonal.
    The diagonal of W, effects of samples on themselves, takes no part.
    """
    matrix = weights.astype(np.float64)
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, -size / len(matrix) * matrix.sum(1))
    return matrix


def value(matrix: NDArray[np.float64], members: NDArray[np.bool_]) -> float:
    """Return v^T A v."""
    rows = np.flatnonzero(members)
    return float(matrix[np.ix_(rows, rows)].sum())


def local_search(matrix: NDArray[np.float64], size: int, draw: np.random.Generator) -> Masks:
    """Return a set of `size` samples that no pass of swaps improves, (n,).

    A pass swaps the member whose removal loses least against the outsider whose addition gains
    most, up to 100 times, each sample once, and keeps the prefix of swaps that gained most in all
    (Kernighan-Lin). Starts from a random set.
    """
    both = matrix + matrix.T
    diagonal = np.diag(matrix)
    members = np.zeros(len(matrix), bool)
    members[draw.choice(len(matrix), size, replace=False)] = True
    sums = both[members].sum(0)
    for _ in range(PASSES):
        gains, swaps, now = _one_pass(both, diagonal, members, sums)
        best = int(np.argmax(gains)) if gains else 0
        if not gains or gains[best] <= 1e-9:
            break
        for out, add in swaps[: best + 1]:
            members[out], members[add] = False, True
        sums = both[members].sum(0)
        del now
    return members


def _one_pass(
    both: NDArray[np.float64],
    diagonal: NDArray[np.float64],
    members: NDArray[np.bool_],
    sums: NDArray[np.float64],
) -> tuple[list[float], list[tuple[int, int]], NDArray[np.float64]]:
    """Return the cumulative gain after each swap of a pass, and the swaps."""
    sums = sums.copy()
    # Infinities mark who may not move: outsiders cannot leave, members cannot enter.
    leaving = np.where(members, 0.0, np.inf)
    entering = np.where(members, -np.inf, 0.0)
    total, gains, swaps = 0.0, [], []
    for _ in range(min(SWAPS, int(members.sum()), int((~members).sum()))):
        # Removing r loses s_r - A_rr, since s counts the diagonal twice; adding a gains s_a + A_aa.
        out = int(np.argmin(sums - diagonal + leaving))
        add = int(np.argmax(sums + diagonal + entering))
        total += -(sums[out] - diagonal[out]) + sums[add] + diagonal[add] - both[out, add]
        gains.append(float(total))
        swaps.append((out, add))
        sums += both[add] - both[out]
        leaving[out], entering[add] = np.inf, -np.inf
    return gains, swaps, sums


def found_sets(
    weights: NDArray[np.float32],
    sizes: tuple[int, ...],
    restarts: int,
    generator: Callable[[int, int], np.random.Generator],
    ctx: Context,
) -> tuple[NDArray[np.bool_], FloatArray]:
    """Return the sets that searches end in, (sizes, restarts, n), and their values.

    Values, (sizes, restarts), are (1/k) v^T W h(v), the mean effect of the set on itself.
    """
    samples = len(weights)
    sets = np.zeros((len(sizes), restarts, samples), bool)
    values = np.empty((len(sizes), restarts))
    for at, size in enumerate(sizes):
        matrix = objective_matrix(weights, size)
        scale = samples / ((samples - size) * size**2)
        search = partial(_searched, matrix, size, generator)
        for restart, found in enumerate(ctx.mapped("search", search, range(restarts))):
            sets[at, restart] = found
            values[at, restart] = scale * value(matrix, found)
    return sets, values


def _searched(
    matrix: NDArray[np.float64],
    size: int,
    generator: Callable[[int, int], np.random.Generator],
    restart: int,
) -> Masks:
    """Return the set that one search ends in, (n,)."""
    return local_search(matrix, size, generator(size, restart))


def without_effects(
    margins_MN: NDArray[np.floating], masks_MN: Masks, order: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Return outputs in which no sample has an effect on another, (m, n).

    From each output the mean of the models with its own sample in the subset, or of the models
    without it, is taken, and the rest is dealt to other models; a sample's effect on itself stays,
    since it adds to the noise of all estimates.

    Args:
        margins_MN: (m, n).
        masks_MN: (m, n).
        order: permutation of the models, (m,).
    """
    outputs = margins_MN.astype(np.float32)
    own = np.empty_like(outputs)
    for chosen in (masks_MN, ~masks_MN):
        mean = (outputs * chosen).sum(0) / np.maximum(chosen.sum(0), 1)
        np.copyto(own, mean, where=chosen)
    dealt: NDArray[np.float32] = own + (outputs - own)[order]
    return dealt


def beyond_chance(values: FloatArray, chance: FloatArray) -> FloatArray:
    """Return the shares, at least 0, by which values exceed the best that chance finds.

    Args:
        values: (sizes, restarts) of found sets.
        chance: (sizes, restarts) of sets found where no sample has an effect.
    """
    most = np.maximum(chance.max(1, keepdims=True), 1e-12)
    beyond: FloatArray = np.maximum(values / most - 1, 0)
    return beyond


def mean_effect(weights: NDArray[np.float32], rows: NDArray[np.integer]) -> float:
    """Return the mean effect of one sample of a set on the output of another of it."""
    inside = weights[np.ix_(rows, rows)].astype(np.float64)
    return float((inside.sum() - np.trace(inside)) / (len(rows) * (len(rows) - 1)))


def held_out_correlation(
    weights: NDArray[np.float32],
    margins_MN: NDArray[np.floating],
    masks_MN: Masks,
    *,
    unseen: bool = False,
) -> float:
    """Return the mean over samples of the correlation of predicted with true outputs.

    Args:
        weights: W, estimated without these models, with samples' effects on themselves.
        margins_MN: (m, n) outputs of the models left out.
        masks_MN: (m, n) mask of the samples that they were trained on.
        unseen: whether to take, for each sample, only the models that were not trained on it.

    Returns:
        Pearson's, in [-1, 1], by which Ilyas et al. judge datamodels; NaN for under three models.
    """
    if len(masks_MN) < 3:
        return float("nan")
    predicted = (masks_MN - masks_MN.mean(0)).astype(np.float32) @ weights.T
    true = margins_MN.astype(np.float32)
    used = (~masks_MN if unseen else np.ones_like(masks_MN)).astype(np.float32)
    counts = np.maximum(used.sum(0), 1)
    predicted, true = (used * (x - (used * x).sum(0) / counts) for x in (predicted, true))
    scale = np.sqrt((predicted**2).sum(0) * (true**2).sum(0))
    return float(((predicted * true).sum(0) / np.maximum(scale, 1e-12)).mean())


def agreement(one: FloatArray, other: FloatArray, share: float = 0.1) -> float:
    """Return the agreement of two rankings' top samples: intersection over union.

    Samples that score 0 are in no ranking; two empty rankings agree on nothing.
    """
    top = max(count_of(share, len(one)), 1)
    first, second = (
        {i for i in np.argsort(-scores, kind="stable")[:top] if scores[i] > 0}
        for scores in (one, other)
    )
    return len(first & second) / max(len(first | second), 1)


def models_needed(samples: int, variance: float, effect: float, alpha: float = 0.5) -> float:
    """Return the number of models that find a trigger: 16 sigma^2 n / Delta^2 at alpha = 1/2.

    A heuristic, checked by simulation at one half: the trigger's total effect Delta on a margin
    against the noise of n estimates of deviation sigma / sqrt(m alpha (1 - alpha)). NaN if there is
    no effect.

    Args:
        samples: searched together.
        variance: of a margin over models.
        effect: the trigger's.
        alpha: share of the set in a subset.
    """
    if effect <= 0:
        return float("nan")
    return float(np.ceil(4 * variance * samples / (alpha * (1 - alpha) * effect**2)))
