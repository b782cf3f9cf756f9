"""Confusion Training's schedules, its objective, and its gates for classes that split in two.

X. Qi, T. Xie, J. T. Wang, T. Wu, S. Mahloujifar, P. Mittal: Towards a Proactive ML Approach for
Detecting Backdoor Poison Samples, USENIX Security 2023, arXiv:2205.13616. Numbers are those of the
authors' code, Unispac/Fight-Poison-With-Poison at f2f02c2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from raysweep.counts import count_of
from raysweep.defenses import Flags, FloatArray

if TYPE_CHECKING:
    import torch
    from torch import nn

    from raysweep.training import Batch

LOWEST_DENSITY = 1e-8
CHUNKLET_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Hyperparameters of all rounds; tuples have one entry a round, `ratios` one fewer.

    Attributes:
        ratios: share of the whole set that each round but the last distils.
        weights: lambda; the confusion loss weighs (lambda - 1) against 1 for the inspected data.
        every: n of each round; an inspected batch joins every n-th iteration.
        iterations, learning_rates, momenta: of the confusion loop.
        batch_size: of the clean and of the inspected batch in the confusion loop.
        epochs, pretrain_rate, pretrain_batch: of the training on the distilled set before it.
        weight_decay: of both.
        frequency_weights: whether rare classes weigh more, in all rounds but the last.
        afresh: whether each round pretrains from a new initialization.
        confused_from: the first round whose pretraining mixes in wrongly labeled clean images.
    """

    ratios: tuple[float, ...]
    weights: tuple[float, ...]
    every: tuple[int, ...]
    iterations: tuple[int, ...]
    learning_rates: tuple[float, ...]
    momenta: tuple[float, ...]
    batch_size: int
    epochs: tuple[int, ...]
    pretrain_rate: float
    pretrain_batch: int
    weight_decay: float
    frequency_weights: bool = True
    afresh: bool = False
    confused_from: int = 5

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return len(self.weights)

    def passes(self, samples: int) -> float:
        """Return the sample passes of all rounds over `samples`; scoring counts as a third."""
        shares = zip(self.epochs, (1.0, *self.ratios), strict=True)
        pretraining = samples * sum(epochs * share for epochs, share in shares)
        batches = sum(n * (1 + 1 / m) for n, m in zip(self.iterations, self.every, strict=True))
        return pretraining + self.batch_size * batches + self.rounds * samples / 3


_SIX = (1 / 2, 1 / 5, 1 / 25, 1 / 50, 1 / 100)
_CIFAR10 = Schedule(
    ratios=_SIX, weights=(20, 20, 20, 30, 30, 15), every=(2,) * 6,
    iterations=(6000,) * 4 + (2000,) * 2, learning_rates=(0.001,) * 3 + (0.01,) * 3,
    momenta=(0.7,) * 6, batch_size=32, epochs=(100, 100, 40, 40, 40, 40), pretrain_rate=0.01,
    pretrain_batch=32, weight_decay=1e-4,
)  # fmt: skip
_FIVE = (1 / 5, 1 / 20, 1 / 40, 1 / 80)
SCHEDULES: Mapping[str, Schedule] = {
    "cifar10": _CIFAR10,
    "gtsrb": Schedule(
        ratios=_SIX, weights=(20,) * 6, every=(2, 2, 4, 8, 8, 2), iterations=_CIFAR10.iterations,
        learning_rates=(0.001,) * 6, momenta=(0.7,) * 6, batch_size=32, epochs=_CIFAR10.epochs,
        pretrain_rate=0.01, pretrain_batch=32, weight_decay=1e-4,
    ),
    "imagenet": Schedule(
        ratios=_FIVE, weights=(20,) * 5, every=(1, 2, 4, 4, 4), iterations=(10000,) + (5000,) * 4,
        learning_rates=(0.01,) * 5, momenta=(0.5,) * 5, batch_size=128, epochs=(20,) * 5,
        pretrain_rate=0.5, pretrain_batch=1024, weight_decay=5e-5, frequency_weights=False,
        afresh=True, confused_from=2,
    ),
    "ember": Schedule(
        ratios=_FIVE, weights=(20,) * 5, every=(1, 16, 64, 128, 128),
        iterations=(6000,) + (4000,) * 4, learning_rates=(0.1,) + (0.01,) * 4, momenta=(0.5,) * 5,
        batch_size=64, epochs=(10,) + (5,) * 4, pretrain_rate=0.1, pretrain_batch=512,
        weight_decay=1e-6, frequency_weights=False, afresh=True, confused_from=2,
    ),
    # Ours, for two cores and a few thousand images: the same structure and ratios.
    "small": Schedule(
        ratios=_SIX, weights=_CIFAR10.weights, every=(2,) * 6,
        iterations=(400,) * 4 + (150,) * 2, learning_rates=(0.01,) * 3 + (0.03,) * 3,
        momenta=(0.7,) * 6, batch_size=64, epochs=(10, 8, 8, 10, 10, 15), pretrain_rate=0.01,
        pretrain_batch=64, weight_decay=1e-4,
    ),
}  # fmt: skip


