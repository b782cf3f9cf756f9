"""Stages that are killed at one of their checkpoints, and go on from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import numpy as np

from raysweep.arrays import Array, Arrays
from raysweep.methods import Context
from raysweep.methods.checkpoints import Checkpoints
from raysweep.store import Store

Stage = Callable[[Context], Mapping[str, Array]]
KEY, SEED = "defend-0", 5
SHARE = 0.05  # of the moments to write at which a stage writes


class Killed(Exception):
    """Ends a stage at a checkpoint, as a kill of its process does."""


@dataclass(kw_only=True)
class Clock:
    """Counts the moments at which a stage could write, and chooses some.

    Attributes:
        store: where checkpoints are written; none: never.
        last: the number of the moment, from 1, right after which the stage is killed; 0: never.
        draw: chooses moments before that one.
        count: the moments so far.
    """

    store: Store | None = None
    last: int = 0
    draw: Random = field(default_factory=Random)
    count: int = 0

    def context(self) -> Context:
        """Return the context of the stage."""
        restored = self.store.restore(KEY) if self.store else {}
        kept = Checkpoints(self._write, restored, bound=KEY, pause=self._pause, held=0.0)
        return Context(seed=SEED, kept=kept.root)

    def _pause(self, cost: float) -> float:
        del cost
        self.count += 1
        chosen = self.count == self.last or (self.last and self.draw.random() < SHARE)
        return 0.0 if chosen else math.inf

    def _write(self, arrays: Arrays) -> None:
        assert self.store is not None
        self.store.checkpoint(KEY, arrays)
        if self.count == self.last:
            raise Killed


def check_resumed(
    stage: Stage, whole: Mapping[str, Array], count: int, store: Store, draw: Random
) -> None:
    """Kill a stage at a random moment, begin it again, and compare the bytes and the work.

    Args:
        stage: the stage.
        whole: what it gives undisturbed.
        count: the moments at which it could write; without one there is nothing to kill.
        store: an empty store.
        draw: chooses the moment.
    """
    if not count:
        return
    killed = Clock(store=store, last=draw.randint(1, count), draw=draw)
    try:
        stage(killed.context())
    except Killed:
        pass
    else:
        raise AssertionError(f"moment {killed.last} of {count} never came")
    again = Clock(store=store)
    given = stage(again.context())
    store.drop_checkpoint(KEY)
    check_same(given, whole, f"killed after {killed.last} of {count}")
    assert again.count < count, "work that was kept is not done again"


def check_same(given: Mapping[str, Array], whole: Mapping[str, Array], told: str = "") -> None:
    """Compare the names and the bytes of arrays; `told` stands in the message."""
    assert given.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(given[name], array, err_msg=f"{name} {told}")
