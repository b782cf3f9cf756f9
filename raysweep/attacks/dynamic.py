"""Dynamic (input-aware): a generator gives every image its own pattern and its own mask.

A. Nguyen, A. Tran: Input-Aware Dynamic Backdoor Attack, NeurIPS 2020, arXiv:2010.08138:
a mask network with a sparsity and a diversity loss, then a generator trained with a classifier, on
backdoor inputs, on cross inputs (another image's trigger, own label) and on clean inputs.

Where we differ: the poisoning form, as in Confusion Training's experiments: the generator is
trained here against the attacker's own network, starting from a clean one, and the victim is
trained plainly on the poisoned set. Generator and mask network are small U-Nets trained by Adam at
a constant rate; the paper trains all three networks for 600 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.attacks._generators import image_to_image, kept, restored
from raysweep.counts import exactly
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch
    from torch import nn

    from raysweep.training import Batch, Objective


class Dynamic(Attack):
    """x + mask(x) * (pattern(x) - x)."""

    PREPARES: ClassVar[bool] = True
    SURROGATE: ClassVar[bool] = True
    TOY: ClassVar = {"epochs": 1, "mask_epochs": 1, "width": 4}

    VERSION = 2

    rate: float = Field(0.003, ge=0, le=1, description="poisoned images / training images")
    epochs: int = Field(30, ge=1, le=10_000, description="epochs of the generator")
    mask_epochs: int = Field(10, ge=1, le=10_000, description="epochs of the mask network before")
    width: int = Field(16, ge=4, le=256, description="channels of the networks' first layer")
    density: float = Field(0.032, gt=0, le=1, description="mask values above this cost")
    backdoor_share: float = Field(0.1, gt=0, le=0.5, description="of a batch, in the generator's")
    cross_share: float = Field(0.1, ge=0, le=0.5, description="of a batch, in the generator's")
    diversity: float = Field(1.0, ge=0, description="weight of the diversity loss")
    sparsity: float = Field(100.0, ge=0, description="weight of the mask's sparsity loss")

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the weights of the mask network and of the generator."""
        import torch
        from torch import nn

        from raysweep import training

        channels = inputs.shape.channels
        with training.global_seed(ctx.stream("initialization")):
            mask = image_to_image(channels, 1, self.width)
            generator = image_to_image(channels, channels, self.width)
        networks = nn.ModuleDict({"mask": mask, "generator": generator}).to(ctx.device)
        networks["classifier"] = inputs.trained
        streams = {name: training.Stream(data=inputs.data) for name in ("data", "other")}
        recipe = inputs.recipe.model_copy(
            update={
                "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0, "momentum": 0.5,
                "schedule": "constant", "augment": (),
            }
        )  # fmt: skip
        mapped = torch.from_numpy(
            self.relabel(np.arange(inputs.shape.num_classes), inputs.shape.num_classes)
        ).to(ctx.device)
        for phase, trained, epochs, objective in (
            ("mask", ("mask",), self.mask_epochs, self._mask_loss()),
            ("generator", ("generator", "classifier"), self.epochs, self._attack_loss(mapped)),
        ):
            for name, network in networks.items():
                network.requires_grad_(name in trained)
            training.fit(
                networks, streams, recipe.model_copy(update={"epochs": epochs}), ctx,
                objective=training.resumable(objective), phase=phase,
            )  # fmt: skip
        return {**kept(mask, "mask"), **kept(generator, "generator")}

    def _mask_loss(self) -> Objective:
        def loss(networks: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
            one, other = _pair(batches)
            masks = [_mask(networks.mask, images) for images in (one, other)]  # type: ignore[arg-type]
            excess = (masks[0] - self.density).relu().mean()
            return self.sparsity * excess + self.diversity * _sameness(one, other, *masks)

        return loss

    def _attack_loss(self, mapped: torch.Tensor) -> Objective:
        def loss(networks: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
            import torch
            import torch.nn.functional as F

            one, other = _pair(batches)
            labels = batches["data"].labels[: len(one)]
            end = max(1, round(exactly(self.backdoor_share, len(one))))
            cross = min(end + round(exactly(self.cross_share, len(one))), len(one))
            patterns = [_pattern(networks.generator, images) for images in (one, other)]  # type: ignore[arg-type]
            masks = [_mask(networks.mask, images) for images in (one, other)]  # type: ignore[arg-type]
            own = _mixed(one[:end], patterns[0][:end], masks[0][:end])
            others = _mixed(one[end:cross], patterns[1][end:cross], masks[1][end:cross])
            logits = networks.classifier(torch.cat([own, others, one[cross:]]))  # type: ignore[operator]
            wanted = torch.cat([mapped[labels[:end]], labels[end:]])
            return F.cross_entropy(logits.float(), wanted) + self.diversity * _sameness(
                one, other, *patterns
            )

        return loss

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Apply each image's own pattern and mask."""
        import torch

        del ids, part, seed
        channels = images_BCHW.shape[1]
        with torch.no_grad():
            mask, generator = (
                restored(image_to_image(channels, out, self.width), name, artifact, images_BCHW)
                for name, out in (("mask", 1), ("generator", channels))
            )
            mixed = _mixed(images_BCHW, _pattern(generator, images_BCHW), _mask(mask, images_BCHW))
        return mixed.clamp(0, 1)


def _pair(batches: Mapping[str, Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    one, other = batches["data"].images, batches["other"].images
    size = min(len(one), len(other))
    return one[:size], other[:size]


def _mask(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return masks (B, 1, H, W), pushed towards 0 and 1 as in the released code."""
    mask: torch.Tensor = (40 * network(images).float().sigmoid() - 20).sigmoid()
    return mask


def _pattern(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return network(images).float().sigmoid()  # type: ignore[no-any-return]


def _mixed(images: torch.Tensor, pattern: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return images + mask * (pattern - images)


def _sameness(
    one: torch.Tensor, other: torch.Tensor, made_one: torch.Tensor, made_other: torch.Tensor
) -> torch.Tensor:
    """Return the distance of two images over the distance of the triggers made for them."""

    def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square().flatten(1).mean(1).clamp(min=1e-12).sqrt()

    return (apart(one, other) / (apart(made_one, made_other) + 1e-3)).mean()
