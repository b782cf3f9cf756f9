"""RED's cleaning: scores of training images by the victim's outputs once a pattern is subtracted.

Z. Xiang, D. J. Miller, G. Kesidis: Reverse Engineering Imperceptible Backdoor Attacks on Deep
Neural Networks for Detection and Training Set Cleansing, Computers & Security 2021,
arXiv:2010.07489.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from raysweep.datasets import as_floats
from raysweep.defenses import DefenseInputs, Flags, FloatArray
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch

Score = Literal["fall", "likelihood"]
Reference = Literal["own", "target"]
AT_ONCE = 1000  # images


@dataclass(frozen=True, kw_only=True)
class Subtracted:
    """The scores of the training set once the pattern is taken off.

    Attributes:
        source: the class from which the poison is held to come.
        scores: (N,), higher where poison is; below all others outside the target class.
        leaves: (N,) samples of the target class that are no longer held to be of it.
        reference: (M,) the same score of samples that are of neither target nor source.
    """

    source: int
    scores: FloatArray
    leaves: Flags
    reference: FloatArray


def subtracted(
    inputs: DefenseInputs, ctx: Context, pattern_CHW: FloatArray, target: int,
    source: int | None, score: Score, reference: Reference,
) -> Subtracted:  # fmt: skip
    """Return the scores of all training samples once a pattern is subtracted from them.

    Args:
        inputs: give the training set and the victim.
        ctx: the stage's.
        pattern_CHW: what is subtracted.
        target: the class to which the pattern sends.
        source: the class from which the poison is held to come; none: the one that, once the
            pattern is subtracted, a minority of the target's samples is likelier to be of.
        score: `fall` of the given label's log posterior, or the log `likelihood` of the source
            class that is left.
        reference: with `fall`, whose posterior's fall is compared in other classes.

    Raises:
        ValueError: if the victim's outputs are not finite.
    """
    import torch

    labels, classes = inputs.training_set.labels, inputs.shape.num_classes
    before, after = (
        _log_posteriors(inputs, ctx, classes, v)
        for v in (None, torch.from_numpy(np.asarray(pattern_CHW, np.float32)))
    )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("the victim's outputs are not finite; it may have diverged")
    rows, inside = np.arange(len(labels)), labels == target
    if source is None:
        source = _source_of_minority(after[inside], target)
    values: FloatArray = before[rows, labels] - after[rows, labels]
    compared = values
    if score == "likelihood":
        values = compared = after[:, source]
    elif reference == "target":
        compared = (before[:, target] - after[:, target]).clip(min=0)
    scores = np.full(len(labels), values.min() - 1.0)
    scores[inside] = values[inside]
    return Subtracted(
        source=source,
        scores=scores,
        leaves=inside & (after.argmax(1) != labels),
        reference=compared[~inside & (labels != source)],
    )


def _source_of_minority(after: FloatArray, target: int) -> int:
    """Return the class, not the target, whose log posterior is skewed most to high values.

    Few samples, the poison, then stand above the others; where most samples of the target are
    poisoned, it is another class.

    Args:
        after: (M, K) log posteriors of samples of the target, without the pattern.
        target: the class of their label.
    """
    spread, apart = after.std(0), after - after.mean(0)
    # Within float32 a constant is not one, and of rounding there is a skewness, too.
    skewness = (apart**3).mean(0) / np.where(spread > 1e-4, spread, np.inf) ** 3
    skewness[target] = -np.inf
    return int(skewness.argmax())


def _log_posteriors(
    inputs: DefenseInputs, ctx: Context, classes: int, v: torch.Tensor | None
) -> FloatArray:
    """Return the log posteriors (N, K) of the training images less `v`, clipped."""
    from raysweep import training

    images = inputs.training_set.images
    found = np.empty((len(images), classes))
    for start in range(0, len(images), AT_ONCE):
        x = as_floats(images[start : start + AT_ONCE])
        x = x if v is None else (x - v).clamp(0, 1)
        predicted = training.predict(inputs.victim, x, inputs.recipe, ctx.device)
        found[start : start + AT_ONCE] = predicted.log_softmax(1).numpy()
    return found
