"""The network of the vision transformers: torchvision's, for any square image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from raysweep.datasets import Shape
from raysweep.models import Model, normalized

if TYPE_CHECKING:
    import torch
    from torch import nn


class ViT(Model):
    """Features are the class token before the dense head."""

    HEAD: ClassVar[str] = "net.vit.heads.head"
    SQUARE: ClassVar[bool] = True

    def from_torchvision(self, shape: Shape, side: int, patch: int, **sizes: Any) -> nn.Module:
        """Return a transformer on images resized to `side`, cut into patches of `patch`."""
        from collections import OrderedDict

        from torch import nn
        from torchvision.models import VisionTransformer

        vit = VisionTransformer(
            image_size=side, patch_size=patch, num_classes=shape.num_classes, **sizes
        )
        if shape.channels != 3:
            vit.conv_proj = nn.Conv2d(shape.channels, vit.hidden_dim, patch, stride=patch)
        # torchvision starts the head at 0, which leaves the first gradients without a direction.
        nn.init.trunc_normal_(vit.heads.head.weight, std=0.02)
        resize = _resize(side) if side != shape.height else nn.Identity()
        return normalized(shape, nn.Sequential(OrderedDict(resize=resize, vit=vit)))


def _resize(side: int) -> nn.Module:
    import torch.nn.functional as F
    from torch import nn

    class Resize(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)

    return Resize()
