"""A stage's desk: its parameters made into methods, its inputs read from the store on demand."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysweep import methods, rng, training
from raysweep.arrays import Array
from raysweep.attacks import Attack, Part
from raysweep.datasets import ImageSet, IntArray, Shape, as_floats
from raysweep.defenses import Defense
from raysweep.errors import DamagedArtifact, StageError
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.metrics.rates import attack_success
from raysweep.models import Model
from raysweep.stages.stage import Stage
from raysweep.store import Manifest, Store

LONG_KINDS = frozenset({"prepare", "train", "shard", "defend"})


@dataclass(frozen=True, kw_only=True)
class Product:
    """What a stage leaves in the store: arrays, and a small JSON outcome in the manifest."""

    arrays: dict[str, Array] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Data:
    """A decoded dataset; `train_rows` and `test_rows` tell where its images stand in the files.

    The former are those of the training set, the latter those of the evaluation set.
    """

    train: ImageSet
    clean: ImageSet
    test: ImageSet
    train_rows: IntArray
    test_rows: IntArray
    shape: Shape


class Desk:
    """One stage at work: its parameters made into methods, its inputs read on demand."""

    def __init__(self, stage: Stage, store: Store, context: Context) -> None:
        self.stage = stage
        self.params = stage.params
        self.store = store
        self.device = context.device
        name = stage.method
        seed = rng.derive(int(stage.params.get("seed", 0)), stage.kind, name)
        self.ctx = Context(
            seed=rng.derive(seed, str(stage.params.get("part", ""))),
            device=context.device,
            progress=context.progress,
            checkpoint=functools.partial(store.checkpoint, stage.key),
            restored=store.restore(stage.key) if stage.kind in LONG_KINDS else {},
        )

    # Methods of this stage

    @property
    def attack(self) -> Attack:
        """The attack; it has a rate where this stage's key holds one."""
        return method("attacks", self.params["attack"])  # type: ignore[no-any-return]

    @property
    def defense(self) -> Defense:
        """The defense; decision parameters have their defaults wherever they are not identity."""
        defense: Defense = method("defenses", self.params["defense"])
        if self.stage.kind == "defend" and self.params.get("part") == "run":
            asked = self.params.get("run_version", 1)
            methods.check_version(type(defense), "RUN_VERSION", asked)
        return defense

    @property
    def model(self) -> Model:
        """The architecture."""
        return method("models", self.params["model"])  # type: ignore[no-any-return]

    @property
    def recipe(self) -> Recipe:
        """The training recipe, precision resolved."""
        return Recipe.model_validate_json(json.dumps(self.params["recipe"]))

    # Inputs

    def key(self, role: str) -> str | None:
        """Return the key that plays a role in this stage, if any."""
        return self.stage.inputs.get(role) or self.stage.reads.get(role)

    def read(self, role: str) -> dict[str, Array]:
        """Return the arrays of an input, or nothing if this stage has no such input."""
        key = self.key(role)
        return _arrays(self.store, key) if key else {}

    def outcome(self, role: str) -> Mapping[str, Any]:
        """Return the outcome of an input, or nothing if this stage has no such input."""
        key = self.key(role)
        return _manifest(self.store, key).outcome if key else {}

    @functools.cached_property
    def data(self) -> Data:
        """The decoded dataset."""
        return _data(self.store, self.stage.inputs["data"])

    @functools.cached_property
    def poison(self) -> dict[str, Array]:
        """Rows, images and labels that the attack replaced; empty without poison."""
        return self.read("poison")

    @functools.cached_property
    def training_set(self) -> ImageSet:
        """The poisoned training set."""
        base = self.data.train
        if not self.poison:
            return base
        images = base.images.clone()
        for part in ("poison", "cover"):
            rows = torch.from_numpy(self.poison[f"{part}_rows"].copy())
            images[rows] = torch.from_numpy(self.poison[f"{part}_images"].copy())
        return ImageSet(images=images, labels=self.given_labels)

    @property
    def given_labels(self) -> IntArray:
        """The labels of the poisoned training set, (N,)."""
        labels = self.data.train.labels.copy()
        if self.poison:
            labels[self.poison["poison_rows"]] = self.poison["poison_labels"]
        return labels

    def mask(self, part: Part) -> NDArray[np.bool_]:
        """Return which training samples are poisoned, or covers, (N,)."""
        mask = np.zeros(len(self.data.train), bool)
        if self.poison:
            mask[self.poison[f"{part}_rows"]] = True
        return mask

    def network(self, arrays: Mapping[str, Array]) -> nn.Module:
        """Return a network with the weights of an artifact, in eval mode, on the device."""
        network = training.build(self.model, self.data.shape, self.ctx, "unused")
        network.load_state_dict(state_from(arrays))
        return network.eval()

    @property
    def attack_seed(self) -> int:
        """Root of the attack's streams in this trial: the same in every stage that stamps."""
        return rng.derive(int(self.params["seed"]), "attack", self.params["attack"]["name"])

    def stamp(self, images: torch.Tensor, ids: IntArray, part: Part) -> torch.Tensor:
        """Return triggered copies; those of uint8 images are rounded to 8 bits."""
        stamped = []
        artifact = self.read("artifact")
        for start in range(0, len(images), 1000):
            cut = slice(start, start + 1000)
            triggered = self.attack.stamp(
                as_floats(images[cut].to(self.device)),
                ids=ids[cut],
                part=part,
                artifact=artifact,
                seed=self.attack_seed,
            )
            if images.dtype == torch.uint8:
                triggered = triggered.clamp(0, 1).mul(255).round().to(torch.uint8)
            stamped.append(triggered.cpu())
        return torch.cat(stamped) if stamped else images

    def added(self) -> NDArray[np.float32]:
        """Return what the trigger adds to a gray image at test time, (C, H, W)."""
        gray = torch.full((1, *self.data.test.images.shape[1:]), 0.5)
        added: NDArray[np.float32] = self.stamp(gray, self.data.test_rows[:1], "test")[0].numpy()
        return added - 0.5

    def success(self, network: nn.Module) -> float:
        """Return a network's ASR on the evaluation set; it is left in eval mode."""
        labels, shape = self.data.test.labels, self.data.shape
        logits = training.predict(network, self._triggered, self.recipe, self.device)
        return attack_success(
            logits.argmax(1).numpy(), self.attack.relabel(labels, shape.num_classes),
            self.attack.eligible(labels, shape.num_classes),
        ).value  # fmt: skip

    @functools.cached_property
    def _triggered(self) -> torch.Tensor:
        return self.triggered_test()

    def triggered_test(self) -> torch.Tensor:
        """Return the whole evaluation set, triggered.

        Raises:
            StageError: if the attack has no triggered form of an input that the ASR counts.
        """
        test, ids = self.data.test, self.data.test_rows
        counted = self.attack.eligible(test.labels, self.data.shape.num_classes)
        lacking = ids[counted & ~self.attack.triggers(ids, self.read("artifact"))]
        if len(lacking):
            raise StageError(
                f"attack {self.attack.label} has no triggered form of {len(lacking)} of "
                f"{int(counted.sum())} test inputs that its ASR counts, row {lacking[0]} of the "
                f"test files first; cut the dataset (test_size, clean_size, clean_seed) as the "
                f"attack's inputs were"
            )
        return self.stamp(test.images, ids, "test")


