"""The knowledge that a stage passes to a defense: the declared needs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from raysweep.attacks import Attack
from raysweep.datasets import ImageSet
from raysweep.defenses import Defense, DefenseInputs, Evidence
from raysweep.methods import Recipe
from raysweep.models import Model
from raysweep.stages.inputs import Inputs
from raysweep.stages.shard import shard_role
from raysweep.stages.triggers import Trigger

if TYPE_CHECKING:
    from torch import nn

# The target class, what the trigger adds to a gray image, and a test of how often it succeeds.
Asked: TypeAlias = "int | NDArray[np.float32] | Callable[[nn.Module], float]"


def defense_inputs(
    given: Inputs,
    defense: Defense,
    *,
    model: Model,
    recipe: Recipe,
    seed: int,
    attack: Attack | None,
) -> DefenseInputs:
    """Return the inputs that a defense declares, and the setting that every defender knows.

    Args:
        given: the inputs of the stage.
        defense: whose declaration counts.
        model: the architecture of the victim.
        recipe: how it was trained.
        seed: of the trial.
        attack: if the defense declares that it may ask something of it.
    """
    needs, data = defense.needs(), given.data
    roles = [shard_role(part) for part in defense.parts(data.shape.num_classes)]
    values: dict[str, Any] = {
        "model": model,
        "shape": data.shape,
        "recipe": recipe,
        "shards": [given.read(role) for role in roles if role in given.keys],
    }
    if needs & {"training_set", "features"}:
        values["labels"] = given.training_set.labels.copy()
    if "training_set" in needs:
        values["training_set"] = _copy(given.training_set)
    if "victim" in needs:
        values["victim"] = given.network(model, "weights")
    if "features" in needs:
        values["features"] = np.array(given.read("features")["features"])
    if "clean_set" in needs:
        values["clean_set"] = _copy(data.clean)
    values |= _oracles(given, defense)
    if attack is not None:
        values |= _asked_of_the_attack(Trigger(attack, seed, given), defense, recipe)
    decided = given.decided("decision")
    if decided is not None:
        values |= {"found": given.findings("found").findings.kept, "decision": decided.decision}
    return DefenseInputs(defense.name, needs, values)


def _copy(images: ImageSet) -> ImageSet:
    return ImageSet(images=images.images.clone(), labels=images.labels.copy())


def _oracles(given: Inputs, defense: Defense) -> dict[str, NDArray[np.bool_] | float]:
    """Return the truth about the training set that the defense declares, and no more."""
    oracles: dict[str, Callable[[], NDArray[np.bool_] | float]] = {
        "poison_mask": lambda: given.mask("poison"),
        "cover_mask": lambda: given.mask("cover"),
        "poison_rate": lambda: float(given.mask("poison").mean()),
    }
    return {name: oracles[name]() for name in oracles.keys() & defense.needs()}


def _asked_of_the_attack(trigger: Trigger, defense: Defense, recipe: Recipe) -> dict[str, Asked]:
    """Return the truth about the attack that the defense declares, and no more."""
    oracles: dict[str, Callable[[], Asked]] = {
        "target_class": lambda: trigger.attack.target,
        "trigger": trigger.added,
        "test_success": lambda: partial(trigger.success, recipe=recipe),
    }
    return {name: oracles[name]() for name in oracles.keys() & defense.needs()}


def evidence(given: Inputs, defense: Defense) -> Evidence:
    """Return the evidence for a decision: stored scores and statistics, and declared truth."""
    stored = given.findings("defend")
    values: dict[str, Any] = {
        "labels": given.given_labels,
        "num_classes": given.data.shape.num_classes,
        "statistics": stored.findings.statistics,
        **_oracles(given, defense),
    }
    if stored.findings.train_scores is not None:
        values["train_scores"] = stored.findings.train_scores
    if "reference" in stored.input_scores:
        values["reference_scores"] = stored.input_scores["reference"]
    reference = given.decided("reference")
    if reference is not None:
        values["removed_count"] = reference.removed
    return Evidence(defense.name, defense.needs(), values)
