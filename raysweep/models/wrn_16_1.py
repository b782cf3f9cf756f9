"""Wide residual network of depth 16 and width 1: the small victim of Anti-Backdoor Learning.

S. Zagoruyko, N. Komodakis: Wide Residual Networks, BMVC 2016, arXiv:1605.07146, table 1, with
N = 2 blocks a group and k = 1: 16, 32 and 64 channels, 0.175 million parameters.

Where we differ: torchvision has no such network. The data are normalized in the first layer, which
Anti-Backdoor Learning's experiments leave out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raysweep.datasets import Shape
from raysweep.models import Model, normalized
from raysweep.models._preact import preact_block

if TYPE_CHECKING:
    from torch import nn


class WRN161(Model):
    """Three groups of two pre-activation blocks; features are the head's 64 inputs."""

    LAYERS: ClassVar[tuple[str, ...]] = (
        "net.group1", "net.group2", "net.group3", "net.pool", "net.head",
    )  # fmt: skip
    HEAD: ClassVar[str] = "net.head"

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from collections import OrderedDict

        from torch import nn

        def group(inputs: int, outputs: int, stride: int) -> nn.Module:
            return nn.Sequential(
                preact_block(inputs, outputs, stride=stride),
                preact_block(outputs, outputs, stride=1),
            )

        net = nn.Sequential(
            OrderedDict(
                stem=nn.Conv2d(shape.channels, 16, 3, padding=1, bias=False),
                group1=group(16, 16, 1),
                group2=group(16, 32, 2),
                group3=group(32, 64, 2),
                last=nn.Sequential(nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
                pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                head=nn.Linear(64, shape.num_classes),
            )
        )
        for part in net.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        return normalized(shape, net)
