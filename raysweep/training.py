"""The one training loop: streams of batches, an objective over them, a recipe.

Data stay on the device (images as uint8); batches are cut, converted and augmented there; nothing
waits for the device inside an epoch. Victims use one stream and cross-entropy; Confusion Training
mixes a second stream in at every b-th step (`Stream.every`); ASSET gives two streams opposite signs
in its objective; distillation closes over a teacher; phases are several calls of `fit`.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import nn

from raysweep import resident, resume
from raysweep.context import Context
from raysweep.datasets import ImageSet, Shape, as_floats
from raysweep.errors import NonFiniteLoss
from raysweep.models import Model
from raysweep.recipe import Recipe
from raysweep.step import EagerStep, Step, count_on, step_of
from raysweep.step import Objective as Objective
from raysweep.step import autocast as autocast
from raysweep.step import capturable as capturable
from raysweep.streams import Batch as Batch
from raysweep.streams import Source as Source
from raysweep.streams import Stream as Stream

CHECKPOINT_SECONDS = 30.0  # at least as long between two checkpoints of one training
GPU_VALUES = 2048 * 3 * 32 * 32  # of the images of a batch without gradients


@capturable
def cross_entropy(
    model: nn.Module, batches: Mapping[str, Batch], label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the mean cross-entropy of the only stream."""
    (batch,) = batches.values()
    logits = model(batch.images).float()
    return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    Layer initialization and dropout take no generator of their own.
    """
    # Asking a GPU for its generator's state would open a context on it.
    used = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=used):
        torch.manual_seed(seed)
        yield


def build(model: Model, shape: Shape, ctx: Context, *names: str | int) -> nn.Module:
    """Return a freshly initialized network on the context's device; `names` tell streams apart."""
    model.check(shape)
    with global_seed(ctx.stream("initialization", *names)):
        network: nn.Module = model.build(shape)
    network.to(torch.device(ctx.device))
    return network.to(memory_format=torch.channels_last)


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
        steps: how many, instead of the recipe's epochs; the last epoch may then be a part of one.
        optimizer: to carry its state over from an earlier phase; by default a new one.
        on_epoch: called after each epoch with its number from 1 and the model in train mode;
            training ends early if it returns True.
        checkpoint: keep the whole state every so often, and continue from `ctx.restored`, on a CPU
            to the same bytes; `on_epoch` then sees the remaining epochs alone. For the only `fit`
            of a stage, since a second one replaces what is kept, and an objective without memory.

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
        kept = time.monotonic()
        for epoch, rates in enumerate(epochs[len(means) :], len(means) + 1):
            means.append(_epoch(take, sources, rates))
            ctx.progress(epoch / len(epochs), f"{phase}: epoch {epoch}")
            if on_epoch is not None and on_epoch(epoch, model):
                break
            if checkpoint and time.monotonic() - kept >= CHECKPOINT_SECONDS:
                stage.checkpoint(resume.captured(model, optimizer, sources, means, name))
                kept = time.monotonic()
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


def _batched(images: torch.Tensor, device: str, size: int | None) -> Iterator[torch.Tensor]:
    if size is None:  # A GPU is not filled by less than some million pixels.
        size = 500 if device == "cpu" else max(64, GPU_VALUES // math.prod(images.shape[1:]))
    there = resident.known(images, device)
    for part in (images if there is None else there).split(size):
        yield as_floats(part.to(device)).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(
    model: nn.Module,
    images: torch.Tensor,
    recipe: Recipe,
    device: str,
    *,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Return logits (N, K) float32 on the CPU, of uint8 images or of floats in [0, 1].

    Args:
        model: on the device; it is left in eval mode.
        images: (N, C, H, W), on the CPU or on the device.
        recipe: gives the precision.
        device: where to compute.
        batch_size: images at once; by default 500 on a CPU, and what fills a GPU there.
    """
    model.eval()
    with autocast(recipe, device):
        parts = [model(batch).float() for batch in _batched(images, device, batch_size)]
    return torch.cat(parts).cpu()


def per_sample_losses(
    model: nn.Module, data: ImageSet, recipe: Recipe, device: str
) -> torch.Tensor:
    """Return the cross-entropy of each sample, (N,) float32 on the CPU; leaves eval mode."""
    logits = predict(model, data.images, recipe, device)
    return F.cross_entropy(logits, torch.from_numpy(data.labels), reduction="none")


class Dynamics:
    """Records the loss of each sample after each epoch: `fit(..., on_epoch=Dynamics(...))`.

    Recording draws nothing and changes no weight.
    """

    def __init__(self, data: ImageSet, recipe: Recipe, device: str) -> None:
        self._data, self._recipe, self._device = data, recipe, device
        self._epochs: list[torch.Tensor] = []

    def __call__(self, epoch: int, model: nn.Module) -> None:
        """Record one epoch; the model's modules keep their modes."""
        del epoch
        training = [module for module in model.modules() if module.training]
        self._epochs.append(per_sample_losses(model, self._data, self._recipe, self._device))
        for module in training:
            module.training = True

    @property
    def losses(self) -> torch.Tensor:
        """Losses (epochs, N) float32 on the CPU, in the order of the data."""
        return torch.stack(self._epochs) if self._epochs else torch.zeros(0, len(self._data))


@torch.no_grad()
def layer_inputs_and_outputs(
    model: nn.Module, images: torch.Tensor, layer: str, recipe: Recipe, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (input of `layer`, its output, logits), each (N, ...) float32 on the CPU."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        del module
        seen.append((inputs[0].float().cpu(), output.float().cpu()))

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        logits = predict(model, images, recipe, device)
    finally:
        handle.remove()
    return torch.cat([i for i, _ in seen]), torch.cat([o for _, o in seen]), logits


def features(
    model: nn.Module, images: torch.Tensor, layer: str, head: str, recipe: Recipe, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, D) at a named layer and logits (N, K).

    At the head, features are its input; elsewhere the layer's output, averaged over space.
    """
    before, after, logits = layer_inputs_and_outputs(model, images, layer, recipe, device)
    values = before if layer == head else after
    return (values.mean(dim=(2, 3)) if values.ndim == 4 else values.flatten(1)), logits
