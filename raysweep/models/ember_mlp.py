"""EmberNN: a dense network on feature vectors of Windows programs.

G. Severi, J. Meyer, S. Coull, A. Oprea: Explanation-Guided Backdoor Poisoning Attacks Against
Malware Classifiers, USENIX Security 2021, arXiv:2003.01031: dense layers of 4,000,
2,000 and 100 units with batch normalization and dropout 0.5; Confusion Training's inspector uses
200, 100 and 20.

Where we differ: two logits and cross-entropy in place of one sigmoid and binary cross-entropy,
which are the same model class. Features are standardized as (x - mean) / (std + 0.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.datasets import Domain, Shape
from raysweep.models import Model, normalization

if TYPE_CHECKING:
    from torch import nn


class EmberMLP(Model):
    """Features are the inputs of the last layer."""

    LAYERS: ClassVar[tuple[str, ...]] = ("hidden1", "hidden2", "hidden3", "head")
    HEAD: ClassVar[str] = "head"
    DOMAINS: ClassVar[tuple[Domain, ...]] = ("features",)
    TOY: ClassVar = {"widths": (32, 16, 8)}

    widths: tuple[int, int, int] = Field((4000, 2000, 100), description="units of hidden layers")
    dropout: float = Field(0.5, ge=0, lt=1, description="probability in each hidden layer")

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        from collections import OrderedDict

        from torch import nn

        def hidden(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Linear(inputs, outputs),
                nn.ReLU(),
                nn.BatchNorm1d(outputs),
                nn.Dropout(self.dropout),
            )

        one, two, three = self.widths
        return nn.Sequential(
            OrderedDict(
                normalize=normalization(shape, ridge=0.1),
                flatten=nn.Flatten(),
                hidden1=hidden(shape.channels, one),
                hidden2=hidden(one, two),
                hidden3=hidden(two, three),
                head=nn.Linear(three, shape.num_classes),
            )
        )
