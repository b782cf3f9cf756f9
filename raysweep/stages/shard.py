"""One independent part of a defense's work; a run over parts reads them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from raysweep.methods import Method, decision_fields, reduction_fields
from raysweep.stages.defend import DefenseWork
from raysweep.stages.stage import Unseen, rates

if TYPE_CHECKING:
    from raysweep.stages.content import Product
    from raysweep.stages.inputs import Inputs


def _unseen(defense: type[Method]) -> frozenset[str]:
    """Return the fields that a shard does not depend on."""
    return decision_fields(defense) | reduction_fields(defense)


def shard_role(part: str) -> str:
    """Return the role that a shard's artifact plays in a run over shards."""
    return f"shard {part}"


@dataclass(frozen=True, kw_only=True)
class Shard(DefenseWork):
    """Do one part of a defense's work; the part depends on no field that reductions read.

    Attributes:
        part: which part.
    """

    KIND, VERSION, ORDER = "shard", 1, 50
    WITHOUT: ClassVar[Unseen] = {"attack": rates, "defense": _unseen}

    part: str

    def passes(self, samples: int, num_classes: int) -> float:
        """Return this part's even share of the defense's sample passes."""
        if self.network is None:
            return samples
        parts = len(self.defense.parts(num_classes))
        return self.defense.passes(samples, self.recipe.epochs, num_classes) / parts

    def perform(self, given: Inputs) -> Product:
        """Return the arrays that the part gives."""
        from raysweep.stages.content import Product

        return Product(
            arrays=dict(self.defense.shard(self.part, self.knowledge(given), given.context))
        )
