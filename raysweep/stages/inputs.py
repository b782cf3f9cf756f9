"""The inputs of a stage: artifacts by role, unpacked on demand."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from raysweep.arrays import Array, Bools, IntArray
from raysweep.attacks import Part
from raysweep.datasets import ImageSet
from raysweep.errors import DamagedArtifact
from raysweep.methods import Context
from raysweep.models import Model
from raysweep.stages.content import Data, Decided, Poison, Predictions, StoredFindings
from raysweep.stages.stage import Outcome
from raysweep.store import Manifest, Store

if TYPE_CHECKING:
    from torch import nn


class Inputs:
    """The inputs of one stage at work, and what its methods are offered."""

    def __init__(self, keys: Mapping[str, str], store: Store, context: Context) -> None:
        """Read nothing yet.

        Args:
            keys: role → key of an artifact.
            store: where the artifacts are.
            context: random streams, device, checkpoints.
        """
        self.keys = keys
        self.store = store
        self.context = context
        self.device = context.device

    def read(self, role: str) -> Mapping[str, Array]:
        """Return the arrays of an input, or nothing if the stage has no such input."""
        return _arrays(self.store, self.keys[role]) if role in self.keys else {}

    def outcome(self, role: str) -> Outcome:
        """Return the outcome of an input, or nothing if the stage has no such input."""
        return _manifest(self.store, self.keys[role]).outcome if role in self.keys else {}

    @functools.cached_property
    def data(self) -> Data:
        """The decoded dataset."""
        return _data(self.store, _manifest(self.store, self.keys["data"]))

    @functools.cached_property
    def poison(self) -> Poison | None:
        """The samples that the attack replaced, if there are any."""
        return Poison.unpacked(self.read("poison")) if "poison" in self.keys else None

    @functools.cached_property
    def training_set(self) -> ImageSet:
        """The poisoned training set."""
        clean = self.data.train
        return clean if self.poison is None else self.poison.applied(clean)

    @property
    def given_labels(self) -> IntArray:
        """The labels of the poisoned training set, (N,)."""
        clean = self.data.train.labels
        return clean.copy() if self.poison is None else self.poison.labels(clean)

    def mask(self, part: Part) -> Bools:
        """Return the mask (N,) of the poisoned training samples, or of the covers."""
        mask = np.zeros(len(self.data.train), bool)
        if self.poison is not None:
            mask[self.poison.poison_rows if part == "poison" else self.poison.cover_rows] = True
        return mask

    def findings(self, role: str) -> StoredFindings:
        """Return the findings of a defense's run; empty findings if the stage has no such input."""
        return StoredFindings.unpacked(self.read(role), self.outcome(role))

    def decided(self, role: str) -> Decided | None:
        """Return a decision, if the stage has such an input."""
        if role not in self.keys:
            return None
        return Decided.unpacked(self.read(role), self.outcome(role))

    def predictions(self, role: str) -> Predictions:
        """Return a model's predictions on clean and triggered test inputs."""
        return Predictions.unpacked(self.read(role))

    def network(self, model: Model, role: str) -> nn.Module:
        """Return a network with the weights of an input, in eval mode, on the device."""
        from raysweep import training
        from raysweep.training import weights

        network = training.build(model, self.data.shape, self.context, "unused")
        network.load_state_dict(weights.unpacked(self.read(role)))
        return network.eval()


def _manifest(store: Store, key: str) -> Manifest:
    manifest = store.manifest_as_asked(key)
    if manifest is None:
        raise DamagedArtifact(key, "its manifest is gone")
    return manifest


def _arrays(store: Store, key: str) -> Mapping[str, Array]:
    _manifest(store, key)
    return store.arrays(key)


def _data(store: Store, manifest: Manifest) -> Data:
    return _remembered_data(store, manifest.key, manifest.content)


@functools.lru_cache(maxsize=4)
def _remembered_data(store: Store, key: str, content: str) -> Data:
    del content  # a result that was replaced is read anew
    return Data.unpacked(_arrays(store, key), _manifest(store, key).outcome)
