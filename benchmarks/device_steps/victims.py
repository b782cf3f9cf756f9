"""The networks, random images and trainings that the steps measure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from device_steps.bench import Bench
from raysweep import methods, training
from raysweep.datasets import ImageSet, Shape
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models import Model
from raysweep.training.graph import FEWEST_STEPS

SHAPE = Shape(
    channels=3, height=32, width=32, num_classes=10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)
RECIPE = Recipe(
    epochs=100, batch_size=128, learning_rate=0.01, augment=("crop", "flip"), precision="bfloat16"
)
WAYS = {"eager": False, "default": True}


def model(name: str) -> Model:
    """Return an architecture with its default parameters."""
    made = methods.load("models", name)()
    assert isinstance(made, Model)
    return made


def network(name: str, device: str) -> nn.Module:
    """Return a fresh network."""
    return training.build(model(name), SHAPE, Context(seed=0, device=device))


def random_images(count: int) -> ImageSet:
    """Return images and labels without meaning."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return ImageSet(images=torch.from_numpy(pixels), labels=rng.integers(0, 10, count))


def fit(
    module: nn.Module,
    data: Any,
    recipe: Recipe,
    ctx: Context,
    captured: bool = True,
    **more: Any,
) -> list[float]:
    """Train; with `captured`, steps are replayed from a CUDA graph where `fit` can."""
    return training.fit(module, data, recipe, replace(ctx, captured=captured), **more)


def step_seconds(
    bench: Bench, name: str, data: ImageSet, batch: int, captured: bool
) -> tuple[float, float]:
    """Return the seconds of a training step, and those of a `fit` beside its steps."""
    few, many = bench.pick((FEWEST_STEPS, FEWEST_STEPS + 100), (1, 2))
    module, recipe = network(name, bench.device), RECIPE.model_copy(update={"batch_size": batch})
    ctx = Context(seed=0, device=bench.device)

    def steps(count: int) -> float:
        return bench.seconds(lambda: fit(module, data, recipe, ctx, captured, steps=count))

    steps(few)
    short, long = steps(few), steps(many)
    each = max((long - short) / (many - few), 1e-9)
    return each, max(short - few * each, 0.0)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all weights and buffers on the CPU."""
    return {n: t.detach().cpu().clone() for n, t in module.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str:
    """Return `equal bytes`, or how many tensors differ and by how much at most."""
    far = [n for n in one if not torch.equal(one[n], other[n])]
    if not far:
        return "equal bytes"
    most = max(float((one[n].double() - other[n].double()).abs().max()) for n in far)
    return f"{len(far)} of {len(one)} tensors differ, by {most:.1e} at most"
