"""Networks as a stage builds them: from a stream of its own, inside global random state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from raysweep.datasets import Shape
from raysweep.methods.context import Context
from raysweep.models import Model
from raysweep.training.step import Objective as Objective
from raysweep.training.step import autocast as autocast
from raysweep.training.step import capturable as capturable
from raysweep.training.streams import Batch as Batch
from raysweep.training.streams import Source as Source
from raysweep.training.streams import Stream as Stream


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    Layer initialization and dropout take no generator of their own.
    """
    # Asking a GPU for its generator's state would open a context on it.
    used = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=used):
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_available():  # `torch.manual_seed` keeps a stack for each kind without GPU
            torch.cuda.manual_seed_all(seed)
        yield


def build(model: Model, shape: Shape, ctx: Context, *names: str | int) -> nn.Module:
    """Return a freshly initialized network on the context's device; `names` tell streams apart."""
    model.check(shape)
    with global_seed(ctx.stream("initialization", *names)):
        network: nn.Module = model.build(shape)
    network.to(torch.device(ctx.device))
    return network.to(memory_format=torch.channels_last)
