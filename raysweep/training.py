"""The one training loop: streams of batches, an objective over them, a recipe.

Data stay on the device (images as uint8); batches are cut, converted and augmented there; nothing
waits for the device inside an epoch. Victims use one stream and cross-entropy; Confusion Training
mixes a second stream in at every b-th step (`Stream.every`); ASSET gives two streams opposite signs
in its objective; distillation closes over a teacher; phases are several calls of `fit`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from raysweep.augmentation import augment
from raysweep.context import Context
from raysweep.datasets import ImageSet, Shape, as_floats
from raysweep.errors import NonFiniteLoss
from raysweep.models import Model
from raysweep.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images (B, C, H, W) float in [0, 1], labels (B,), rows in the stream's data (B,)."""

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One source of batches; the first stream of a `fit` sets the number of steps of an epoch.

    Attributes:
        data: what batches are drawn from, reshuffled at each pass.
        every: the stream takes part in steps 0, every, 2 * every, ... and is absent in between.
        batch_size: by default the recipe's.
    """

    data: ImageSet
    every: int = 1
    batch_size: int | None = None


Objective = Callable[[nn.Module, Mapping[str, Batch]], torch.Tensor]


def cross_entropy(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
    """Return the mean cross-entropy of the only stream."""
    (batch,) = batches.values()
    return F.cross_entropy(model(batch.images).float(), batch.labels)


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    Layer initialization and dropout take no generator of their own.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def build(model: Model, shape: Shape, ctx: Context, *names: str | int) -> nn.Module:
    """Return a freshly initialized network on the context's device; `names` tell streams apart."""
    model.check(shape)
    with global_seed(ctx.stream("initialization", *names)):
        network: nn.Module = model.build(shape)
    network.to(torch.device(ctx.device))
    return network.to(memory_format=torch.channels_last)


def autocast(recipe: Recipe, device: str) -> torch.autocast:
    """Return the autocast region of a recipe's resolved precision."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16")


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over all trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
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
        nesterov=recipe.momentum > 0,
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
        "multistep": 0.1 ** ((done >= 0.5) + (done >= 0.75)),
    }[recipe.schedule]
    return recipe.learning_rate * min(factor, 1.0)


class _Source:
    """Cuts one stream into batches, forever, on the device."""

    def __init__(self, name: str, stream: Stream, recipe: Recipe, ctx: Context) -> None:
        self.stream = stream
        self.images = stream.data.images.to(ctx.device)
        self.labels = torch.from_numpy(stream.data.labels).to(ctx.device)
        size = stream.batch_size or recipe.batch_size
        self.batches = max(1, math.ceil(len(self.labels) / size))
        # Drawn on the CPU: the same order on every device.
        self.order = torch.Generator().manual_seed(ctx.stream("order", name))
        self.noise = ctx.torch_generator("augmentation", name)
        self.augment = recipe.augment
        self.waiting: list[torch.Tensor] = []

    def next(self) -> Batch:
        if not self.waiting:
            order = torch.randperm(len(self.labels), generator=self.order)
            # Equal parts: a small last batch would spoil batch statistics.
            self.waiting = list(order.to(self.labels.device).tensor_split(self.batches))[::-1]
        rows = self.waiting.pop()
        images = as_floats(self.images[rows]).contiguous(memory_format=torch.channels_last)
        return Batch(
            images=augment(images, self.augment, self.noise), labels=self.labels[rows], rows=rows
        )


def fit(
    model: nn.Module,
    data: ImageSet | Mapping[str, Stream],
    recipe: Recipe,
    ctx: Context,
    *,
    objective: Objective = cross_entropy,
    phase: str = "fit",
    optimizer: torch.optim.Optimizer | None = None,
    on_epoch: Callable[[int, nn.Module], bool | None] | None = None,
) -> list[float]:
    """Train `model` in place and leave it in eval mode.

    Args:
        model: on the context's device.
        data: one set, or named streams; the first sets the steps of an epoch.
        recipe: with its precision resolved.
        ctx: gives random streams, device and progress.
        objective: maps the model and the batches of this step to a scalar loss.
        phase: tells the random streams of several `fit` calls of one stage apart.
        optimizer: to carry its state over from an earlier phase; by default a new one.
        on_epoch: called after each epoch with its number from 1 and the model in train mode;
            training ends early if it returns True.

    Returns:
        The mean loss of each epoch.

    Raises:
        NonFiniteLoss: names the first step whose loss is NaN or infinite.
    """
    streams = {"data": Stream(data=data)} if isinstance(data, ImageSet) else data
    ctx = Context(
        seed=ctx.stream(phase), device=ctx.device, progress=ctx.progress
    )  # the phase's own streams
    sources = {name: _Source(name, stream, recipe, ctx) for name, stream in streams.items()}
    per_epoch = next(iter(sources.values())).batches
    steps = per_epoch * recipe.epochs
    optimizer = optimizer or make_optimizer(model, recipe)
    means: list[float] = []
    model.train()
    with global_seed(ctx.stream("dropout")):
        for epoch in range(recipe.epochs):
            losses = []
            for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, step, steps)
                batches = {n: s.next() for n, s in sources.items() if step % s.stream.every == 0}
                with autocast(recipe, ctx.device):
                    loss = objective(model, batches)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            means.append(_checked_mean(torch.stack(losses), epoch * per_epoch))
            ctx.progress((epoch + 1) / recipe.epochs, f"{phase}: epoch {epoch + 1}")
            if on_epoch is not None and on_epoch(epoch + 1, model):
                break
    model.eval()
    return means


def _checked_mean(losses: torch.Tensor, first_step: int) -> float:
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        step = first_step + int((~finite).nonzero()[0])
        raise NonFiniteLoss(
            f"the loss of step {step} is {losses[step - first_step].item()}; "
            f"lower learning_rate, or set precision: float32"
        )
    return float(losses.mean())


def _batched(images: torch.Tensor, device: str, batch_size: int) -> Iterator[torch.Tensor]:
    for part in images.split(batch_size):
        yield as_floats(part.to(device)).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(
    model: nn.Module, images: torch.Tensor, recipe: Recipe, device: str, *, batch_size: int = 500
) -> torch.Tensor:
    """Return logits (N, K) float32 on the CPU, of uint8 images or of floats in [0, 1]."""
    model.eval()
    with autocast(recipe, device):
        parts = [model(batch).float().cpu() for batch in _batched(images, device, batch_size)]
    return torch.cat(parts)


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
