"""Train a victim, retrain on what a decision kept, or let an attack train the victim itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysweep.attacks import Attack
from raysweep.methods import Recipe
from raysweep.models import Model
from raysweep.stages.stage import ALL, Resource, Work

if TYPE_CHECKING:
    from raysweep.stages.content import Product
    from raysweep.stages.inputs import Inputs


class _Training(Work):
    KIND, VERSION, ORDER = "train", 1, 30
    LONG, GROWN = True, True

    recipe: Recipe

    @property
    def resource(self) -> Resource:
        """The class of workers that do the work."""
        return "gpu"

    def passes(self, samples: int, num_classes: int) -> float:
        """Return the sample passes of all epochs."""
        del num_classes
        return self.recipe.epochs * samples


@dataclass(frozen=True, kw_only=True)
class Train(_Training):
    """Train by the plain recipe.

    Attributes:
        model: the architecture.
        recipe: how it is trained, its precision resolved.
        seed: of the trial.
        kept: digest of the samples that a decision kept, or `ALL`.
    """

    model: Model
    recipe: Recipe
    seed: int
    kept: str

    def perform(self, given: Inputs) -> Product:
        """Return the trained weights, and mean loss and accuracy of each epoch."""
        from raysweep import training
        from raysweep.stages.content import Product
        from raysweep.training import weights

        samples = given.training_set
        if self.kept != ALL:
            samples = samples.take(np.flatnonzero(~given.read("decision")["flags"]))
        network = training.build(self.model, given.data.shape, given.context)
        objective = training.CrossEntropy(self.recipe, given.context.device)
        losses = training.fit(
            network, samples, self.recipe, given.context, objective=objective,
            on_epoch=objective.settle,
        )  # fmt: skip
        return Product(
            arrays=weights.packed(network.state_dict()),
            outcome={"losses": losses, "images": len(samples)},
            info={"accuracies": objective.accuracies},
        )


@dataclass(frozen=True, kw_only=True)
class TrainByAttack(_Training):
    """Let an attack that controls the training give the victim.

    Attributes:
        attack: the attack with its rates, which it realizes itself.
        model: the architecture.
        recipe: how victims are trained, its precision resolved.
        seed: of the trial.
    """

    attack: Attack
    model: Model
    recipe: Recipe
    seed: int

    def perform(self, given: Inputs) -> Product:
        """Return the victim's weights, and the arrays that the attack's `stamp` is given."""
        from raysweep.stages.content import Product
        from raysweep.training import weights

        data = given.data
        victim = self.attack.train(data.train, self.model, data.shape, self.recipe, given.context)
        return Product(arrays={**victim.artifact, **weights.packed(victim.state)})
