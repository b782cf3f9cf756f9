"""Let a defense decide on its stored scores and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.defenses import Defense
from raysweep.stages.stage import Outcome, Work

if TYPE_CHECKING:
    from raysweep.stages.content import Product
    from raysweep.stages.inputs import Inputs


def produced(outcome: Outcome) -> str:
    """Return what a stored decision produced: a digest, or `NOTHING`."""
    return str(outcome["produced"])


@dataclass(frozen=True, kw_only=True)
class Decide(Work):
    """Decide, and say what the decision produced.

    Attributes:
        defense: the defense with all its fields.
    """

    KIND, VERSION, ORDER = "decide", 1, 70
    GROWS, PACE = True, 2e-6

    defense: Defense

    def perform(self, given: Inputs) -> Product:
        """Return flags, classes and threshold of the decision."""
        from raysweep.stages.content import Decided
        from raysweep.stages.knowledge import evidence

        return Decided(decision=self.defense.decide(evidence(given, self.defense))).packed()
