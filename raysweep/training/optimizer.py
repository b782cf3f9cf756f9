"""The optimizer of a recipe, and its learning rate at each step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import TypeVar, cast

import torch
from torch import nn

from raysweep.methods.recipe import Recipe
from raysweep.training.step import Objective as Objective
from raysweep.training.step import autocast as autocast
from raysweep.training.step import capturable as capturable
from raysweep.training.streams import Batch as Batch
from raysweep.training.streams import Source as Source
from raysweep.training.streams import Stream as Stream

Kind = TypeVar("Kind", bound=type[torch.optim.Optimizer])


def _eager(kind: Kind) -> Kind:
    """Return a kind of optimizer without torch's guards against compiling its methods.

    We compile nothing, and the guards import torch's compiler: two seconds of every process.
    """
    own = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad")}
    own["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return cast("Kind", type(kind.__name__, (kind,), own))


SGD, Adam = _eager(torch.optim.SGD), _eager(torch.optim.Adam)


def make_optimizer(
    model: nn.Module | Iterable[torch.Tensor], recipe: Recipe
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over all trainable parameters."""
    every = model.parameters() if isinstance(model, nn.Module) else model
    parameters = [p for p in every if p.requires_grad]
    fused = all(p.is_floating_point() for p in parameters)
    if recipe.optimizer == "adam":
        return Adam(
            parameters,
            lr=recipe.learning_rate,
            betas=(recipe.momentum, 0.999),
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    return SGD(
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
