"""The one training loop: streams of batches, an objective over them, a recipe.

Data stay on the device (images as uint8); batches are cut, converted and augmented there; nothing
waits for the device inside an epoch. Victims use one stream and cross-entropy; Confusion Training
mixes a second stream in at every b-th step (`Stream.every`); ASSET gives two streams opposite signs
in its objective; distillation closes over a teacher; phases are several calls of `fit`.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import nn

from raysweep.datasets import ImageSet
from raysweep.errors import NonFiniteLoss
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.training import resume
from raysweep.training.network import global_seed
from raysweep.training.optimizer import learning_rate, make_optimizer
from raysweep.training.step import EagerStep, Step, count_on, step_of
from raysweep.training.step import Objective as Objective
from raysweep.training.step import autocast as autocast
from raysweep.training.step import capturable as capturable
from raysweep.training.streams import Batch as Batch
from raysweep.training.streams import Source as Source
from raysweep.training.streams import Stream as Stream

CHECKPOINT_SECONDS = 30.0  # at least as long between two checkpoints of one training


@capturable
def cross_entropy(
    model: nn.Module, batches: Mapping[str, Batch], label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the mean cross-entropy of the only stream."""
    (batch,) = batches.values()
    logits = model(batch.images).float()
    return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)


@cache
def keep_memory() -> None:
    """Make glibc keep up to 512 MiB of freed memory, once a process; elsewhere nothing happens.

    Otherwise the system takes back and zeroes again the pages of activations at every step.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, its maximum


def fit(
    model: nn.Module,
    data: ImageSet | Mapping[str, Stream],
    recipe: Recipe,
    ctx: Context,
    *,
    objective: Objective | None = None,
    phase: str = "fit",
    steps: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    on_epoch: Callable[[int, nn.Module], bool | None] | None = None,
    checkpoint: bool = False,
) -> list[float]:
    """Train `model` in place and leave it in eval mode.

    Args:
        model: on the context's device.
        data: one set, or named streams; the first sets the steps of an epoch.
        recipe: with its precision resolved.
        ctx: gives random streams, device and progress.
        objective: maps the model and the batches of this step to a scalar loss; by default
            cross-entropy with the recipe's label smoothing.
        phase: tells the random streams of several `fit` calls of one stage apart.
        steps: number of steps, instead of the recipe's epochs; the last epoch may be shorter.
        optimizer: to carry its state over from an earlier phase; by default a new one.
        on_epoch: called after each epoch with its number from 1 and the model in train mode;
            training ends early if it returns True.
        checkpoint: keep the whole state from time to time, and continue from `ctx.restored`, on
            a CPU to the same bytes; `on_epoch` then sees the remaining epochs alone. For the only
            `fit` of a stage, since a second one replaces it, and an objective without memory.

    Returns:
        The mean loss of each epoch.

    Raises:
        NonFiniteLoss: names the first step whose loss is NaN or infinite.
    """
    streams = {"data": Stream(data=data)} if isinstance(data, ImageSet) else data
    stage, ctx = ctx, Context(seed=ctx.stream(phase), device=ctx.device, progress=ctx.progress)
    keep_memory()
    objective = objective or _plain(recipe)
    sources = {name: Source(name, stream, recipe, ctx) for name, stream in streams.items()}
    optimizer = optimizer or make_optimizer(model, recipe)
    name = f"fit.{phase}.{ctx.device}"
    epochs = _epochs(recipe, next(iter(sources.values())).batches, steps)
    with _in_training(model, ctx.device), global_seed(ctx.stream("dropout")):
        before = stage.restored if checkpoint else {}
        means = resume.restored(before, model, optimizer, sources, name)
        eager = EagerStep(model, optimizer, sources, objective, recipe, ctx.device)
        take = step_of(eager, sum(map(len, epochs[len(means) :])), captured=stage.captured)
        saved_at = time.monotonic()
        for epoch, rates in enumerate(epochs[len(means) :], len(means) + 1):
            means.append(_epoch(take, sources, rates))
            ctx.progress(epoch / len(epochs), f"{phase}: epoch {epoch}")
            if on_epoch is not None and on_epoch(epoch, model):
                break
            if checkpoint and time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
                stage.checkpoint(resume.captured(model, optimizer, sources, means, name))
                saved_at = time.monotonic()
    return means


@contextlib.contextmanager
def _in_training(model: nn.Module, device: str) -> Iterator[None]:
    """Put a model into train mode, and into eval mode at the end."""
    model.train()
    count_on(model, "cpu")
    try:
        yield
    finally:
        count_on(model, device)
        model.eval()


def _plain(recipe: Recipe) -> Objective:
    return capturable(partial(cross_entropy, label_smoothing=recipe.label_smoothing))


def _epochs(recipe: Recipe, per_epoch: int, steps: int | None) -> list[dict[int, float]]:
    """Return the learning rate of every step, epoch by epoch."""
    total = per_epoch * recipe.epochs if steps is None else steps
    return [
        {n: learning_rate(recipe, n, total) for n in range(first, min(first + per_epoch, total))}
        for first in range(0, total, per_epoch)
    ]


def _epoch(take: Step, sources: Mapping[str, Source], rates: Mapping[int, float]) -> float:
    """Train for the steps that have `rates`; return the mean of the losses."""
    losses = []
    for number, rate in rates.items():
        rows = {n: s.next() for n, s in sources.items() if number % s.stream.every == 0}
        losses.append(take(rows, rate))
    take.settle()
    return _checked_mean(torch.stack(losses), min(rates))


def _checked_mean(losses: torch.Tensor, first_step: int) -> float:
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        step = first_step + int((~finite).nonzero()[0])
        raise NonFiniteLoss(
            f"the loss of step {step} is {losses[step - first_step].item()}; "
            f"lower learning_rate, or set precision: float32"
        )
    return float(losses.mean())
