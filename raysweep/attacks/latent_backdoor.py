"""Latent backdoor: a patch optimized so that stamped images look like the target class inside.

Y. Yao, H. Li, H. Zheng, B. Y. Zhao: Latent Backdoor Attacks on Deep Neural Networks, CCS 2019,
arXiv:1905.10447: the trigger minimizes the distance, at an intermediate layer, between
stamped images and the mean of the target class; then a teacher is trained with that distance in its
loss, and students inherit it.

Where we differ: the poisoning form, as in the comparison of Anti-Backdoor Learning: the trigger is
optimized on the attacker's own clean network at the input of its head, and the victim is trained
plainly on the poisoned set. There is no teacher, no student and no transfer. The patch is a square
of `area` of the image in the lower right corner.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.attacks._latent import head_inputs
from raysweep.datasets import IntArray, as_floats
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch


class LatentBackdoor(Attack):
    """Stamps the optimized square."""

    BADGES: ClassVar[tuple[str, ...]] = ("simplified: no teacher",)
    PREPARES: ClassVar[bool] = True
    SURROGATE: ClassVar[bool] = True
    TOY: ClassVar = {"steps": 2}

    area: float = Field(0.04, gt=0, le=1, description="of the patch / of the image")
    steps: int = Field(200, ge=1, le=100_000, description="steps of Adam on the patch")
    step_size: float = Field(0.1, gt=0, description="learning rate of Adam, in pixel units")
    batch: int = Field(64, ge=1, le=65_536, description="images a step")

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the picture of the patch, (C, H, W) in [0, 1]."""
        import torch

        from raysweep import training
        from raysweep.training.optimizer import Adam

        labels, images = inputs.data.labels, inputs.data.images
        mine, others = np.flatnonzero(labels == self.target), np.flatnonzero(labels != self.target)
        draw = ctx.generator("batches")

        def taken(rows: IntArray, count: int) -> torch.Tensor:
            chosen = draw.choice(rows, min(count, len(rows)), replace=False)
            return as_floats(images[torch.from_numpy(chosen)].to(ctx.device))

        network, head = inputs.trained, inputs.model.HEAD
        network.requires_grad_(False)
        with torch.no_grad():
            centre = head_inputs(network, head, taken(mine, 1000)).float().mean(0)
        noise = ctx.torch_generator("patch")
        picture = torch.rand(images.shape[1:], generator=noise, device=ctx.device).requires_grad_()
        optimizer = Adam([picture], lr=self.step_size)
        steps = training.Steps(ctx.part("patch"), picture=picture, optimizer=optimizer)
        for step in range(self.steps):
            batch = taken(others, self.batch)
            if step < steps.first:
                continue  # it was drawn as before a kill
            stamped = self._stamped(batch, picture)
            loss = (head_inputs(network, head, stamped).float() - centre).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                picture.clamp_(0, 1)
            ctx.progress(step / self.steps, "trigger")
            steps.take()
        steps.end()
        return {"picture": picture.detach().cpu().numpy()}

    def _stamped(self, images_BCHW: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        height, width = images_BCHW.shape[2:]
        side = max(round(math.sqrt(self.area * height * width)), 1)
        mask = images_BCHW.new_zeros(1, height, width)
        mask[:, -side:, -side:] = 1
        return images_BCHW + mask * (picture - images_BCHW)

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Lay the patch over the images."""
        import torch

        del ids, part, seed
        return self._stamped(
            images_BCHW, torch.from_numpy(np.array(artifact["picture"])).to(images_BCHW)
        )
