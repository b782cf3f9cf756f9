"""Compare predictions, flags and verdicts with the truth: the metrics of one trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raysweep.attacks import Attack
from raysweep.stages.stage import Unseen, Work, rates

if TYPE_CHECKING:
    from raysweep.metrics.judgment import Truth
    from raysweep.stages.content import Product
    from raysweep.stages.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class Evaluate(Work):
    """Judge one trial.

    Attributes:
        attack: the attack, without its rates.
        rate: the rate that was asked for; an attack that trains the victim may have one of 0.
    """

    KIND, VERSION, ORDER = "evaluate", 3, 80
    PACE = 2e-6
    WITHOUT: ClassVar[Unseen] = {"attack": rates}

    attack: Attack
    rate: float

    def perform(self, given: Inputs) -> Product:
        """Return all metrics with their n, and the curves that the report draws."""
        from raysweep.metrics.judgment import judge
        from raysweep.stages.content import Product

        metrics, curves = judge(
            truth=self._truth(given),
            tested=given.read("tested"),
            found=given.read("defend"),
            decided=given.read("decide"),
            decision=given.outcome("decide"),
        )
        poisoned = given.outcome("poison")
        counts = {f"{n}_count": poisoned.get(n, 0) for n in ("poison", "cover", "relabeled")}
        outcome = {**metrics, **counts, "n_train": len(given.data.train)}
        return Product(arrays=curves, outcome=outcome)

    def _truth(self, given: Inputs) -> Truth:
        from raysweep.metrics.judgment import Truth

        test, classes = given.data.test, given.data.shape.num_classes
        mapped = self.attack.relabel(test.labels, classes)
        eligible = self.attack.eligible(test.labels, classes)
        poisoned = given.poison is not None or (self.attack.TRAINS and self.rate > 0)
        return Truth(
            labels=test.labels,
            mapped=mapped,
            eligible=eligible,
            given=given.given_labels,
            poison=given.mask("poison"),
            cover=given.mask("cover"),
            targets=tuple(np.unique(mapped[eligible]).tolist()) if poisoned else (),
        )
