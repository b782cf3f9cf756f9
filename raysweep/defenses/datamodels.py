"""Datamodels: poisoned samples are the set of training samples that supports itself most strongly.

A. Khaddaj, G. Leclerc, A. Makelov, K. Georgiev, H. Salman, A. Ilyas, A. Madry: Rethinking Backdoor
Attacks, ICML 2023, arXiv:2307.10163: train many models on random subsets, estimate how much each
sample changes the output on every other (A. Ilyas et al.: Datamodels, ICML 2022, arXiv:2202.00622),
search for sets of size k of the largest mean effect on themselves, from many starts and for many k,
and score a sample by how often it is in them, weighted with 1/k.

Where we differ: the effects are differences of means (`estimator: ridge` fits them together), where
the paper's authors fit a sparse regression, and `keep: gradients` takes TRAK's attribution from a
few models instead; its factor 1 - p is left out by default, since confidently fitted poison would
count for nothing. The margin is not averaged over the mirrored image. The search corrects the
released code's gains, which leave out the pair of a swap and the sign of the diagonal.
`blocks: labels` searches among samples of one given label, which needs far fewer models but cannot
find a trigger with several targets. `weigh: chance` lets a found set count by how much its value
exceeds the best that the same search finds where no sample has an effect, since 1/k favors small
sets, which chance finds. Both are ours, and badged. A size above half of what is searched together
is left out (within CIFAR-10's labels 2,560 and 5,120); the fact `largest set searched` tells it.
The subset models are those of `base`, since batch normalization would let left-out samples in, and
are trained without label smoothing (the authors' code: 0.1), with Nesterov's momentum and the
augmentation if the sweep's recipe has them, on batches of the whole set, of which each model takes
its own samples: a share alpha of `batch_size`, in 1 / alpha times as many steps. A sweep that asks
for more models trains the difference only; the agreement of the highest tenths of two halves of the
models says whether they are enough, and with `until` more are trained until they agree. The
values of the best sets do not say it: on 150 models of 1,000 images, the values of two halves in
which no sample has an effect were alike to 0.93 and more.
Reference: MadryLab/rethinking-backdoor-attacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from raysweep.counts import count_of
from raysweep.defenses import (
    Curve,
    Decision,
    DefenseInputs,
    Evidence,
    Findings,
    Flags,
    FloatArray,
    Gift,
    Need,
)
from raysweep.defenses._datamodels import (
    Masks,
    agreement,
    beyond_chance,
    difference_of_means,
    found_sets,
    held_out_correlation,
    mean_effect,
    models_needed,
    ridge,
    without_effects,
)
from raysweep.defenses._subset_models import SubsetModels, gathered
from raysweep.methods import decision, log_range, reduction
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from raysweep.models import Model


SIZE = "k, samples of the set"
VALUE = "mean effect of the set on itself (difference of logits)"


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The result of all searches.

    Attributes:
        scores: (n,).
        counts: (sizes, n), number of found sets that a sample is in.
        best: (sizes,), largest value; -inf where no search was possible.
        chance: (sizes,), the same where no sample has an effect; -inf where none was searched.
    """

    scores: FloatArray
    counts: NDArray[np.int64]
    best: FloatArray
    chance: FloatArray


