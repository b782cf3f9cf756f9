"""Streams of batches: cut on the data's device, reshuffled at each pass, augmented there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from raysweep.datasets import ImageSet
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.training.augmentation import augment
from raysweep.training.resident import resident


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
        data: the set that batches are drawn from, reshuffled at each pass.
        every: the stream takes part in steps 0, every, 2 * every, ... and is absent in between.
        batch_size: by default the recipe's.
    """

    data: ImageSet
    every: int = 1
    batch_size: int | None = None


class Source:
    """Cuts one stream into batches, forever, on the device."""

    def __init__(self, name: str, stream: Stream, recipe: Recipe, ctx: Context) -> None:
        self.stream = stream
        self.images = resident(stream.data.images, ctx.device)
        self.labels = torch.from_numpy(stream.data.labels).to(ctx.device)
        size = stream.batch_size or recipe.batch_size
        self.batches = max(1, math.ceil(len(self.labels) / size))
        # Drawn on the CPU: the same order on every device.
        self.order = torch.Generator().manual_seed(ctx.stream("order", name))
        self.noise = ctx.torch_generator("augmentation", name)
        self.augment = recipe.augment
        self.waiting: list[torch.Tensor] = []

    def next(self) -> torch.Tensor:
        """Return the rows of the next batch (B,); a pass that is over is followed by another."""
        if not self.waiting:
            order = torch.randperm(len(self.labels), generator=self.order)
            # Equal parts: a small last batch would spoil batch statistics.
            self.waiting = list(order.to(self.labels.device).tensor_split(self.batches))[::-1]
        return self.waiting.pop()

    def batch(self, rows: torch.Tensor) -> Batch:
        """Return the batch of some rows, augmented."""
        images = augment(self.images.index_select(0, rows), self.augment, self.noise)
        return Batch(
            images=images.contiguous(memory_format=torch.channels_last),
            labels=self.labels.index_select(0, rows),
            rows=rows,
        )
