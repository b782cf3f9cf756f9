"""VGG-19 with batch normalization: 19 layers of plain 3 x 3 convolutions.

K. Simonyan, A. Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition,
ICLR 2015, arXiv:1409.1556; S. Ioffe, C. Szegedy, ICML 2015, for batch normalization.

Where we differ: torchvision's network; on images of at most 64 pixels a side, global average
pooling and one dense layer stand in for the three dense layers, as in the field's toolboxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.datasets import Shape
from raysweep.models._vgg import VGG

if TYPE_CHECKING:
    from torch import nn


class VGG19BN(VGG):
    """torchvision's VGG-19."""

    VERSION = 2

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from torchvision.models import vgg19_bn

        return self.from_torchvision(vgg19_bn, shape)