def shifts(num_classes: int) -> range:
    """Return the label shifts that the iterations take in turn: 1 to K - 1, never 0.

    The released code's counter gives the same: it skips every multiple of K.
    """
    return range(1, num_classes)


class Confusion:
    """The objective of the confusion loop: clean images with wrong labels, inspected ones as given.

    Both go through the network in one batch, so that they share batch statistics.
    """

    capturable = True

    def __init__(
        self, guessed: torch.Tensor, class_weights: torch.Tensor, weight: float, num_classes: int
    ) -> None:
        import torch

        self.guessed, self.class_weights = guessed, class_weights
        self.weight, self.num_classes = weight, num_classes
        self.shifts = torch.tensor(shifts(num_classes), device=guessed.device)
        self.calls = torch.zeros(1, dtype=torch.int64, device=guessed.device)
        self.memory = (self.calls,)

    def __call__(self, model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        """Return [(lambda - 1) CE_clean + CE_inspected] / lambda, or CE_clean alone."""
        import torch
        import torch.nn.functional as F

        clean = batches["clean"]
        shift = self.shifts.index_select(0, self.calls % len(self.shifts))
        self.calls += 1
        wrong = (self.guessed[clean.rows] + shift) % self.num_classes
        if "inspected" not in batches:
            return F.cross_entropy(model(clean.images).float(), wrong)
        seen = batches["inspected"]
        logits = model(torch.cat([clean.images, seen.images])).float()
        ours, theirs = logits.split([len(wrong), len(seen.labels)])
        confusing = F.cross_entropy(ours, wrong)
        # cross_entropy divides by the sum of the weights.
        inspected = F.cross_entropy(theirs, seen.labels, weight=self.class_weights)
        return ((self.weight - 1) * confusing + inspected) / self.weight


def class_weights(labels: np.ndarray, num_classes: int) -> FloatArray:
    """Return 1 / f_c, f_c = sqrt(count_c / N + 0.001), (K,)."""
    share = np.bincount(labels, minlength=num_classes) / max(len(labels), 1)
    weights: FloatArray = 1 / np.sqrt(share + 0.001)
    return weights


def distilled(
    losses: FloatArray, labels: np.ndarray, ratio: float, per_class: int, num_classes: int
) -> np.ndarray:
    """Return the rows of lowest loss, sorted: floor(ratio * N), topped up to a share of each class.

    Args:
        losses: (N,).
        labels: (N,) given labels.
        ratio: share that is kept of the whole set.
        per_class: a class keeps at least its size // per_class.
        num_classes: K.
    """
    order = np.argsort(losses, kind="stable")
    kept = np.zeros(len(losses), bool)
    kept[order[: count_of(ratio, len(losses))]] = True
    for label in range(num_classes):
        mine = order[labels[order] == label]
        lacking = len(mine) // per_class - int(kept[mine].sum())
        if lacking > 0:
            kept[mine[~kept[mine]][:lacking]] = True
    return np.flatnonzero(kept)


def log_ratio(
    points_ND: FloatArray, isolated: Flags, epsilon: float, form: Literal["ridge", "constant"]
) -> float:
    """Return log R of a class: the gain in fit of two Gaussians over the Gaussian of the others.

    R is 1 where a side has fewer than two samples. `constant` adds epsilon to every entry of the
    covariances, as the released code does; `ridge` to the diagonal.
    """
    if min(int(isolated.sum()), int((~isolated).sum())) < 2:
        return 0.0
    inside = points_ND[isolated]
    own, others = (
        _log_density(inside, group, epsilon, form) for group in (inside, points_ND[~isolated])
    )
    return float((own - others).sum() / len(points_ND))


def _log_density(
    points: FloatArray, group: FloatArray, epsilon: float, form: Literal["ridge", "constant"]
) -> FloatArray:
    """Return log densities under a group's Gaussian; directions without spread are left out."""
    mean = group.mean(0)
    covariance = np.atleast_2d(np.cov(group, rowvar=False))
    size = len(covariance)
    covariance = covariance + epsilon * (np.eye(size) if form == "ridge" else np.ones((size, size)))
    values, vectors = np.linalg.eigh(covariance)
    used = values > 1e-10 * max(float(values.max()), 1e-30)
    moved = (points - mean) @ vectors[:, used]
    density: FloatArray = -0.5 * (
        (moved**2 / values[used]).sum(1) + np.log(2 * np.pi * values[used]).sum()
    )
    return density


def passed(log_ratios: FloatArray, high: float, highest: float) -> Flags:
    """Return the classes with R > high, and the class of the largest R if that is > highest."""
    ratios = np.nan_to_num(np.asarray(log_ratios, np.float64), nan=0.0)
    over: Flags = ratios > np.log(high)
    if len(ratios) and ratios.max() > np.log(highest):
        over[int(np.argmax(ratios))] = True
    return over


def median_chunklet(losses: FloatArray) -> Flags:
    """Return the middle tenth of a class by loss, (N,)."""
    count = len(losses)
    order = np.argsort(losses, kind="stable")
    width = max(int(CHUNKLET_SHARE * count), min(count, 2))
    first = (count - width) // 2
    chunklet = np.zeros(count, bool)
    chunklet[order[first : first + width]] = True
    return chunklet


def whitened(features_ND: FloatArray, chunklet: Flags) -> FloatArray:
    """Return features in units of the chunklet's spread, on their two principal axes, (N, 2)."""
    group = features_ND[chunklet]
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(group, rowvar=False)))
    scaled = (features_ND - group.mean(0)) @ vectors / np.sqrt(np.maximum(values, 0) + 1e-4)
    return principal(scaled, 2)


