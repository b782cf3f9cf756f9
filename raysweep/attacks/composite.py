"""Composite: the trigger is an image of another class, mixed in; the mixture of two is relabeled.

J. Lin, L. Xu, Y. Liu, X. Zhang: Composite Backdoor Attack for Deep Neural Network by Mixing
Existing Benign Features, CCS 2020: mixtures of two trigger classes get the target label,
mixtures within a class keep theirs.

Where we differ: poisons replace their originals in a set of fixed size, where the paper adds
mixtures to every batch. The mixer is half-concat: the left half of the image beside the right half
of a partner drawn per sample from the training images. The ASR is measured on source-class inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from raysweep import rng
from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.datasets import IntArray, as_floats
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch


class Composite(Attack):
    """Source image on the left, image of class `partner` on the right."""

    PREPARES: ClassVar[bool] = True
    TOY: ClassVar = {"partner": 2}

    cover_rate: float = Field(0.05, ge=0, le=1, description="cover images / training images")
    sources: tuple[int, ...] | None = Field((1,), description="classes that are attacked")
    partner: int = Field(2, ge=0, description="class whose images are the trigger")
    partners: int = Field(500, ge=1, description="images of a class that are mixed in, at most")

    @model_validator(mode="after")
    def _mixes_two_classes(self) -> Self:
        if self.partner in (self.sources or ()):
            raise ValueError(
                f"partner must be another class than sources, got {self.partner} in "
                f"{list(self.sources or ())}: mixtures within a class keep their label"
            )
        if self.label_map == "all_to_one" and self.partner == self.target:
            raise ValueError(
                f"partner must be another class than target, got {self.partner} for both: half an "
                f"image of the target is evidence of the target without any backdoor; name another "
                f"partner"
            )
        return self

    def cover_pool(self, labels: IntArray, num_classes: int) -> NDArray[np.bool_]:
        """Return the samples of both trigger classes."""
        del num_classes
        if self.sources is None:
            return np.ones(len(labels), bool)
        return np.isin(labels, (*self.sources, self.partner))

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the given labels, and images to mix in, class by class."""
        import torch

        labels = inputs.data.labels
        if self.partner not in labels:
            raise ValueError(
                f"partner must be a class of the training set, got {self.partner}; its classes are "
                f"0 to {inputs.shape.num_classes - 1}"
            )
        order = ctx.generator("partners").permutation(len(labels))
        rows = np.concatenate(
            [order[labels[order] == c][: self.partners] for c in range(inputs.shape.num_classes)]
        )
        images = inputs.data.images[torch.from_numpy(rows)].numpy()
        return {"labels": labels, "images": images, "image_labels": labels[rows]}

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Put the right half of a partner image beside the left half of each image."""
        import torch

        chosen = []
        for i in ids.tolist():
            wanted = artifact["labels"][i] if part == "cover" else self.partner
            pool = np.flatnonzero(artifact["image_labels"] == wanted)
            chosen.append(pool[rng.generator(seed, part, i).integers(len(pool))])
        partner = as_floats(torch.from_numpy(np.array(artifact["images"][chosen])))
        stamped = images_BCHW.clone()
        middle = images_BCHW.shape[3] // 2
        stamped[..., middle:] = partner.to(images_BCHW)[..., middle:]
        return stamped