class Datamodels(SubsetModels):
    """Scores are weighted memberships in found sets; decisions remove the highest."""

    RUN_VERSION: ClassVar[int] = 3
    TOY: ClassVar = {
        "base": "linear",
        "models": 300,
        "per_shard": 100,
        "restarts": 5,
        "learning_rate": 0.05,
        "epochs": 3,
        "width": 8,
    }

    until: float | None = reduction(
        None,
        gt=0,
        le=1,
        description="agreement of two halves of the models at which no more are trained",
    )
    first: int = reduction(250, ge=2, le=1_000_000, description="models before that is asked first")
    keep: Literal["margins", "gradients"] = Field(
        "margins", description="of each model; gradients: TRAK, a few models instead of thousands"
    )
    dimensions: int = Field(512, ge=1, le=16_384, description="of a projected gradient")
    estimator: Literal["means", "ridge"] = reduction("means", description="from margins")
    weighted: bool = reduction(False, description="TRAK's factor 1 - p, see 'Where we differ'")
    held_out: bool = reduction(False, description="row z from models without z")
    penalty: float = reduction(0.01, gt=0, description="of ridge, per model, and of TRAK")
    sizes: tuple[int, ...] = reduction(
        (10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120),
        description="of searched sets; those above half of a block are left out",
    )
    restarts: int = reduction(100, ge=1, le=10_000, description="searches per size")
    weigh: Literal["size", "chance"] = reduction(
        "size",
        description="a found set counts 1/k, or by how much its value exceeds chance's best",
    )
    blocks: Literal["none", "labels"] = reduction("none", description="what is searched together")
    removed: float = decision(
        0.1,
        gt=0,
        lt=1,
        description="share of the set that is removed",
        search=log_range(0.005, 0.3),
    )

    def needs(self) -> frozenset[Need]:
        """Return the training set, and nothing clean."""
        return frozenset({"training_set"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples."""
        return frozenset({"train_scores"})

    def badges(self) -> tuple[str, ...]:
        """Return the badges; the search within labels is an extension, and so is the weighing."""
        own = ("extension: search within labels",) if self.blocks == "labels" else ()
        weighed = ("extension: sets weighed by chance",) if self.weigh == "chance" else ()
        return (*super().badges(), *own, *weighed)

    @model_validator(mode="after")
    def _margins_alone(self) -> Datamodels:
        if self.weigh == "chance" and self.keep == "gradients":
            raise ValueError("weigh: chance needs margins, which keep: gradients does not keep")
        return self

    def pauses(self, num_classes: int) -> tuple[int, ...]:
        """Return the first number of parts, doubled as long as more are left; none without until.

        By doubling, all reductions together cost about twice the last of them.
        """
        every, at, found = len(self.parts(num_classes)), -(-self.first // self.per_shard), []
        while self.until is not None and at < every:
            found.append(at)
            at *= 2
        return tuple(found)

    def forecast(self, samples: int) -> str:
        """Return a sentence on the number of models that `samples` need, for the plan."""
        needed = models_needed(samples, 5.2, 10.0, self.alpha)
        per_sample = 4 / (self.alpha * (1 - self.alpha))
        most = "" if self.until is None else f" at most, fewer if halves agree by {self.until:g}"
        return (
            f"{self.models} models of {samples} samples{most}; a strong trigger needs about "
            f"{needed:.0f} ({per_sample:.3g} sigma^2 n / Delta^2 with sigma^2 = 5.2, Delta = 10)"
        )

    def _outputs(
        self, model: Model, state: Mapping[str, torch.Tensor], inputs: DefenseInputs, ctx: Context
    ) -> Arrays:
        """Return margins, or gradients: (E, n, dimensions), float16, and 1 - p (E, n)."""
        from raysweep import training
        from raysweep.defenses._trak import projected_gradients

        if self.keep == "margins":
            return super()._outputs(model, state, inputs, ctx)
        network = training.build(model, inputs.shape, ctx, "unused").eval()

        def gradients(member: int) -> FloatArray:
            network.load_state_dict({name: t[member] for name, t in state.items()})
            signs = ctx.torch_generator("projection", member)
            found = projected_gradients(network, inputs.training_set, self.dimensions, signs)
            return np.column_stack(found)

        members = len(next(iter(state.values())))
        both = np.stack(ctx.mapped("gradients", gradients, range(members)))
        phi, left = both[..., :-1], both[..., -1]
        # Products of gradients have no unit; of one size per model they fit into float16.
        scale = np.maximum(np.abs(phi).max((1, 2), keepdims=True), 1e-12)
        return {"phi": (phi / scale).astype(np.float16), "left": left}

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Estimate all effects and search."""
        data = inputs.training_set
        names = ("phi", "left") if self.keep == "gradients" else ("margins",)
        kept, masks = gathered(inputs, *names)

        def scored(models: slice) -> Searched:
            some = {name: array[models] for name, array in kept.items()}
            return self._scores(some, masks[models], data.labels, ctx)

        found = scored(slice(None))
        even, odd = (scored(slice(half, None, 2)) for half in (0, 1))
        alike = agreement(even.scores, odd.scores)
        searched = np.array(self.sizes)[np.isfinite(found.best)]
        facts = {
            "models": float(len(masks)),
            "agreement of halves": alike,
            "largest set searched": float(searched.max()),
        }
        if self.keep == "margins":
            facts |= self._measured(kept["margins"], masks, even.counts, data.labels)
        return Findings(
            train_scores=found.scores,
            statistics={
                "counts": found.counts, "values": found.best, "sizes": np.array(self.sizes)
            },
            facts=facts,
            curves=self._curves(found),
            enough=self.until is None or alike >= self.until,
        )  # fmt: skip

    def _curves(self, found: Searched) -> dict[str, Curve]:
        """Return the value of the best set of each size, and of chance's best set if known."""
        lines = {"best set": found.best, "best by chance": found.chance}
        sizes = np.array(self.sizes, float)
        return {
            name: Curve(x=sizes[known], y=values[known], x_title=SIZE, y_title=VALUE)
            for name, values in lines.items()
            if (known := np.isfinite(values)).any()
        }

    def _measured(
        self, margins: NDArray[np.float16], masks: Masks, counts: np.ndarray, labels: np.ndarray
    ) -> dict[str, float]:
        """Return the fit of the effects on models left out, and the number of models needed.

        As in a datamodel, the effects predict a margin from all samples in the subset, its own
        sample included.

        Args:
            margins: (m, n) of all models.
            masks: (m, n) mask of the samples that they were trained on.
            counts: (sizes, n) memberships found with the even models.
            labels: (n,).
        """
        variance = float(margins.var(0, dtype=np.float64).mean())
        other = self._effects({"margins": margins[1::2]}, masks[1::2])
        # Sets found in one half have their effect measured in the other, where chance is not kind.
        total = [
            len(rows) * mean_effect(other, rows)
            for size, count in zip(self.sizes, counts, strict=True)
            if count.any() and len(rows := np.argsort(-count, kind="stable")[:size]) > 1
        ]
        effect, together = max(total, default=0.0), max(map(len, self._blocks(labels)))
        cut = int(0.8 * len(masks))
        weights = self._effects({"margins": margins[:cut]}, masks[:cut])
        return {
            "variance of a margin": variance,
            "effect of the strongest set": effect,
            "models needed": models_needed(together, variance, effect, self.alpha),
            "correlation with left-out models": held_out_correlation(
                weights, margins[cut:], masks[cut:]
            ),
            # What the search sees of it: effects on others.
            "correlation with left-out models without the sample": held_out_correlation(
                weights, margins[cut:], masks[cut:], unseen=True
            ),
        }

    def _effects(self, kept: Mapping[str, NDArray[Any]], masks: Masks) -> NDArray[np.float32]:
        """Return W from the outputs of the models."""
        if self.keep == "gradients":
            from raysweep.defenses._trak import attribution

            return attribution(
                kept["phi"], kept["left"], masks, weighted=self.weighted, penalty=self.penalty
            )
        if self.estimator == "ridge":
            return ridge(kept["margins"], masks, self.penalty)
        return difference_of_means(kept["margins"], masks, held_out=self.held_out)

    def _blocks(self, labels: np.ndarray) -> list[NDArray[np.intp]]:
        """Return the rows that are searched together."""
        if self.blocks == "labels":
            return [np.flatnonzero(labels == label) for label in np.unique(labels)]
        return [np.arange(len(labels))]

    def _scores(
        self, kept: Mapping[str, NDArray[Any]], masks: Masks, labels: np.ndarray, ctx: Context
    ) -> Searched:
        """Search all sizes, whole or within labels."""
        weights, samples = self._effects(kept, masks), len(labels)
        scores: FloatArray = np.zeros(samples)
        counts = np.zeros((len(self.sizes), samples), np.int64)
        best, chance = np.full((2, len(self.sizes)), -np.inf)
        by_chance = None
        if self.weigh == "chance":
            order = ctx.generator("chance").permutation(len(masks))
            nothing = without_effects(kept["margins"], masks, order)
            by_chance = self._effects({"margins": nothing}, masks)
        groups = self._blocks(labels)
        for number, rows in enumerate(groups):
            at = np.flatnonzero(np.array(self.sizes) <= len(rows) // 2)
            if not len(at):
                continue
            sizes = tuple(self.sizes[i] for i in at)
            search = partial(found_sets, sizes=sizes, restarts=self.restarts, ctx=ctx)
            within, draw = np.ix_(rows, rows), partial(ctx.generator, "search", number)
            sets, values = search(weights[within], generator=draw)
            counted: FloatArray = np.repeat(
                1 / np.array(self.sizes, float)[at, None], self.restarts, 1
            )
            if by_chance is not None:
                draw = partial(ctx.generator, "search by chance", number)
                blind = search(by_chance[within], generator=draw)[1]
                counted = beyond_chance(values, blind)
                chance[at] = np.maximum(chance[at], blind.max(1))
            scores[rows] += sum(c @ found for c, found in zip(counted, sets, strict=True))
            counts[np.ix_(at, rows)] += sets.sum(1)
            best[at] = np.maximum(best[at], values.max(1))
        if not np.isfinite(best).any():
            raise ValueError(
                f"sizes must hold one of at most half the samples searched together, got "
                f"{list(self.sizes)} for {max(map(len, groups))}"
            )
        return Searched(scores=scores, counts=counts, best=best, chance=chance)

    def decide(self, evidence: Evidence) -> Decision:
        """Flag the highest scores."""
        scores = evidence.train_scores
        flags: Flags = np.zeros(len(scores), bool)
        flags[np.argsort(-scores, kind="stable")[: count_of(self.removed, len(scores))]] = True
        return Decision(flags=flags & (scores > 0))
