"""The context of a running method: random streams, a device, progress, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from raysweep import rng
from raysweep.arrays import Arrays as Arrays

if TYPE_CHECKING:
    import torch


def _silent(fraction: float, text: str) -> None:
    del fraction, text


@dataclass(frozen=True, kw_only=True)
class Context:
    """The surroundings of one stage.

    Attributes:
        seed: root of this stage's random streams; already specific to the stage and method.
        device: where to compute, `cpu` or `cuda`.
        progress: call with a fraction in [0, 1] and a short text.
        checkpoint: call with arrays to keep them across a kill of the process.
        restored: the arrays that the last `checkpoint` of this very stage kept, or empty.
        captured: whether steps of a training may be replayed from a CUDA graph.
    """

    seed: int
    device: str = "cpu"
    progress: Callable[[float, str], None] = _silent
    checkpoint: Callable[[Arrays], None] = field(default=lambda arrays: None)
    restored: Arrays = field(default_factory=dict)
    captured: bool = True

    def stream(self, *names: str | int) -> int:
        """Return the seed of a named stream."""
        return rng.derive(self.seed, *names)

    def generator(self, *names: str | int) -> np.random.Generator:
        """Return the NumPy generator of a named stream."""
        return rng.generator(self.seed, *names)

    def torch_generator(self, *names: str | int) -> torch.Generator:
        """Return the torch generator of a named stream, on the stage's device."""
        return rng.torch_generator(self.seed, *names, device=self.device)
