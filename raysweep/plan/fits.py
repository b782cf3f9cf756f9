"""Faults that a launch would meet, found before any data are decoded."""

from __future__ import annotations

import numpy as np

from raysweep.attacks import Attack
from raysweep.datasets import Dataset, Shape
from raysweep.defenses import Defense
from raysweep.errors import PlanError, StageError
from raysweep.methods import paths_of
from raysweep.models import Model
from raysweep.plan.costs import shape_of
from raysweep.plan.planner import Planner


def check_fits(planner: Planner) -> None:
    """Refuse a model, a trigger or a clean set that a stage would fail with.

    Raises:
        PlanError: names the methods, the values, the rule and the remedy.
    """
    tried: set[tuple[object, object]] = set()
    for trial in planner.trials:
        dataset = trial.dataset
        for method in (trial.model, trial.attack, trial.defense):
            if (dataset, method) in tried:
                continue
            tried.add((dataset, method))
            with PlanError.on(method, dataset):
                if isinstance(method, Defense):
                    _check_clean(planner, dataset, method)
                elif (
                    isinstance(method, Model | Attack)
                    and (shape := _known_shape(planner, dataset)) is not None
                ):
                    _check_shape(dataset, method, shape)


def _known_shape(planner: Planner, dataset: Dataset) -> Shape | None:
    """Return the shape of a dataset's samples; None if its own files alone tell it."""
    side = getattr(dataset, "side", None)
    if dataset.DOMAIN != "images" or (side is None and list(paths_of(dataset))):
        return None
    return shape_of(dataset, planner.facts(dataset).num_classes)


def _check_shape(dataset: Dataset, method: Model | Attack, shape: Shape) -> None:
    try:
        if isinstance(method, Model):
            method.check(shape)
        else:
            _try_stamp(method, shape)
    except (StageError, ValueError) as error:
        told = f"attack {method.name}: {error}" if isinstance(method, Attack) else str(error)
        raise PlanError(f"dataset {dataset.label}: {told}") from None


def _try_stamp(attack: Attack, shape: Shape) -> None:
    """Stamp one black image, if the attack needs nothing but its own parameters for it."""
    import torch

    if attack.rate == 0 or attack.PREPARES or attack.TRAINS or attack.EVADES:
        return
    image = torch.zeros(1, shape.channels, shape.height, shape.width)
    attack.stamp(image, ids=np.zeros(1, np.int64), part="test", artifact={}, seed=0)


def _check_clean(planner: Planner, dataset: Dataset, defense: Defense) -> None:
    if "clean_set" not in defense.needs():
        return
    have, least = planner.facts(dataset).clean, defense.least_clean()
    if have < least:
        raise PlanError(
            f"dataset {dataset.label}: defense {defense.name} needs at least {least} reserved "
            f"clean images, got {have}; raise clean_size or test_size of the dataset"
        )
