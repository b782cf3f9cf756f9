"""ResNet-9: the fast network that datamodels are estimated with.

A. Ilyas, S. M. Park, L. Engstrom, G. Leclerc, A. Madry: Datamodels, ICML 2022, arXiv:2202.00622;
A. Khaddaj et al.: Rethinking Backdoor Attacks, ICML 2023, arXiv:2307.10163: convolutions of 64 and
128 channels, a residual pair, 256, a residual pair, 128, global max pooling, and a dense head
without bias whose output is scaled by 0.2.

Where we differ: the factor 0.2 multiplies the head's input, which is the same function and leaves
the head a plain dense layer. Compared with MadryLab/rethinking-backdoor-attacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raysweep.datasets import Shape
from raysweep.models import Model, normalized

if TYPE_CHECKING:
    import torch
    from torch import nn


class ResNet9(Model):
    """Features are the head's 128 inputs."""

    LAYERS: ClassVar[tuple[str, ...]] = (
        "net.stem", "net.pair1", "net.middle", "net.pair2", "net.last", "net.head",
    )  # fmt: skip
    HEAD: ClassVar[str] = "net.head"
    MIN_SIDE: ClassVar[int] = 12

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from collections import OrderedDict

        from torch import nn

        class Residual(nn.Module):
            def __init__(self, width: int) -> None:
                super().__init__()
                self.pair = nn.Sequential(_conv(width, width), _conv(width, width))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                result: torch.Tensor = x + self.pair(x)
                return result

        class Scale(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * 0.2

        net = nn.Sequential(
            OrderedDict(
                stem=nn.Sequential(
                    _conv(shape.channels, 64), _conv(64, 128, kernel=5, stride=2, padding=2)
                ),
                pair1=Residual(128),
                middle=nn.Sequential(_conv(128, 256), nn.MaxPool2d(2)),
                pair2=Residual(256),
                last=nn.Sequential(
                    _conv(256, 128, padding=0), nn.AdaptiveMaxPool2d(1), nn.Flatten(), Scale()
                ),
                head=nn.Linear(128, shape.num_classes, bias=False),
            )
        )
        return normalized(shape, net)


def _conv(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, padding: int = 1
) -> nn.Module:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
