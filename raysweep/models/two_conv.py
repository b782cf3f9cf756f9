"""Two convolutions and two dense layers: the network of the unified framework's MNIST experiments.

K. Jin, T. Zhang, C. Shen, Y. Chen, M. Fan, C. Lin, T. Liu: Can We Mitigate Backdoor Attack Using
Adversarial Detection Methods?, IEEE TDSC 2022, arXiv:2006.14871.

Where we differ: the last maps are averaged (or repeated) to 4 x 4, which is what images of 28 x 28
have by themselves, so that images of other sizes fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raysweep.datasets import Shape
from raysweep.models import Model, normalization

if TYPE_CHECKING:
    from torch import nn


class TwoConv(Model):
    """16 channels of 5 x 5 filters, twice; features are the head's 512 inputs."""

    LAYERS: ClassVar[tuple[str, ...]] = ("block1", "block2", "pool", "head.2")
    HEAD: ClassVar[str] = "head.2"
    MIN_SIDE: ClassVar[int] = 16

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from collections import OrderedDict

        from torch import nn

        def block(inputs: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, 16, 5), nn.ReLU(), nn.MaxPool2d(2))

        head = nn.Sequential(nn.Linear(16 * 16, 512), nn.ReLU(), nn.Linear(512, shape.num_classes))
        return nn.Sequential(
            OrderedDict(
                normalize=normalization(shape),
                block1=block(shape.channels),
                block2=block(16),
                pool=nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()),
                head=head,
            )
        )
