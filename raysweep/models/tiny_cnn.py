"""A small convolutional network for quick sweeps: three convolutions, one dense head.

An architecture of our own, in the style of the small networks of K. Jordan: 94 % on CIFAR-10 in
3.29 seconds on a single GPU, 2024, arXiv:2404.00498: convolution, batch normalization, pooling.

Where we differ: no published network is reproduced; numbers obtained with it are compared among
each other only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.datasets import Shape
from raysweep.models import Model, channels_last_gradient, normalization

if TYPE_CHECKING:
    from torch import nn


class TinyCNN(Model):
    """width, 2 and 4 times width channels; global average pooling; about 24 k parameters at 16."""

    LAYERS: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3", "pool", "head")
    HEAD: ClassVar[str] = "head"

    width: int = Field(16, ge=4, le=512, description="channels of the first convolution")

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from collections import OrderedDict

        from torch import nn

        def block(inputs: int, outputs: int, *, pool: bool) -> nn.Module:
            layers: list[nn.Module] = [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
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
                pool=nn.Sequential(channels_last_gradient(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                head=nn.Linear(4 * w, shape.num_classes),
            )
        )