def state_from(arrays: Mapping[str, Array], prefix: str = "model.") -> dict[str, torch.Tensor]:
    """Return the state dict that an artifact holds under `prefix`."""
    return {
        name.removeprefix(prefix): torch.from_numpy(np.array(array))
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def state_arrays(state: Mapping[str, torch.Tensor], prefix: str = "model.") -> dict[str, Array]:
    """Return a state dict as arrays of an artifact."""
    return {f"{prefix}{n}": t.detach().cpu().contiguous().numpy() for n, t in state.items()}


@functools.lru_cache(maxsize=512)
def _restored(role: methods.Role, identity: str) -> methods.Method:
    restored: methods.Method = methods.restore(role, json.loads(identity))
    return restored


def method(role: methods.Role, identity: Mapping[str, Any]) -> Any:
    """Return a method from its identity; each is built once a process."""
    return _restored(role, json.dumps(identity, sort_keys=True))


def _manifest(store: Store, key: str) -> Manifest:
    manifest = store.manifest(key)
    if manifest is None:
        raise DamagedArtifact(key, "its manifest is gone")
    return manifest


def _arrays(store: Store, key: str) -> dict[str, Array]:
    _manifest(store, key)
    return store.arrays(key)


@functools.lru_cache(maxsize=4)
def _data(store: Store, key: str) -> Data:
    arrays = _arrays(store, key)
    facts = _manifest(store, key).outcome["shape"]

    def part(name: str) -> ImageSet:
        images = torch.from_numpy(np.array(arrays[f"{name}_images"]))
        return ImageSet(images=images, labels=np.array(arrays[f"{name}_labels"]))

    shape = Shape(**{**facts, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])})
    return Data(
        train=part("train"), clean=part("clean"), test=part("test"),
        train_rows=np.array(arrays["train_rows"]), test_rows=np.array(arrays["test_rows"]),
        shape=shape,
    )  # fmt: skip
