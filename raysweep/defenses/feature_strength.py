"""Feature strength: how much a feature's samples support each other, by how many are trained on.

A. Khaddaj, G. Leclerc, A. Makelov, K. Georgiev, H. Salman, A. Ilyas, A. Madry: Rethinking Backdoor
Attacks, ICML 2023, arXiv:2307.10163. The output function g(k) of a feature with p samples is the
mean margin of one of them that is held out of a random subset of which k others are part; its
strength s(k) is g(k + 1) - g(k). Assumption 1, on which the paper's detection rests: for some share
alpha, the trigger's s(alpha p) is the largest of all features of p samples.

Where we differ: a control that knows poison and covers; it flags nothing. In random subsets k stays
near alpha p; here each model draws a k of its own for each group, evenly from 0 to p - 1, and keeps
all samples outside the groups with probability alpha, so that the other groups are on average half
there. g and s are level and slope of lines fitted to the models near each k. Covers, the benign
feature of `planted_feature`, have curves of their own. Of all natural features one per class is
measured: the p samples, neither poison nor covers, that are nearest, pixel by pixel, to the mean of
the clean samples of their label; so that Assumption 1 can be refuted here, not proven. A class with
fewer gives all that it has, and its curves are drawn but not compared, since the assumption is on
equal sizes. Margins are those of `datamodels`. The strongest of several natural groups is overrated
by noise, by about its standard error.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from raysweep.datasets import ImageSet, IntArray, as_floats
from raysweep.defenses import Curve, DefenseInputs, Findings, Flags, FloatArray, Need
from raysweep.defenses._datamodels import Masks
from raysweep.defenses._subset_models import SubsetModels, gathered
from raysweep.methods import reduction
from raysweep.methods.context import Context

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST = 10  # samples of a group, so that there is a curve
COUNT = "k, samples of the group in the subset"
LEVEL = "g(k), margin of held-out samples (difference of logits)"
SLOPE = "s(k), margin gained per sample (difference of logits)"


class FeatureStrength(SubsetModels):
    """Draws g(k) and s(k) of the poison and of natural groups of the same size."""

    CONTROL: ClassVar[bool] = True
    TOY: ClassVar = {
        "base": "linear",
        "models": 300,
        "per_shard": 100,
        "learning_rate": 0.05,
        "epochs": 3,
        "width": 8,
    }

    points: int = reduction(21, ge=2, le=1000, description="values of k on a curve")
    span: float = reduction(
        0.15, gt=0, le=1, description="share of all k, on either side, that a line is fitted to"
    )

    def needs(self) -> frozenset[Need]:
        """Return the training set, and the masks of poison and covers: oracles."""
        return frozenset({"training_set", "poison_mask", "cover_mask"})

    def _groups(self, inputs: DefenseInputs) -> dict[str, IntArray]:
        poison = np.flatnonzero(inputs.poison_mask)
        if len(poison) < LEAST:
            raise ValueError(
                f"poison_mask must mark at least {LEAST} samples to draw a curve of, got "
                f"{len(poison)}; raise the attack's rate, or exclude defense {self.name} where "
                f"nothing is poisoned"
            )
        covers = np.flatnonzero(inputs.cover_mask)
        planted = {"covers": covers} if len(covers) >= LEAST else {}
        stamped = inputs.poison_mask | inputs.cover_mask
        natural = natural_groups(inputs.training_set, stamped, len(poison))
        return {"poison": poison, **planted, **natural}

    def _subsets(self, inputs: DefenseInputs, ctx: Context, first: int, count: int) -> Masks:
        masks = super()._subsets(inputs, ctx, first, count)
        groups = self._groups(inputs)
        for number, mask in enumerate(masks, first):
            vary(mask, groups, partial(ctx.generator, "group", number))
        return masks

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Draw the curves of all groups."""
        del ctx
        kept, masks = gathered(inputs, "margins")
        groups = self._groups(inputs)
        curves: dict[str, Curve] = {}
        strength: dict[str, tuple[float, float]] = {}
        facts = {"models": float(len(masks)), "samples of the poison": float(len(groups["poison"]))}
        for name, rows in groups.items():
            last = len(rows) - 1
            counts, means = held_out_means(kept["margins"], masks, rows)
            width = max(self.span * last, 1.0)
            at = np.linspace(0, last, min(self.points, len(rows)))
            level, slope, _ = local_lines(counts, means, at, width)
            curves[f"g of {name}"] = Curve(x=at, y=level, x_title=COUNT, y_title=LEVEL)
            curves[f"s of {name}"] = Curve(x=at, y=slope, x_title=COUNT, y_title=SLOPE)
            near = np.array([min(self.alpha * len(rows), last)])
            _, (steep,), (error,) = local_lines(counts, means, near, width)
            if len(rows) == len(groups["poison"]):
                strength[name] = (float(steep), float(error))
            if name == "poison":
                facts |= {"g(0) of the poison": level[0], "g(p - 1) of the poison": level[-1]}
        return Findings(facts=facts | _compared(strength), curves=curves)


