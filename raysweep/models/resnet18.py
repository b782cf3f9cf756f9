"""ResNet-18: 18 layers with identity shortcuts, the field's usual victim.

K. He, X. Zhang, S. Ren, J. Sun: Deep Residual Learning for Image Recognition, CVPR 2016,
arXiv:1512.03385.

Where we differ: torchvision's network, with the 3 x 3 stem without pooling that the field uses on
small images, wherever the image side is at most 64 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raysweep.datasets import Shape
from raysweep.models import Model, is_small, normalized

if TYPE_CHECKING:
    from torch import nn


class ResNet18(Model):
    """torchvision's ResNet-18; features are the 512 inputs of the dense head."""

    VERSION = 2
    LAYERS: ClassVar[tuple[str, ...]] = (
        "net.layer1", "net.layer2", "net.layer3", "net.layer4", "net.avgpool", "net.fc",
    )  # fmt: skip
    HEAD: ClassVar[str] = "net.fc"

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from torch import nn
        from torchvision.models import resnet18

        net = resnet18(weights=None, num_classes=shape.num_classes)
        if is_small(shape):
            net.conv1 = nn.Conv2d(shape.channels, 64, 3, padding=1, bias=False)
            net.maxpool = nn.Identity()
        elif shape.channels != 3:
            net.conv1 = nn.Conv2d(shape.channels, 64, 7, stride=2, padding=3, bias=False)
        return normalized(shape, net)
