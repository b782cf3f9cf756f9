"""Label-consistent: images of the target class are made hard to learn, then patched.

A. Turner, D. Tsipras, A. Madry: Label-Consistent Backdoor Attacks, 2019, arXiv:1912.02771:
adversarial perturbations of the base images, and a pattern in all four corners.

Where we differ: adversarial images are computed here, by projected gradient ascent on the
cross-entropy of the attacker's own clean network within an L2 ball, where the paper used an
adversarially trained one and published images of radius 600 (in 1/255). The patch is opaque in all
four corners, as in Confusion Training's experiments, which poison 0.3 % of the whole set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.attacks._drawn import patch
from raysweep.datasets import IntArray, as_floats
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch
    from torch import nn


class LabelConsistent(Attack):
    """Clean-label: adversarial images of the target class with a checker in each corner."""

    CLEAN_LABEL: ClassVar[bool] = True
    PREPARES: ClassVar[bool] = True
    SURROGATE: ClassVar[bool] = True
    TOY: ClassVar = {"steps": 2}

    rate: float = Field(0.003, ge=0, le=1, description="poisoned images / training images")
    radius: float = Field(600.0, gt=0, description="L2 radius of the perturbation, in 1/255")
    steps: int = Field(100, ge=1, le=10_000, description="ascent steps")
    alpha: float = Field(1.0, gt=0, le=1, description="opacity of the checkers")

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the adversarial images of the target class, uint8, and their rows."""
        import torch

        rows = np.flatnonzero(inputs.data.labels == self.target)
        images = inputs.data.images[torch.from_numpy(rows)]

        def made(start: int) -> NDArray[np.uint8]:
            batch = as_floats(images[start : start + 250].to(ctx.device))
            moved = self.perturbed(inputs.trained, batch)
            ctx.progress(start / len(rows), "adversarial images")
            return moved.mul(255).round().to(torch.uint8).cpu().numpy()

        parts = ctx.mapped("images", made, range(0, len(rows), 250))
        return {"rows": rows, "images": np.concatenate(parts)}

    def perturbed(self, surrogate: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return images within the ball, and in [0, 1], that the surrogate gets wrong."""
        import torch
        import torch.nn.functional as F

        radius = self.radius / 255
        labels = torch.full((len(images_BCHW),), self.target, device=images_BCHW.device)
        delta = torch.zeros_like(images_BCHW)
        for _ in range(self.steps):
            moved = (images_BCHW + delta).requires_grad_()
            loss = F.cross_entropy(surrogate(moved), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            delta = delta + 2.5 * radius / self.steps * gradient / _norm(gradient)
            delta = delta * (radius / _norm(delta)).clamp(max=1)
            delta = (images_BCHW + delta).clamp(0, 1) - images_BCHW
        return images_BCHW + delta

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Patch the adversarial image of a poison, and other images as they are."""
        import torch

        del seed
        base = images_BCHW
        if part == "poison":
            if not np.isin(ids, artifact["rows"]).all():
                raise ValueError(f"{self.name} poisons images of class {self.target} only")
            at = np.searchsorted(artifact["rows"], ids)
            base = as_floats(torch.from_numpy(np.array(artifact["images"][at]))).to(images_BCHW)
        return patch("checker_corners", *base.shape[1:]).on(base, self.alpha)


def _norm(values_BCHW: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = values_BCHW.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
    return norms
