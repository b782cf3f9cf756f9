"""A planted toy: small images, a patch trigger, and a network that has learned it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raysweep import training
from raysweep.datasets import ImageSet, Shape
from raysweep.defenses import Defense, DefenseInputs, Evidence, Findings
from raysweep.methods import decision_fields
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models.tiny_cnn import TinyCNN

CLASSES, SIDE, TARGET = 4, 12, 1
RECIPE = Recipe(epochs=6, batch_size=64, learning_rate=0.1, precision="float32")
MODEL = TinyCNN(width=8)
SHAPE = Shape(channels=1, height=SIDE, width=SIDE, num_classes=CLASSES, mean=(0.3,), std=(0.25,))


@dataclass(frozen=True)
class Toy:
    """A poisoned training set, a clean set, its victim, and the truth."""

    train: ImageSet
    clean: ImageSet
    test: ImageSet
    triggered: torch.Tensor
    mask: np.ndarray
    weights: dict[str, torch.Tensor]
    features: np.ndarray


def images(labels: np.ndarray, seed: int) -> torch.Tensor:
    """Return noisy images in which each class is a bright bar at its own height."""
    rng = np.random.default_rng(seed)
    pixels = rng.random((len(labels), 1, SIDE, SIDE)) * 130
    for row, label in enumerate(labels):
        pixels[row, 0, 2 * label : 2 * label + 2, :8] += 90
    return torch.from_numpy(pixels.astype(np.uint8))


def stamped(clean: torch.Tensor) -> torch.Tensor:
    """Return copies with a white 3 x 3 patch in the corner."""
    copies = clean.clone()
    copies[:, :, -3:, -3:] = 255
    return copies


@functools.cache
def toy(rate: float = 0.1, seed: int = 0, count: int = 600) -> Toy:
    """Return the toy of a poison rate and a number of samples; trained once a process."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    pixels = images(labels, seed)
    mask = np.zeros(count, bool)
    mask[rng.permutation(np.flatnonzero(labels != TARGET))[: int(rate * count)]] = True
    pixels[torch.from_numpy(mask)] = stamped(pixels[torch.from_numpy(mask)])
    labels[mask] = TARGET
    train = ImageSet(images=pixels, labels=labels)
    clean_labels = rng.integers(0, CLASSES, count // 5)
    test_labels = rng.integers(0, CLASSES, count // 3)
    ctx = Context(seed=seed)
    network = training.build(MODEL, SHAPE, ctx)
    training.fit(network, train, RECIPE, ctx)
    features, _ = training.features(network, pixels, MODEL.HEAD, MODEL.HEAD, RECIPE, "cpu")
    test = images(test_labels, seed + 2)
    return Toy(
        train=train,
        clean=ImageSet(images=images(clean_labels, seed + 1), labels=clean_labels),
        test=ImageSet(images=test, labels=test_labels),
        triggered=stamped(test),
        mask=mask,
        weights={n: t.clone() for n, t in network.state_dict().items()},
        features=features.numpy(),
    )


def network(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return the toy's network with some weights, in eval mode."""
    made = training.build(MODEL, SHAPE, Context(seed=99))
    made.load_state_dict(weights)
    return made.eval()


def inputs(defense: Defense, case: Toy, **more: Any) -> DefenseInputs:
    """Return the inputs that a defense declares, about the toy, and nothing else."""
    needs = defense.needs()
    known = {
        "training_set": case.train,
        "victim": network(case.weights),
        "features": case.features,
        "clean_set": case.clean,
        "poison_rate": float(case.mask.mean()),
        "poison_mask": case.mask,
        "cover_mask": np.zeros_like(case.mask),
        "target_class": TARGET,
        "trigger": stamped(torch.zeros(1, 1, SIDE, SIDE)).numpy()[0] * np.float32(0.5 / 255),
    }
    values: dict[str, Any] = {name: value for name, value in known.items() if name in needs}
    if needs & {"training_set", "features", "poison_mask"}:
        values["labels"] = case.train.labels
    values |= {"model": MODEL, "shape": SHAPE, "recipe": RECIPE, "shards": [], **more}
    return DefenseInputs(defense.name, needs, values)


def blind(defense: Defense) -> Defense:
    """Return a copy without its decision parameters: reading one raises AttributeError."""
    copy = defense.model_copy()
    for field in decision_fields(type(defense)):
        del copy.__dict__[field]
    return copy


def sharded(defense: Defense, case: Toy, seed: int = 5) -> list[dict[str, Any]]:
    """Run the parts of a defense on the toy, blind to how it decides."""
    ctx, runs = Context(seed=seed), blind(defense)
    return [dict(runs.shard(part, inputs(defense, case), ctx)) for part in defense.parts(CLASSES)]


def found(
    defense: Defense, case: Toy, seed: int = 5, shards: list[dict[str, Any]] | None = None
) -> Findings:
    """Run a defense on the toy, its parts first; neither they nor scorers see how it decides.

    Args:
        shards: what the parts left, if they ran already.
    """
    shards = sharded(defense, case, seed) if shards is None else shards
    return blind(defense).run(inputs(defense, case, shards=shards), Context(seed=seed))


def evidence(defense: Defense, case: Toy, findings: Findings) -> Evidence:
    """Return the evidence that `decide` may read of findings on the toy."""
    values: dict[str, Any] = {
        "labels": case.train.labels,
        "num_classes": CLASSES,
        "statistics": findings.statistics,
        "removed_count": 60,
        "poison_rate": float(case.mask.mean()),
        "poison_mask": case.mask,
    }
    for oracle in ("removed_count", "poison_rate", "poison_mask"):
        if oracle not in defense.needs():
            values.pop(oracle)
    if findings.train_scores is not None:
        values["train_scores"] = np.asarray(findings.train_scores)
    if findings.score_inputs is not None:
        rows = findings.calibration if findings.calibration is not None else np.arange(120)
        floats = case.clean.images[torch.from_numpy(rows)].float() / 255
        values["reference_scores"] = findings.score_inputs(floats, rows)
    return Evidence(defense.name, defense.needs(), values)


def asr(weights: dict[str, torch.Tensor], case: Toy) -> float:
    """Return the attack success rate of a model on the toy."""
    predicted = training.predict(network(weights), case.triggered, RECIPE, "cpu").argmax(1).numpy()
    return float((predicted == TARGET)[case.test.labels != TARGET].mean())


def accuracy(weights: dict[str, torch.Tensor], case: Toy) -> float:
    """Return the clean accuracy of a model on the toy."""
    logits = training.predict(network(weights), case.test.images, RECIPE, "cpu")
    return float((logits.argmax(1).numpy() == case.test.labels).mean())
