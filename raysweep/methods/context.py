"""The context of a running method: random streams, a device, progress, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from raysweep import rng
from raysweep.arrays import Array
from raysweep.arrays import Arrays as Arrays
from raysweep.methods.checkpoints import Checkpoints, Part

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


def _silent(fraction: float, text: str) -> None:
    del fraction, text


@dataclass(frozen=True, kw_only=True)
class Context:
    """The surroundings of one stage.

    Attributes:
        seed: root of this stage's random streams; already specific to the stage and method.
        device: where to compute, `cpu` or `cuda`.
        progress: call with a fraction in [0, 1] and a short text.
        kept: the part of the stage's checkpoint that this context is of; by default of a stage
            that keeps nothing.
        captured: whether steps of a training may be replayed from a CUDA graph.
    """

    seed: int
    device: str = "cpu"
    progress: Callable[[float, str], None] = _silent
    kept: Part = field(default_factory=lambda: Checkpoints().root)
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

    # Checkpoints

    @property
    def restored(self) -> Arrays:
        """The arrays that this part of the stage kept before its process was killed, or empty."""
        return self.kept.restored

    def checkpoint(self, make: Callable[[], Arrays], *, over: bool = False) -> None:
        """Pass a point from which this part can go on, given the arrays that `make` returns.

        Args:
            make: called from time to time only, at a cost of at most 2 % of the stage's time.
            over: whether the part ends here; later parts can then be resumed without it.
        """
        self.kept.checkpoint(make, over=over)

    def part(self, *names: str | int) -> Context:
        """Return the same context for a part of the work that has checkpoints of its own.

        A checkpoint of this context stands for all parts that were begun before it.
        """
        return replace(self, kept=self.kept.part(*names))

    def mapped(
        self, name: str, compute: Callable[[Item], Array], items: Sequence[Item]
    ) -> list[Array]:
        """Return `compute(item)` for each item, in order; after a kill, only for those left."""
        own = self.part(name)
        results = [own.restored[str(number)] for number in range(len(own.restored))]

        def so_far() -> Arrays:
            return {str(number): result for number, result in enumerate(results)}

        for item in items[len(results) :]:
            results.append(compute(item))
            own.checkpoint(so_far)
        own.checkpoint(so_far, over=True)
        return results
