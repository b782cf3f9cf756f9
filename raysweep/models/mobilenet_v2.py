"""MobileNetV2: inverted residuals with linear bottlenecks.

M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen: MobileNetV2, Inverted Residuals and Linear
Bottlenecks, CVPR 2018, arXiv:1801.04381.

Where we differ: torchvision's network; on images of at most 64 pixels a side the first
convolution and the second stage do not stride, as the field does on CIFAR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raysweep.datasets import Shape
from raysweep.models import Model, is_small, normalized

if TYPE_CHECKING:
    from torch import nn


class MobileNetV2(Model):
    """torchvision's MobileNetV2; features are the head's 1,280 inputs (dropout before it)."""

    VERSION = 2
    LAYERS: ClassVar[tuple[str, ...]] = (
        "net.features.3", "net.features.6", "net.features.13", "net.features", "net.classifier.1",
    )  # fmt: skip
    HEAD: ClassVar[str] = "net.classifier.1"

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from torch import nn
        from torchvision.models import mobilenet_v2

        net = mobilenet_v2(weights=None, num_classes=shape.num_classes)
        small = is_small(shape)
        net.features[0][0] = nn.Conv2d(
            shape.channels, 32, 3, stride=1 if small else 2, padding=1, bias=False
        )
        if small:
            net.features[2].conv[1][0].stride = (1, 1)
        return normalized(shape, net)
