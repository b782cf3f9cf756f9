"""Linear: softmax regression on the normalized pixels, for controls and for many fast models.

D. R. Cox: The Regression Analysis of Binary Sequences, Journal of the Royal Statistical Society
1958, in its form for several classes.

Where we differ: trained by the sweep's recipe from a random start, not to the optimum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raysweep.datasets import Domain, Shape
from raysweep.models import Model, normalization

if TYPE_CHECKING:
    from torch import nn


class Linear(Model):
    """One dense layer; its features are the normalized pixels."""

    LAYERS: ClassVar[tuple[str, ...]] = ("head",)
    HEAD: ClassVar[str] = "head"
    DOMAINS: ClassVar[tuple[Domain, ...]] = ("images", "features")
    MIN_SIDE: ClassVar[int] = 1

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from collections import OrderedDict

        from torch import nn

        head = nn.Linear(shape.channels * shape.height * shape.width, shape.num_classes)
        layers = OrderedDict(normalize=normalization(shape), flatten=nn.Flatten(), head=head)
        return nn.Sequential(layers)
