"""DenseNet: every layer sees the outputs of all layers before it.

G. Huang, Z. Liu, L. van der Maaten, K. Weinberger: Densely Connected Convolutional Networks,
CVPR 2017, arXiv:1608.06993.

Where we differ: torchvision's networks; on images of at most 64 pixels a side the stem is a
3 x 3 convolution without stride and pooling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from raysweep.datasets import Shape
from raysweep.models import Model, is_small, normalized

if TYPE_CHECKING:
    from torch import nn


class DenseNet(Model):
    """torchvision's DenseNet; features are the head's inputs, 1,024 at depth 121."""

    VERSION = 2
    LAYERS: ClassVar[tuple[str, ...]] = (
        "net.features.denseblock1", "net.features.denseblock2", "net.features.denseblock3",
        "net.features.denseblock4", "net.features", "net.classifier",
    )  # fmt: skip
    HEAD: ClassVar[str] = "net.classifier"

    depth: Literal[121, 161, 169, 201] = Field(121, description="layers; BackdoorBench uses 161")

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        import torchvision.models
        from torch import nn

        make = getattr(torchvision.models, f"densenet{self.depth}")
        net = make(weights=None, num_classes=shape.num_classes)
        width = net.features.conv0.out_channels
        if is_small(shape):
            net.features.conv0 = nn.Conv2d(shape.channels, width, 3, padding=1, bias=False)
            net.features.pool0 = nn.Identity()
        elif shape.channels != 3:
            net.features.conv0 = nn.Conv2d(
                shape.channels, width, 7, stride=2, padding=3, bias=False
            )
        return normalized(shape, net)
