"""Small image-to-image networks that attacks train: an encoder, a decoder, skip connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import nn


def image_to_image(inputs: int, outputs: int, width: int) -> nn.Module:
    """Return a network (B, inputs, H, W) → (B, outputs, H, W) over two halvings of the sides."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down1, self.down2 = _double(inputs, width), _double(width, 2 * width)
            self.middle = _double(2 * width, 4 * width)
            self.up2 = _double(6 * width, 2 * width)
            self.up1 = _double(3 * width, width)
            self.last = nn.Conv2d(width, outputs, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            one = self.down1(x)
            two = self.down2(F.max_pool2d(one, 2))
            deep = self.middle(F.max_pool2d(two, 2))
            two = self.up2(torch.cat([_as_large(deep, two), two], 1))
            one = self.up1(torch.cat([_as_large(two, one), one], 1))
            values: torch.Tensor = self.last(one)
            return values

    return UNet()


def _double(inputs: int, outputs: int) -> nn.Module:
    from torch import nn

    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [
            nn.Conv2d(width, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _as_large(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    import torch.nn.functional as F

    return F.interpolate(values, size=like.shape[2:], mode="bilinear", align_corners=False)


def kept(network: nn.Module, name: str) -> dict[str, NDArray[Any]]:
    """Return a network's weights as arrays of an artifact, under `name`."""
    from raysweep.training import weights

    return weights.packed(network.state_dict(), f"{name}.")


def restored(
    network: nn.Module, name: str, artifact: Mapping[str, NDArray[Any]], like: torch.Tensor
) -> nn.Module:
    """Return `network` with the weights that `kept` gave, in eval mode, on `like`'s device."""
    from raysweep.training import weights

    network.load_state_dict(weights.unpacked(artifact, f"{name}."))
    return network.to(like.device).eval()
