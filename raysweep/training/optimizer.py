"""The optimizer of a recipe, and its learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from raysweep.methods.recipe import Recipe
from raysweep.training.step import Objective as Objective
from raysweep.training.step import autocast as autocast
from raysweep.training.step import capturable as capturable
from raysweep.training.streams import Batch as Batch
from raysweep.training.streams import Source as Source
from raysweep.training.streams import Stream as Stream


def make_optimizer(
    model: nn.Module | Iterable[torch.Tensor], recipe: Recipe
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over all trainable parameters."""
    every = model.parameters() if isinstance(model, nn.Module) else model
    parameters = [p for p in every if p.requires_grad]
    fused = all(p.is_floating_point() for p in parameters)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(
            parameters,
            lr=recipe.learning_rate,
            betas=(recipe.momentum, 0.999),
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    return torch.optim.SGD(
        parameters,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step out of `steps`."""
    done = step / max(steps, 1)
    factor = {
        "constant": 1.0,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "one_cycle": min((step + 1) / max(0.2 * steps, 1), (steps - step) / max(0.8 * steps, 1)),
        "multistep": 0.1 ** sum(done >= fraction for fraction in recipe.milestones),
    }[recipe.schedule]
    return recipe.learning_rate * min(factor, 1.0)