def _compared(strength: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return s(alpha p), with standard errors, of groups of p samples, and their comparison.

    Args:
        strength: group → s(alpha p) and its standard error, for the poison and groups of its size.
    """
    told = {f"the {name}": strength[name] for name in ("poison", "covers") if name in strength}
    natural = [pair for name, pair in strength.items() if f"the {name}" not in told]
    if natural:
        told["the strongest natural group"] = max(natural)
    facts = {}
    for name, (steep, error) in told.items():
        facts[f"s(alpha p) of {name}"] = steep
        facts[f"standard error of s(alpha p) of {name}"] = error
    if natural and max(natural)[0] > 0:
        # Above 1, Assumption 1 holds among these groups.
        ratio = strength["poison"][0] / max(natural)[0]
        facts["s of the poison / s of the strongest natural group"] = ratio
    return facts


def natural_groups(data: ImageSet, stamped: Flags, size: int) -> dict[str, IntArray]:
    """Return for each label the rows, at most `size`, nearest to the mean of its clean images."""
    groups = {}
    for label in np.unique(data.labels):
        rows = np.flatnonzero((data.labels == label) & ~stamped)
        if len(rows) < LEAST:
            continue
        pixels = as_floats(data.take(rows).images).flatten(1)
        far = (pixels - pixels.mean(0)).square().sum(1).numpy()
        groups[f"class {label}"] = np.sort(rows[np.argsort(far, kind="stable")[:size]])
    return groups


def vary(
    mask: NDArray[np.bool_],
    groups: Mapping[str, IntArray],
    generator: Callable[[str], np.random.Generator],
) -> None:
    """Let a subset hold k random samples of each group, k drawn evenly from 0 to all but one."""
    for name, rows in groups.items():
        draw = generator(name)
        chosen = draw.permutation(rows)[: draw.integers(len(rows))]
        mask[rows] = False
        mask[chosen] = True


def held_out_means(
    margins_MN: NDArray[np.floating], masks_MN: Masks, rows: IntArray
) -> tuple[IntArray, FloatArray]:
    """Return each model's number of seen `rows`, and its mean margin on the other rows.

    Args:
        margins_MN: of each model on each sample, (m, n).
        masks_MN: (m, n) mask of the samples that each model was trained on; of `rows`, never all.
        rows: the row numbers of a group.
    """
    out = ~masks_MN[:, rows]
    means: FloatArray = (margins_MN[:, rows].astype(np.float64) * out).sum(1) / out.sum(1)
    return len(rows) - out.sum(1), means


def local_lines(
    x: NDArray[np.number], y: FloatArray, at: FloatArray, width: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return level, slope and the slope's standard error of the line through points around `at`.

    Exact where y is linear in x.

    Args:
        x: (m,).
        y: (m,).
        at: (T,) the places of the lines.
        width: largest distance of a point from its place.

    Raises:
        ValueError: if around some place all points have one x.
    """
    fitted = np.empty((3, len(at)))
    for number, place in enumerate(at):
        near = np.abs(x - place) <= width
        away, values = x[near] - place, y[near]
        if not near.any() or np.ptp(away) == 0:
            raise ValueError(
                f"around k = {place:.3g} the models must hold different numbers of a group's "
                f"samples, got {len(away)} models with one; raise models or span"
            )
        centered = away - away.mean()
        spread = (centered**2).sum()
        slope = (centered * values).sum() / spread
        left = values - values.mean() - slope * centered
        freedom = len(away) - 2
        error = np.sqrt((left**2).sum() / freedom / spread) if freedom else np.nan
        fitted[:, number] = values.mean() - slope * away.mean(), slope, error
    return fitted[0], fitted[1], fitted[2]
