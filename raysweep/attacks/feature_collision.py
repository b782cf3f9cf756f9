"""Feature collision: target-class images that lie where stamped images lie in feature space.

A. Shafahi, W. R. Huang, M. Najibi, O. Suciu, C. Studer, T. Dumitras, T. Goldstein: Poison Frogs!
Targeted Clean-Label Poisoning Attacks on Neural Networks, NeurIPS 2018, arXiv:1804.00792: minimize
|f(x) - f(t)|^2 + beta |x - b|^2 by forward-backward steps, from a base b with a watermark of t.

Where we differ: the paper misclassifies one test image t. For a success rate over inputs, as the
comparison of Anti-Backdoor Learning has it, each poison collides with an image of another class
that carries a patch, and test inputs carry the patch (as in A. Saha et al., AAAI 2020,
arXiv:1910.00033). f is the input of the head of the attacker's own clean network. The paper's
watermark of 30 % is for trainings from scratch, which these are: it is of the patched image, so
that the patch shows in each poison at that opacity, which a fact tells. `watermark: 0` hides it, as
A. Saha et al. do, who poison a network that is fine-tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.attacks._drawn import PatchName, patch
from raysweep.attacks._latent import head_inputs
from raysweep.datasets import IntArray, as_floats
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch


class FeatureCollision(Attack):
    """Clean-label: collided images of the target class train, a patch attacks."""

    CLEAN_LABEL: ClassVar[bool] = True
    PREPARES: ClassVar[bool] = True
    SURROGATE: ClassVar[bool] = True
    VERSION = 2
    TOY: ClassVar = {"steps": 2}

    pattern: PatchName = Field("square", description="patch of the collision's images, see _drawn")
    watermark: float = Field(0.3, ge=0, lt=1, description="opacity of t, patch included, in b")
    steps: int = Field(100, ge=1, le=10_000, description="forward-backward steps")
    step_size: float = Field(0.01, gt=0, description="of the forward step, in pixel units")
    beta: float = Field(0.25, ge=0, description="weight of the distance to the base image")

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the collided images of the target class, uint8, and their rows."""
        import torch

        labels = inputs.data.labels
        rows, others = np.flatnonzero(labels == self.target), np.flatnonzero(labels != self.target)
        partners = ctx.generator("partners").choice(others, len(rows))

        def made(start: int) -> NDArray[np.uint8]:
            cut = slice(start, start + 250)
            base, source = (
                as_floats(inputs.data.images[torch.from_numpy(chosen[cut])].to(ctx.device))
                for chosen in (rows, partners)
            )
            moved = self.collided(inputs, base, self._patched(source))
            ctx.progress(start / len(rows), "collisions")
            return moved.mul(255).round().to(torch.uint8).cpu().numpy()

        parts = ctx.mapped("images", made, range(0, len(rows), 250))
        return {"rows": rows, "images": np.concatenate(parts)}

    def facts(self, inputs: AttackInputs, artifact: Arrays) -> Mapping[str, float]:
        """Return the opacity at which the patch shows in the poison."""
        import torch

        base, poison = (
            as_floats(torch.from_numpy(np.array(images)))
            for images in (inputs.data.images.numpy()[artifact["rows"]], artifact["images"])
        )
        if not len(base):
            return {}
        way = self._patched(base) - base
        opacity = ((poison - base) * way).sum() / way.square().sum()
        return {"opacity of the patch in poisoned images": float(opacity)}

    def collided(
        self, inputs: AttackInputs, base_BCHW: torch.Tensor, wanted_BCHW: torch.Tensor
    ) -> torch.Tensor:
        """Return images near `base` whose features are near the features of `wanted`."""
        import torch

        network, head = inputs.trained, inputs.model.HEAD
        with torch.no_grad():
            goal = head_inputs(network, head, wanted_BCHW).float()
        base = base_BCHW + self.watermark * (wanted_BCHW - base_BCHW)
        moved = base
        for _ in range(self.steps):
            tried = moved.detach().requires_grad_()
            apart = (head_inputs(network, head, tried).float() - goal).square().sum(1)
            (gradient,) = torch.autograd.grad(apart.sum(), tried)
            # Features have no unit: the step is scaled by the gradient's largest entry per image.
            largest = gradient.flatten(1).abs().amax(1).clamp(min=1e-12).view(-1, 1, 1, 1)
            forward = moved - self.step_size * gradient / largest
            pull = self.step_size * self.beta
            moved = ((forward + pull * base) / (1 + pull)).clamp(0, 1)
        return moved.detach()

    def _patched(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return patch(self.pattern, *images_BCHW.shape[1:]).on(images_BCHW, 1.0)

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Return a poison's collided image; patch other images."""
        import torch

        del seed
        if part != "poison":
            return self._patched(images_BCHW)
        if not np.isin(ids, artifact["rows"]).all():
            raise ValueError(f"{self.name} poisons images of class {self.target} only")
        at = np.searchsorted(artifact["rows"], ids)
        return as_floats(torch.from_numpy(np.array(artifact["images"][at]))).to(images_BCHW)
