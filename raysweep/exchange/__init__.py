"""Other projects' formats of a poisoned data set and its victim."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from raysweep.datasets import IntArray
from raysweep.errors import DamagedArtifact, PlanError
from raysweep.methods.context import Context
from raysweep.plan.planner import Planner
from raysweep.results.description import as_launched, described
from raysweep.results.records import collector_of
from raysweep.stages.content import Predictions
from raysweep.stages.inputs import Inputs
from raysweep.stages.triggers import Trigger
from raysweep.store import Store
from raysweep.sweep.spec import Sweep
from raysweep.training import weights


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """One attacked training set, its victim, and its triggered test inputs.

    Attributes:
        dataset, model, attack: names; `rate`, `cover_rate`, `target`, `seed` as in the sweep.
        num_classes: of the data set.
        train_total, test_total: sizes of the whole source splits.
        images, labels: the poisoned training set, uint8 (N, C, H, W) and (N,).
        original_labels: before the attack, (N,).
        train_rows: (N,) rows of these images in the source's training split.
        poison, cover: (N,) masks of the poisoned images, and of the covers.
        test_images, test_labels: triggered evaluation set and its true labels.
        test_rows: its row numbers in the source's test split.
        mapped, eligible: labels the attacker wants, and whether the ASR counts the input.
        state: the victim's state dict, in the order of the network's parts.
        ca, asr: of the victim, fractions.
    """

    dataset: str
    model: str
    attack: str
    rate: float
    cover_rate: float
    target: int
    seed: int
    num_classes: int
    train_total: int
    test_total: int
    images: torch.Tensor
    labels: IntArray
    original_labels: IntArray
    train_rows: IntArray
    poison: NDArray[np.bool_]
    cover: NDArray[np.bool_]
    clean_images: torch.Tensor
    clean_labels: IntArray
    test_clean: torch.Tensor
    test_images: torch.Tensor
    test_labels: IntArray
    test_rows: IntArray
    mapped: IntArray
    eligible: NDArray[np.bool_]
    state: dict[str, torch.Tensor]
    ca: float
    asr: float

    def __str__(self) -> str:
        """Name it as BackdoorBench does, with the seed: dataset_model_attack_rate_seed."""
        rate = f"{self.rate:g}".replace(".", "_")
        return f"{self.dataset}_{self.model}_{self.attack}_{rate}_seed{self.seed}"


def poisoned_sets(sweep: Sweep, store: Store) -> Iterator[Poisoned]:
    """Yield every attacked setting of a sweep once.

    Raises:
        PlanError: if a setting is not finished or damaged, or its attack leaves no training set.
    """
    try:
        yield from _poisoned_sets(sweep, store)
    except DamagedArtifact as error:
        store.discard(error.key)
        raise PlanError(
            f"{error.key} was damaged ({error.detail}) and is discarded; launch the sweep again, "
            f"which computes it anew, then export"
        ) from None


def _poisoned_sets(sweep: Sweep, store: Store) -> Iterator[Poisoned]:
    launched = as_launched(sweep, described(store, sweep.name))
    planner, seen = Planner(launched), set()
    if launched.race:  # which seeds there are depends on what was found
        planner = collector_of(store, sweep.name, described(store, sweep.name)).planner
    for trial in planner.trials:
        if trial.dataset.DOMAIN != "images":
            raise PlanError(
                f"dataset {trial.dataset.name} holds {trial.dataset.DOMAIN}, these formats hold "
                f"images; leave it out of what is exported"
            )
        setting = planner.setting(trial)
        if setting.poison is None:
            if trial.attack.TRAINS and trial.attack.rate > 0:
                raise PlanError(
                    f"attack {trial.attack.name} trains the victim itself and leaves no training "
                    f"set; exclude it from what is exported"
                )
            continue
        tested = planner.tested(trial, setting, setting.victim)
        if tested in seen:
            continue
        seen.add(tested)
        for key in (setting.data, setting.poison, setting.victim, tested):
            if store.manifest(key) is None:
                raise PlanError(
                    f"{trial.attack.label} @ {trial.attack.rate:g}, seed {trial.seed}: {key} is "
                    f"not stored; launch the sweep first"
                )
        training = Inputs(planner.stages[setting.victim].inputs, store, Context(seed=0))
        given = Inputs(planner.stages[tested].inputs, store, Context(seed=0))
        trigger = Trigger(trial.attack, trial.seed, given)
        predicted = Predictions.unpacked(store.arrays(tested))
        data, poisoned = training.data, training.training_set
        labels, classes = trial.dataset.read_labels(), data.shape.num_classes
        held = weights.unpacked(store.arrays(setting.victim))
        state = {name: held[name] for name in trial.model.build(data.shape).state_dict()}
        mapped = trial.attack.relabel(data.test.labels, classes)
        eligible = trial.attack.eligible(data.test.labels, classes)
        named = trial.attack.origin()
        yield Poisoned(
            dataset=trial.dataset.name, model=trial.model.name, attack=named.attack,
            rate=named.rate, cover_rate=named.cover_rate,
            target=trial.attack.target, seed=trial.seed, num_classes=classes,
            train_total=len(labels.train), test_total=len(labels.test),
            images=poisoned.images, labels=poisoned.labels, original_labels=data.train.labels,
            train_rows=data.train_rows,
            poison=training.mask("poison"), cover=training.mask("cover"),
            clean_images=data.clean.images, clean_labels=data.clean.labels,
            test_clean=data.test.images, test_images=trigger.test_images,
            test_labels=data.test.labels, test_rows=data.test_rows, mapped=mapped,
            eligible=eligible, state=state,
            ca=float((predicted.clean == data.test.labels).mean()),
            asr=float((predicted.triggered == mapped)[eligible].mean()),
        )  # fmt: skip


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into, which takes its name when the block has ended.

    Whatever fails, or kills the process, leaves no folder of this name.

    Raises:
        PlanError: if there is one already, or none can be made.
    """
    check_free(folder)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise PlanError(
            f"{str(folder)!r} cannot be made ({error.strerror}); give another --to"
        ) from None
    try:
        yield unfinished
        check_free(folder)
        unfinished.replace(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def check_free(folder: Path) -> None:
    """Make sure that nothing is overwritten.

    Raises:
        PlanError: if something is there.
    """
    if os.path.lexists(folder):
        raise PlanError(
            f"{str(folder)!r} is there already and is not overwritten; remove it, or give another "
            f"--to"
        )


def plain_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a victim's weights under the names of the bare network, without the normalization.

    Both projects normalize in their data pipeline, by constants close to our measured ones.
    """
    return {
        name.removeprefix("net."): tensor
        for name, tensor in state.items()
        if not name.startswith("normalize.")
    }
