"""The network of the VGG models: torchvision's, with the dense head that small images get."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from raysweep.datasets import Shape
from raysweep.models import Model, is_small, normalized

if TYPE_CHECKING:
    from torch import nn


class VGG(Model):
    """Features are the inputs of the last dense layer: 512 on small images, else 4,096."""

    LAYERS: ClassVar[tuple[str, ...]] = ("net.features", "net.avgpool", "net.classifier.head")
    HEAD: ClassVar[str] = "net.classifier.head"
    MIN_SIDE: ClassVar[int] = 32

    def from_torchvision(self, make: Callable[..., Any], shape: Shape) -> nn.Module:
        """Return torchvision's network `make`, changed for the shape."""
        from collections import OrderedDict

        from torch import nn

        net = make(weights=None, num_classes=shape.num_classes)
        if shape.channels != 3:
            net.features[0] = nn.Conv2d(shape.channels, 64, 3, padding=1)
        if is_small(shape):
            net.avgpool = nn.AdaptiveAvgPool2d(1)
            net.classifier = nn.Sequential(OrderedDict(head=nn.Linear(512, shape.num_classes)))
        else:
            *hidden, head = net.classifier.children()
            net.classifier = nn.Sequential(OrderedDict(hidden=nn.Sequential(*hidden), head=head))
        return normalized(shape, net)
