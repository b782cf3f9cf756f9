"""Models: classifiers that take images in [0, 1] and normalize them in their first layer.

A model file defines one `Model`. `build` returns a `torch.nn.Module` whose submodules include
every name in `LAYERS`; `HEAD` is its last dense layer, and the features of a sample are that
layer's input. Layers other than the head are flattened, or averaged over space where 4-D.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from raysweep.datasets import Domain, Shape
from raysweep.errors import StageError
from raysweep.methods import Method

if TYPE_CHECKING:
    from torch import nn


class Model(Method):
    """An architecture; `build` gives freshly initialized networks of it."""

    LAYERS: ClassVar[tuple[str, ...]]
    HEAD: ClassVar[str]
    DOMAINS: ClassVar[tuple[Domain, ...]] = ("images",)
    MIN_SIDE: ClassVar[int] = 8
    SQUARE: ClassVar[bool] = False

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module:
        """Return a network: (B, C, H, W) floats in [0, 1] → logits (B, K).

        Initialization draws from torch's global generator, which the caller seeds and restores.
        """

    def check(self, shape: Shape) -> None:
        """Make sure that the network can be built for data of this shape.

        Raises:
            StageError: if the images are too small, or not square where they must be.
        """
        sides = (shape.height, shape.width)
        small = "images" in self.DOMAINS and min(sides) < self.MIN_SIDE
        if small or (self.SQUARE and sides[0] != sides[1]):
            rule = f"at least {self.MIN_SIDE} pixels a side" + (", square" if self.SQUARE else "")
            raise StageError(
                f"model {self.name}: images must have {rule}, got {sides[0]} x {sides[1]}; "
                f"take another model, or a dataset with a larger side"
            )


def is_small(shape: Shape) -> bool:
    """Return whether images are small; the first layers of networks for them do not shrink them."""
    return min(shape.height, shape.width) <= 64


def normalized(shape: Shape, net: nn.Module) -> nn.Module:
    """Return `normalize` followed by `net`."""
    from collections import OrderedDict

    from torch import nn

    return nn.Sequential(OrderedDict(normalize=normalization(shape), net=net))


def normalization(shape: Shape, ridge: float = 0.0) -> nn.Module:
    """Return the first layer of every model: (x - mean) / (std + ridge) per channel."""
    import torch
    from torch import nn

    class Normalize(nn.Module):
        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(shape.mean).view(1, -1, 1, 1))
            self.register_buffer("std", torch.tensor(shape.std).view(1, -1, 1, 1) + ridge)

        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            return (images_BCHW - self.mean) / self.std

    return Normalize()


def channels_last_gradient() -> nn.Module:
    """Return an identity whose gradient has channels last, as activations have.

    The gradient of a mean over space has not, which slows down every layer below; same numbers.
    """
    import torch
    from torch import nn

    class ChannelsLastGradient(nn.Module):
        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            if images_BCHW.requires_grad:
                images_BCHW.register_hook(
                    lambda gradient: gradient.contiguous(memory_format=torch.channels_last)
                )
            return images_BCHW

    return ChannelsLastGradient()
