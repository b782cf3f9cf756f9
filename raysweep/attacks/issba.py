"""ISSBA: an encoder hides a secret bit string in each image; the trigger is what it adds.

Y. Li, Y. Li, B. Wu, L. Li, R. He, S. Lyu: Invisible Backdoor Attack with Sample-Specific Triggers,
ICCV 2021, arXiv:2012.03816, with the encoder and decoder of M. Tancik, B. Mildenhall,
R. Ng: StegaStamp, CVPR 2020, arXiv:1904.05343.

Where we differ: encoder and decoder are trained here on the clean training set, with the decoder's
binary cross-entropy and a squared image loss; the perceptual loss and the critic are left out, and
the residual is bounded by `amplitude` instead. One fixed random secret of 20 bits a trial, and 2 %
poison, are Confusion Training's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep import rng
from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.attacks._generators import image_to_image, kept, restored
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch
    from torch import nn

    from raysweep.training import Batch


class ISSBA(Attack):
    """x + residual(x, secret)."""

    BADGES: ClassVar[tuple[str, ...]] = ("simplified: no critic",)
    PREPARES: ClassVar[bool] = True
    TOY: ClassVar = {"epochs": 1, "width": 4}

    rate: float = Field(0.02, ge=0, le=1, description="poisoned images / training images")
    bits: int = Field(20, ge=1, le=1024, description="length of the secret")
    epochs: int = Field(20, ge=1, le=10_000, description="epochs of encoder and decoder")
    width: int = Field(16, ge=4, le=256, description="channels of the networks' first layer")
    amplitude: float = Field(24.0, gt=0, le=255, description="bound of the residual, in 1/255")
    image_weight: float = Field(
        0.2, ge=0, description="weight of the squared residual, in the second half of the epochs"
    )

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the encoder's weights."""
        from torch import nn

        from raysweep import training

        channels = inputs.shape.channels
        with training.global_seed(ctx.stream("initialization")):
            encoder = image_to_image(channels + self.bits, channels, self.width)
            decoder = _decoder(channels, self.bits, self.width)
        pair = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).to(ctx.device)
        recipe = inputs.recipe.model_copy(
            update={
                "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0, "augment": (),
                "schedule": "constant",
            }
        )  # fmt: skip
        # With an image loss from the start the residual vanishes before a bit can be read.
        first = (self.epochs + 1) // 2
        for phase, epochs, weight in (
            ("secret", first, 0.0),
            ("image", self.epochs - first, self.image_weight),
        ):
            training.fit(
                pair, inputs.data, recipe.model_copy(update={"epochs": epochs}), ctx,
                objective=training.resumable(partial(self._loss, weight)), phase=phase,
            )  # fmt: skip
        return kept(encoder, "encoder")

    def _loss(self, weight: float, pair: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        import torch
        import torch.nn.functional as F

        images = batches["data"].images
        secrets = torch.randint(0, 2, (len(images), self.bits), device=images.device).float()
        residual = self.residual(pair.encoder, images, secrets)  # type: ignore[arg-type]
        read = pair.decoder((images + residual).clamp(0, 1))  # type: ignore[operator]
        hidden = F.binary_cross_entropy_with_logits(read.float(), secrets)
        bound = self.amplitude / 255
        return hidden + weight * (residual / bound).square().mean()

    def residual(
        self, encoder: nn.Module, images_BCHW: torch.Tensor, secrets: torch.Tensor
    ) -> torch.Tensor:
        """Return the residuals (B, C, H, W) that hide secrets (B, bits) in {0, 1} in images."""
        import torch

        planes = secrets.to(images_BCHW)[:, :, None, None] * 2 - 1
        seen = torch.cat([images_BCHW, planes.expand(-1, -1, *images_BCHW.shape[2:])], 1)
        added: torch.Tensor = self.amplitude / 255 * encoder(seen).float().tanh()
        return added

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Hide the trial's secret."""
        import torch

        del ids, part
        channels = images_BCHW.shape[1]
        encoder = restored(
            image_to_image(channels + self.bits, channels, self.width), "encoder", artifact,
            images_BCHW,
        )  # fmt: skip
        secret = torch.randint(0, 2, (self.bits,), generator=rng.torch_generator(seed, "secret"))
        with torch.no_grad():
            added = self.residual(encoder, images_BCHW, secret.expand(len(images_BCHW), -1))
        return (images_BCHW + added).clamp(0, 1)


def _decoder(channels: int, bits: int, width: int) -> nn.Module:
    from torch import nn

    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, bits)
    )
