"""PreAct-ResNet-18: batch normalization and ReLU come before each convolution.

K. He, X. Zhang, S. Ren, J. Sun: Identity Mappings in Deep Residual Networks, ECCV 2016,
arXiv:1603.05027, figure 1 (b). The victim of BackdoorBench's published tables.

Where we differ: the form that those tables use: no normalization after the last block, and
shortcuts of blocks that change the shape take the normalized input. torchvision has no such
network; parameters have the names under which checkpoints of it are published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raysweep.datasets import Shape
from raysweep.models import Model, is_small, normalized
from raysweep.models._preact import preact_block

if TYPE_CHECKING:
    import torch
    from torch import nn


class PreActResNet18(Model):
    """Four stages of two blocks, 64 to 512 channels; features are the head's 512 inputs."""

    VERSION = 2
    LAYERS: ClassVar[tuple[str, ...]] = (
        "net.layer1", "net.layer2", "net.layer3", "net.layer4", "net.avgpool", "net.linear",
    )  # fmt: skip
    HEAD: ClassVar[str] = "net.linear"

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from itertools import pairwise

        from torch import nn

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                stride = 1 if is_small(shape) else 2
                self.conv1 = nn.Conv2d(shape.channels, 64, 3, stride=stride, padding=1, bias=False)
                widths = (64, 64, 128, 256, 512)
                for n, (inputs, outputs) in enumerate(pairwise(widths), 1):
                    blocks = (
                        preact_block(inputs, outputs, stride=1 if n == 1 else 2),
                        preact_block(outputs, outputs, stride=1),
                    )
                    setattr(self, f"layer{n}", nn.Sequential(*blocks))
                self.avgpool = nn.AdaptiveAvgPool2d(1)
                self.linear = nn.Linear(512, shape.num_classes)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv1(x)
                for n in range(1, 5):
                    x = getattr(self, f"layer{n}")(x)
                logits: torch.Tensor = self.linear(self.avgpool(x).flatten(1))
                return logits

        return normalized(shape, Net())
