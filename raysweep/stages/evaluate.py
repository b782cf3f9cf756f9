"""Compare predictions, flags and verdicts with the truth: the metrics of one trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raysweep.attacks import Attack
from raysweep.defenses import Decision
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

    KIND, VERSION, ORDER = "evaluate", 5, 80
    PACE = 2e-6
    WITHOUT: ClassVar[Unseen] = {"attack": rates}

    attack: Attack
    rate: float

    def perform(self, given: Inputs) -> Product:
        """Return all metrics with their n, and the curves that the report draws."""
        from raysweep.metrics.judgment import Outputs, judge
        from raysweep.stages.content import Product

        predictions, stored = given.predictions("tested"), given.findings("defend")
        decided = given.decided("decide")
        decision = Decision() if decided is None else decided.decision
        outputs = Outputs(
            clean=predictions.clean,
            triggered=predictions.triggered,
            train_scores=stored.findings.train_scores,
            losses=stored.findings.losses,
            spaces=stored.findings.spaces,
            input_scores=stored.input_scores,
            flags=decision.flags,
            threshold=decision.threshold,
            classes=decision.classes,
            class_scores=decision.class_scores,
            p_value=decision.p_value,
        )
        metrics, curves = judge(self._truth(given), outputs).pack()
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
