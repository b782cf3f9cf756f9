"""The residual block with normalization and ReLU before each convolution (He et al., ECCV 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def preact_block(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    """Return two 3 x 3 convolutions beside a shortcut, a 1 x 1 one where the shape changes."""
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1 = nn.BatchNorm2d(inputs)
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
            if stride != 1 or inputs != outputs:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
                )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = F.relu(self.bn1(x))
            kept = self.shortcut(out) if hasattr(self, "shortcut") else x
            result: torch.Tensor = self.conv2(F.relu(self.bn2(self.conv1(out)))) + kept
            return result

    return Block()
