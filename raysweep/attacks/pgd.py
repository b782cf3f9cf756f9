"""PGD: test images take signed gradient steps, within a box around them, towards a wrong class.

A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu: Towards Deep Learning Models Resistant to
Adversarial Attacks, ICLR 2018, arXiv:1706.06083: projected gradient descent on the loss from a
random point of the L-infinity ball. Here for detectors of triggered inputs to be measured on both,
after K. Jin et al., IEEE TDSC 2022, arXiv:2006.14871.

Where we differ: it is targeted (cross-entropy of the class that the attacker wants, descended);
one start for each image, and the last step is taken whatever the victim says of it; the budget is
a whole number of levels of 255, which rounding to 8 bits then keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from raysweep.attacks._evasion import Evasion
from raysweep.datasets import IntArray
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn


class PGD(Evasion):
    """Adversarial examples within an L-infinity ball of the test images."""

    VERSION = 2
    TOY: ClassVar = {"steps": 2}

    epsilon: int = Field(8, ge=1, le=255, description="largest change of a pixel, in 1/255")
    step_size: float = Field(2.0, gt=0, le=255, description="change of a pixel a step, in 1/255")
    steps: int = Field(20, ge=1, le=100_000, description="gradient steps")
    random_start: bool = Field(True, description="start at a random point of the ball")

    def perturbed(
        self,
        network: nn.Module,
        images_BCHW: torch.Tensor,
        wanted: torch.Tensor,
        *,
        ids: IntArray,
        ctx: Context,
        recipe: Recipe,
    ) -> torch.Tensor:
        """Return the points that the descent ends at, in the ball and in [0, 1]."""
        import torch
        import torch.nn.functional as F

        del recipe
        radius, step = self.epsilon / 255, self.step_size / 255
        low, high = (images_BCHW - radius).clamp(min=0), (images_BCHW + radius).clamp(max=1)
        moved = images_BCHW
        if self.random_start:
            size = images_BCHW.shape[1:]
            drawn = [ctx.generator("start", int(one)).uniform(-1, 1, size) for one in ids]
            moved = moved + radius * torch.from_numpy(np.stack(drawn)).to(images_BCHW)
            moved = moved.clamp(low, high)
        for number in range(self.steps):
            tried = moved.detach().requires_grad_()
            loss = F.cross_entropy(network(tried).float(), wanted, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, tried)
            moved = (moved - step * gradient.sign()).clamp(low, high)
            ctx.progress((number + 1) / self.steps, "adversarial images")
        return moved
