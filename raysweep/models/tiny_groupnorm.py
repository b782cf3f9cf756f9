"""A small convolutional network in which no image sees another: group instead of batch norm.

Y. Wu, K. He: Group Normalization, ECCV 2018, arXiv:1803.08494. Its samples do not meet inside the
network, so that many members can be trained at once, each on samples of its own
(`raysweep.training.ensemble`).

Where we differ: the layers are those of `tiny_cnn`, with up to 4 groups; no published network is
reproduced, and numbers obtained with it are compared among each other only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.datasets import Shape
from raysweep.models import Model, normalization

if TYPE_CHECKING:
    from torch import nn


class TinyGroupNorm(Model):
    """width, 2 and 4 times width channels; global average pooling; about 24 k parameters at 16."""

    LAYERS: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3", "pool", "head")
    HEAD: ClassVar[str] = "head"

    width: int = Field(16, ge=4, le=512, description="channels of the first convolution")

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        import math
        from collections import OrderedDict

        from torch import nn

        def block(inputs: int, outputs: int, *, pool: bool) -> nn.Module:
            layers: list[nn.Module] = [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.GroupNorm(math.gcd(outputs, 4), outputs),
            ]
            # Pooling first: the same values and gradients as after ReLU, at a quarter of its work.
            rest = [nn.MaxPool2d(2), nn.ReLU(inplace=True)] if pool else [nn.ReLU(inplace=True)]
            return nn.Sequential(*layers, *rest)

        w = self.width
        return nn.Sequential(
            OrderedDict(
                normalize=normalization(shape),
                block1=block(shape.channels, w, pool=True),
                block2=block(w, 2 * w, pool=True),
                block3=block(2 * w, 4 * w, pool=False),
                pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                head=nn.Linear(4 * w, shape.num_classes),
            )
        )
