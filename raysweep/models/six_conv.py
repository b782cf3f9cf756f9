"""Six convolutions and two dense layers: the network of the unified framework's GTSRB experiments.

K. Jin, T. Zhang, C. Shen, Y. Chen, M. Fan, C. Lin, T. Liu: Can We Mitigate Backdoor Attack Using
Adversarial Detection Methods?, IEEE TDSC 2022, arXiv:2006.14871; the network is that of B. Wang et
al.: Neural Cleanse, IEEE S&P 2019, for the same data.

Where we differ: padding keeps the sides of all convolutions, so that images of any size fit, and
the last maps are averaged to 4 x 4 where they are larger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.datasets import Shape
from raysweep.models import Model, normalization

if TYPE_CHECKING:
    from torch import nn


class SixConv(Model):
    """32, 64 and 128 channels, two convolutions each; features are the head's 512 inputs."""

    LAYERS: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3", "pool", "head.3")
    HEAD: ClassVar[str] = "head.3"

    dropout: float = Field(0.2, ge=0, lt=1, description="after each block; 0.5 before the head")

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from collections import OrderedDict

        from torch import nn

        def block(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(),
                nn.MaxPool2d(2), nn.Dropout(self.dropout),
            )  # fmt: skip

        head = nn.Sequential(
            nn.Linear(128 * 16, 512), nn.ReLU(), nn.Dropout(min(2.5 * self.dropout, 0.9)),
            nn.Linear(512, shape.num_classes),
        )  # fmt: skip
        return nn.Sequential(
            OrderedDict(
                normalize=normalization(shape),
                block1=block(shape.channels, 32),
                block2=block(32, 64),
                block3=block(64, 128),
                pool=nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()),
                head=head,
            )
        )
