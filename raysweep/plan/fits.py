"""Faults that a launch would meet, found before any data are decoded."""

from __future__ import annotations

from raysweep.attacks import Attack, Planned
from raysweep.datasets import Dataset, Shape
from raysweep.defenses import Defense
from raysweep.errors import PlanError, StageError
from raysweep.models import Model
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
                elif isinstance(method, Model | Attack):
                    _check_shape(planner, dataset, method)


def _check_shape(planner: Planner, dataset: Dataset, method: Model | Attack) -> None:
    facts = planner.facts(dataset)
    if dataset.DOMAIN != "images" or facts.size is None:
        return
    channels, height, width = facts.size
    shape = Shape(
        channels=channels, height=height, width=width, num_classes=facts.num_classes,
        mean=(0.0,) * channels, std=(1.0,) * channels,
    )  # fmt: skip
    try:
        if isinstance(method, Model):
            method.check(shape)
        elif method.rate:
            method.check(
                Planned(
                    shape=shape, labels=facts.labels, rows=facts.rows,
                    test_labels=facts.test_labels, test_rows=facts.test_rows,
                )
            )  # fmt: skip
    except (StageError, ValueError) as error:
        told = str(error)
        if not isinstance(error, StageError):  # which names the method itself
            role = "attack" if isinstance(method, Attack) else "model"
            told = f"{role} {method.name}: {error}"
        raise PlanError(f"dataset {dataset.label}: {told}") from None
    except Exception:  # noqa: BLE001  no rule of a method, but a fault: it costs its own rows
        return


def _check_clean(planner: Planner, dataset: Dataset, defense: Defense) -> None:
    if "clean_set" not in defense.needs():
        return
    facts = planner.facts(dataset)
    have, least = sum(facts.clean), defense.least_clean()
    fewest, of_class = min(facts.clean), defense.least_of_class()
    if have >= least and fewest >= of_class:
        return
    lacking = (
        f"{least} reserved clean images, got {have}"
        if have < least
        else f"{of_class} reserved clean images of every class, got {fewest} of class "
        f"{facts.clean.index(fewest)}, of {have} in all"
    )
    raise PlanError(
        f"dataset {dataset.label}: defense {defense.name} needs at least {lacking}; raise "
        f"clean_size or test_size of the dataset"
    )
