"""ViT-B/16: the base vision transformer on patches of 16 pixels.

A. Dosovitskiy et al.: An Image is Worth 16 x 16 Words, ICLR 2021, arXiv:2010.11929.

Where we differ: torchvision's transformer, from scratch; the benchmarks start from ImageNet
weights, which this project does not download. Images are resized to `side`, as they do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.datasets import Shape
from raysweep.models._vit import ViT

if TYPE_CHECKING:
    from torch import nn


class ViTB16(ViT):
    """768 wide, 12 heads, 12 blocks."""

    LAYERS: ClassVar[tuple[str, ...]] = ("net.vit.encoder.ln", "net.vit.heads.head")
    TOY: ClassVar = {"side": 32}

    side: int = Field(224, ge=16, le=1024, multiple_of=16, description="images are resized to it")

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        return self.from_torchvision(
            shape, self.side, 16, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072
        )