def principal(features_ND: FloatArray, rank: int) -> FloatArray:
    """Return features on their first principal axes, not centered, (N, rank)."""
    values = np.asarray(features_ND, np.float64)
    centered = values - values.mean(0)
    _, vectors = np.linalg.eigh(centered.T @ centered)
    result: FloatArray = values @ vectors[:, ::-1][:, :rank]
    if result.shape[1] < rank:
        result = np.pad(result, ((0, 0), (0, rank - result.shape[1])))
    return result


def mixture_log_ratio(points_ND: FloatArray, chunklet: Flags, most: int = 100) -> float:
    """Return log R by a mixture of two Gaussians in which the chunklet shares one component.

    Expectation maximization from weights .9 and .1, the second component from the tenth of the
    points that lie farthest out; densities are bounded below by 1e-8.
    """
    count = len(points_ND)
    if count < 20 or int(chunklet.sum()) < 2:
        return 0.0
    far = np.argsort(-np.linalg.norm(points_ND - points_ND[chunklet].mean(0), axis=1))
    second = np.zeros(count, bool)
    second[far[: max(count // 10, 2)]] = True
    second &= ~chunklet
    if int(second.sum()) < 2:
        return 0.0
    shares = np.stack([~second, second]).astype(float)
    weights, densities = np.array([0.9, 0.1]), np.zeros((2, count))
    for _ in range(most):
        densities = np.stack([_weighted_density(points_ND, share) for share in shares])
        joint = densities + np.log(weights)[:, None]
        # The chunklet decides as one: the sum of its points' densities, its weight once.
        joint[:, chunklet] = (densities[:, chunklet].sum(1) + np.log(weights))[:, None]
        new = np.exp(joint - np.logaddexp(joint[0], joint[1]))
        change = float(np.linalg.norm(new - shares))
        shares = new
        weights = np.clip(shares.mean(1), 1e-6, 1)
        weights = weights / weights.sum()
        if change < 1e-2 or shares.sum(1).min() < 2:
            break
    main = int(shares[:, chunklet].mean(1).argmax())
    own = np.where(shares[0] >= shares[1], densities[0], densities[1])
    return float((own - densities[main]).mean())


def _weighted_density(points: FloatArray, share: FloatArray) -> FloatArray:
    total = max(float(share.sum()), 1e-12)
    mean = (share[:, None] * points).sum(0) / total
    moved = points - mean
    covariance = (share[:, None] * moved).T @ moved / total + 1e-4 * np.eye(points.shape[1])
    values, vectors = np.linalg.eigh(covariance)
    spread = (moved @ vectors) ** 2 / values
    density = -0.5 * (spread.sum(1) + np.log(2 * np.pi * values).sum())
    floored: FloatArray = np.maximum(density, np.log(LOWEST_DENSITY))
    return floored
