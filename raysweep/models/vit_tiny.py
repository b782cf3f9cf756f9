"""ViT-Ti: a small vision transformer on small patches.

A. Dosovitskiy et al.: An Image is Worth 16 x 16 Words, ICLR 2021, arXiv:2010.11929; the size Ti is
that of H. Touvron et al.: Training Data-Efficient Image Transformers, ICML 2021, arXiv:2012.12877.

Where we differ: torchvision's transformer with these sizes. Patches are 4 pixels wide on images of
at most 64 pixels a side, else 16; the image is resized to a multiple of them where it must be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.datasets import Shape
from raysweep.models import is_small
from raysweep.models._vit import ViT

if TYPE_CHECKING:
    from torch import nn


class ViTTiny(ViT):
    """192 wide, 3 heads, 12 blocks."""

    VERSION = 2
    LAYERS: ClassVar[tuple[str, ...]] = ("net.vit.encoder.ln", "net.vit.heads.head")
    TOY: ClassVar = {"blocks": 2}

    blocks: int = Field(12, ge=1, le=48, description="encoder blocks")

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        patch = 4 if is_small(shape) else 16
        return self.from_torchvision(
            shape, -(-shape.height // patch) * patch, patch,
            num_layers=self.blocks, num_heads=3, hidden_dim=192, mlp_dim=768,
        )  # fmt: skip
