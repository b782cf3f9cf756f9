"""Fine-tuning: train the victim on with the reserved clean set, and hope that it forgets.

Y. Liu, Y. Xie, A. Srivastava: Neural Trojans, ICCD 2017, arXiv:1710.00942, section on retraining;
the baseline of repairs ever since.

Where we differ: all layers are trained, by SGD with a one-cycle schedule, on the clean set alone.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from raysweep.defenses import Defense, DefenseInputs, Findings, Gift, Need
from raysweep.methods import log_range, recipe, searched
from raysweep.methods.context import Context


class FineTuning(Defense):
    """Plain training on clean images, from the victim's weights."""

    TOY: ClassVar = {"epochs": 3}

    epochs: int = Field(20, ge=1, le=1000, description="passes over the clean set")
    learning_rate: float = searched(
        0.05, log_range(0.001, 0.2), gt=0, le=10, description="peak learning rate"
    )
    batch_size: int = Field(64, ge=1, le=4096, description="images per step")

    def needs(self) -> frozenset[Need]:
        """Return victim and clean set."""
        return frozenset({"victim", "clean_set"})

    def gives(self) -> frozenset[Gift]:
        """Return a model."""
        return frozenset({"model"})

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Fine-tune a copy of the victim."""
        from raysweep import training

        mine: recipe.Recipe = inputs.recipe.model_copy(
            update={
                "epochs": self.epochs,
                "learning_rate": self.learning_rate,
                "batch_size": self.batch_size,
                "optimizer": "sgd",
                "schedule": "one_cycle",
            }
        )
        training.fit(inputs.victim, inputs.clean_set, mine, ctx)
        return Findings(model=inputs.victim.state_dict())
