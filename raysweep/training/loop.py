"""The one training loop: streams of batches, an objective over them, a recipe.

Data stay on the device (images as uint8); batches are cut, converted and augmented there; nothing
waits for the device inside an epoch. Victims use one stream and cross-entropy; Confusion Training
mixes a second stream in at every b-th step (`Stream.every`); ASSET gives two streams opposite signs
in its objective; distillation closes over a teacher; phases are several calls of `fit`.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn

from raysweep.arrays import Arrays
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
from raysweep.training.step import resumable as resumable
from raysweep.training.streams import Batch as Batch
from raysweep.training.streams import Source as Source
from raysweep.training.streams import Stream as Stream


@capturable
def cross_entropy(
    model: nn.Module, batches: Mapping[str, Batch], label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the mean cross-entropy of the only stream."""
    (batch,) = batches.values()
    logits = model(batch.images).float()
    return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)


class CrossEntropy:
    """The mean cross-entropy of the only stream, which counts what is classified right.

    It counts as it trains: each batch by the weights and the augmentation of its own step, on the
    device, so that no second pass is needed and nothing waits before an epoch is over.

    Attributes:
        accuracies: the share of the samples of each epoch that were classified right.
    """

    capturable = True

    def __init__(self, recipe: Recipe, device: str) -> None:
        """Take the label smoothing of a recipe, and the device of the model."""
        self._smoothing = recipe.label_smoothing
        self._right = torch.zeros((), dtype=torch.int64, device=device)
        self._seen = torch.zeros_like(self._right)
        self.memory = (self._right, self._seen)
        self.accuracies: list[float] = []

    def __call__(self, model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        """Return the loss of a step."""
        (batch,) = batches.values()
        logits = model(batch.images).float()
        self._right += (logits.detach().argmax(1) == batch.labels).sum()
        self._seen += len(batch.labels)
        return F.cross_entropy(logits, batch.labels, label_smoothing=self._smoothing)

    @resumable
    def settle(self, epoch: int, model: nn.Module) -> None:
        """Add the accuracy of the epoch that is over; to be given to `fit` as `on_epoch`."""
        del epoch, model
        self.accuracies.append(int(self._right) / int(self._seen))
        self._right.zero_()
        self._seen.zero_()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the counts, and the accuracies of the epochs that are over."""
        accuracies = torch.tensor(self.accuracies, dtype=torch.float64)
        return {"right": self._right, "seen": self._seen, "accuracies": accuracies}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what was counted before a kill."""
        self._right.copy_(state["right"])
        self._seen.copy_(state["seen"])
        self.accuracies = state["accuracies"].tolist()


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
) -> list[float]:
    """Train `model` in place and leave it in eval mode.

    A training that was killed goes on from its last checkpoint, on a CPU to the same bytes, if the
    objective and `on_epoch` say what they remember (`resumable`, `capturable`, or a `state_dict`);
    `on_epoch` then sees the epochs that are left alone. Any other training is done from its start.

    Args:
        model: on the context's device.
        data: one set, or named streams; the first sets the steps of an epoch.
        recipe: with its precision resolved.
        ctx: gives random streams, device, progress and checkpoints.
        objective: maps the model and the batches of this step to a scalar loss; by default
            cross-entropy with the recipe's label smoothing.
        phase: tells the random streams of several `fit` calls of one stage apart.
        steps: number of steps, instead of the recipe's epochs; the last epoch may be shorter.
        optimizer: to carry its state over from an earlier phase; by default a new one.
        on_epoch: called after each epoch with its number from 1 and the model in train mode;
            training ends early if it returns True.

    Returns:
        The mean loss of each epoch.

    Raises:
        NonFiniteLoss: names the first step whose loss is NaN or infinite.
    """
    streams = {"data": Stream(data=data)} if isinstance(data, ImageSet) else data
    stage, ctx = ctx, Context(seed=ctx.stream(phase), device=ctx.device, progress=ctx.progress)
    keep_memory()
    objective = objective or _plain(recipe)
    beside = {"objective": objective, "on_epoch": on_epoch}
    own = stage.part("fit", phase) if resume.is_resumable(model, *beside.values()) else ctx
    sources = {name: Source(name, stream, recipe, ctx) for name, stream in streams.items()}
    shared, optimizer = optimizer is not None, optimizer or make_optimizer(model, recipe)
    epochs = _epochs(recipe, next(iter(sources.values())).batches, steps)
    with _in_training(model, ctx.device), global_seed(ctx.stream("dropout")):
        state = resume.Training(model, optimizer, sources, beside, shared=shared)
        state.restore(own.restored)
        eager = EagerStep(model, optimizer, sources, objective, recipe, ctx.device)
        left = [] if state.over else epochs[len(state.means) :]
        work = _Work(state, step_of(eager, sum(map(len, left)), captured=stage.captured), own)
        for epoch, rates in enumerate(left, len(state.means) + 1):
            work.train(rates)
            ctx.progress(epoch / len(epochs), f"{phase}: epoch {epoch}")
            if on_epoch is not None and on_epoch(epoch, model):
                break
        state.over = True
        own.checkpoint(state.captured, over=True)
    return state.means


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


class _Work:
    """The steps of a training, each followed by a checkpoint."""

    def __init__(self, state: resume.Training, take: Step, own: Context) -> None:
        self.state, self.take, self.own = state, take, own

    def train(self, rates: Mapping[int, float]) -> None:
        """Take the steps of an epoch that have `rates` and are not taken; add the mean loss."""
        losses, sources = self.state.losses, self.state.sources
        for number in islice(rates, len(losses), None):
            rows = {n: s.next() for n, s in sources.items() if number % s.stream.every == 0}
            losses.append(self.take(rows, rates[number]))
            self.own.checkpoint(self._captured)
        self.take.settle()
        self.state.means.append(_checked_mean(torch.stack(losses), min(rates)))
        losses.clear()

    def _captured(self) -> Arrays:
        self.take.settle()
        return self.state.captured()


def _checked_mean(losses: torch.Tensor, first_step: int) -> float:
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        step = first_step + int((~finite).nonzero()[0])
        raise NonFiniteLoss(
            f"the loss of step {step} is {losses[step - first_step].item()}; "
            f"lower learning_rate, or set precision: float32"
        )
    return float(losses.mean())
