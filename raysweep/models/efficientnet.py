"""EfficientNet: depth, width and resolution scaled together.

M. Tan, Q. Le: EfficientNet, Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019,
arXiv:1905.11946.

Where we differ: torchvision's networks; on images of at most 64 pixels a side the first
convolution does not stride.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from raysweep.datasets import Shape
from raysweep.models import Model, is_small, normalized

if TYPE_CHECKING:
    from torch import nn


class EfficientNet(Model):
    """torchvision's EfficientNet; features are the head's inputs, 1,280 for b0."""

    VERSION = 2
    LAYERS: ClassVar[tuple[str, ...]] = (
        "net.features.2", "net.features.4", "net.features.6", "net.features", "net.classifier.1",
    )  # fmt: skip
    HEAD: ClassVar[str] = "net.classifier.1"

    variant: Literal["b0", "b3"] = Field("b0", description="size; BackdoorBench uses b3")

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        import torchvision.models
        from torch import nn

        make = getattr(torchvision.models, f"efficientnet_{self.variant}")
        net = make(weights=None, num_classes=shape.num_classes)
        stem = net.features[0][0]
        net.features[0][0] = nn.Conv2d(
            shape.channels, stem.out_channels, 3, stride=1 if is_small(shape) else 2,
            padding=1, bias=False,
        )  # fmt: skip
        return normalized(shape, net)
