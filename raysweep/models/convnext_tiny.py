"""ConvNeXt-T: a convolutional network with the design of a vision transformer.

Z. Liu, H. Mao, C.-Y. Wu, C. Feichtenhofer, T. Darrell, S. Xie: A ConvNet for the 2020s, CVPR 2022,
arXiv:2201.03545.

Where we differ: torchvision's network; on images of at most 64 pixels a side the stem cuts
patches of 2 instead of 4 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raysweep.datasets import Shape
from raysweep.models import Model, is_small, normalized

if TYPE_CHECKING:
    from torch import nn


class ConvNeXtTiny(Model):
    """torchvision's ConvNeXt-T; features are the head's 768 inputs."""

    VERSION = 2
    LAYERS: ClassVar[tuple[str, ...]] = (
        "net.features.1", "net.features.3", "net.features.5", "net.features.7", "net.avgpool",
        "net.classifier.2",
    )  # fmt: skip
    HEAD: ClassVar[str] = "net.classifier.2"
    MIN_SIDE: ClassVar[int] = 16

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from torch import nn
        from torchvision.models import convnext_tiny

        net = convnext_tiny(weights=None, num_classes=shape.num_classes)
        patch = 2 if is_small(shape) else 4
        net.features[0][0] = nn.Conv2d(shape.channels, 96, patch, stride=patch)
        return normalized(shape, net)
