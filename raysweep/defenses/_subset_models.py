"""Many small models, each trained on a part of the training set, in shards.

A. Ilyas, S. M. Park, L. Engstrom, G. Leclerc, A. Madry: Datamodels, ICML 2022, arXiv:2202.00622.
The samples that a model is trained on are drawn for its shard and its number, so that a sweep with
more models shares the whole shards of one with fewer. The recipe is the sweep's but for what is set
here: augmentation, precision and Nesterov's momentum are its own. E: models of a shard, m: of all
shards, n: training samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.defenses import Defense, DefenseInputs, FloatArray
from raysweep.defenses._datamodels import Masks, subset_masks
from raysweep.methods import load, reduction
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch

    from raysweep.methods.recipe import Recipe
    from raysweep.models import Model


class SubsetModels(Defense):
    """Trains `models` models on subsets and keeps the margins of all samples."""

    models: int = reduction(1000, ge=2, le=1_000_000, description="subset models")
    per_shard: int = Field(50, ge=1, le=10_000, description="models trained by one stage")
    alpha: float = Field(0.5, gt=0, lt=1, description="share of the set in a subset")
    base: str = Field(
        "tiny_groupnorm", description="network of the subset models, without batch normalization"
    )
    width: int = Field(16, ge=4, le=512, description="of the network, where it has one")
    epochs: int = Field(12, ge=1, le=10_000, description="of the subset models")
    batch_size: int = Field(250, ge=1, le=65_536, description="of the subset models")
    learning_rate: float = Field(0.1, gt=0, description="peak, of the subset models")

    def parts(self, num_classes: int) -> tuple[str, ...]:
        """Return blocks of models; a sweep with more of them shares these."""
        del num_classes
        starts = range(0, self.models, self.per_shard)
        return tuple(f"{start}+{min(self.per_shard, self.models - start)}" for start in starts)

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return the sample passes of training all subset models."""
        del epochs, num_classes
        return self.models * self.epochs * self.alpha * samples

    def network(self, model: Model) -> Model:
        """Return the subset models' own architecture."""
        del model
        return self._model()

    def content_digest(self) -> str:
        """Return the version above 1 of the network in `base`, and a digest of its files."""
        base = self._model()
        version = f"version {base.VERSION}" if base.VERSION > 1 else ""
        return version + base.content_digest()

    def modules(self) -> frozenset[str]:
        """Return the names of the modules of the defense and of the network in `base`."""
        return super().modules() | self._model().modules()

    def shard(self, part: str, inputs: DefenseInputs, ctx: Context) -> Arrays:
        """Train a block of models; return their masks, packed, and `_outputs`."""
        from raysweep.training import ensemble

        first, count = (int(number) for number in part.split("+"))
        masks = self._subsets(inputs, ctx, first, count)
        model, recipe = self._model(), self._recipe(inputs)
        state = ensemble.fit_many(model, inputs.training_set, masks, recipe, ctx, inputs.shape)
        return {**self._outputs(model, state, inputs, ctx), "masks": np.packbits(masks, axis=1)}

    def _subsets(self, inputs: DefenseInputs, ctx: Context, first: int, count: int) -> Masks:
        return subset_masks(
            ctx.stream("subsets"), first, count, len(inputs.training_set), self.alpha
        )

    def _outputs(
        self, model: Model, state: Mapping[str, torch.Tensor], inputs: DefenseInputs, ctx: Context
    ) -> Arrays:
        """Return the arrays that are kept of each model: `margins` (E, n), float16."""
        from raysweep.training import ensemble

        data, recipe = inputs.training_set, self._recipe(inputs)
        logits = ensemble.predict_many(model, state, data.images, recipe, ctx, inputs.shape)
        return {"margins": margins(logits.numpy(), data.labels).astype(np.float16)}

    def _model(self) -> Model:
        kind = load("models", self.base)
        given = {"width": self.width} if "width" in kind.model_fields else {}
        return kind.model_validate(given)  # type: ignore[return-value]

    def _recipe(self, inputs: DefenseInputs) -> Recipe:
        return inputs.recipe.model_copy(
            update={
                "epochs": self.epochs, "batch_size": self.batch_size, "optimizer": "sgd",
                "learning_rate": self.learning_rate, "schedule": "one_cycle", "momentum": 0.9,
                "weight_decay": 5e-4, "label_smoothing": 0.0,
            }
        )  # fmt: skip


def gathered(inputs: DefenseInputs, *names: str) -> tuple[dict[str, NDArray[Any]], Masks]:
    """Return arrays of all shards, a row for each of the m models, and the masks (m, n).

    Raises:
        ValueError: if some value is not finite.
    """
    kept = {n: np.concatenate([part[n] for part in inputs.shards]) for n in (*names, "masks")}
    masks = np.unpackbits(kept.pop("masks"), axis=1, count=len(inputs.training_set)).astype(bool)
    if not all(np.isfinite(array).all() for array in kept.values()):
        raise ValueError("a subset model's outputs are not finite; lower learning_rate")
    return kept, masks


def margins(logits_ENK: FloatArray, labels: NDArray[np.integer]) -> FloatArray:
    """Return given label's logit minus the largest other, (E, n)."""
    rows = np.arange(len(labels))
    given = logits_ENK[:, rows, labels]
    others = logits_ENK.copy()
    others[:, rows, labels] = -np.inf
    found: FloatArray = np.clip(given - others.max(-1), -60_000, 60_000)
    return found
