"""One independent part of a defense's work; a run over parts reads them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from raysweep.attacks import Attack
from raysweep.defenses import Defense
from raysweep.methods import Method, Recipe, decision_fields, reduction_fields
from raysweep.models import Model
from raysweep.stages.defend import defense_resource
from raysweep.stages.stage import Resource, Unseen, Work, rates

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
class Shard(Work):
    """Do one part of a defense's work.

    Attributes:
        defense: the defense, without the fields that decisions and reductions read.
        model: the architecture of the victim.
        recipe: how the victim was trained.
        seed: of the trial.
        attack: without its rates, if the defense declares that it may ask something of it.
        part: which part.
    """

    KIND, VERSION, ORDER = "shard", 1, 50
    LONG = True
    WITHOUT: ClassVar[Unseen] = {"attack": rates, "defense": _unseen}

    defense: Defense
    model: Model
    recipe: Recipe
    seed: int
    attack: Attack | None = None
    part: str

    @property
    def resource(self) -> Resource:
        """The class of workers that do the work."""
        return defense_resource(self.defense)

    def passes(self, samples: int, num_classes: int) -> float:
        """Return this part's even share of the defense's sample passes."""
        if self.network is None:
            return samples
        parts = len(self.defense.parts(num_classes))
        return self.defense.passes(samples, self.recipe.epochs, num_classes) / parts

    def perform(self, given: Inputs) -> Product:
        """Return the arrays that the part gives."""
        from raysweep.stages.content import Product
        from raysweep.stages.knowledge import defense_inputs

        inputs = defense_inputs(
            given, self.defense, model=self.model, recipe=self.recipe, seed=self.seed,
            attack=self.attack,
        )  # fmt: skip
        return Product(arrays=dict(self.defense.shard(self.part, inputs, given.context)))
