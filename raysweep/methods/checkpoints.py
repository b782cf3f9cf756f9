"""The checkpoint of a running stage: from time to time the arrays of its parts are written down.

A stage that is begun again after a kill runs the same code from its start, and each of its parts
finds the arrays that it kept last. Everything random comes from named streams, so that the arrays
of a part follow from its name alone: one that is kept and one that is done again hold the same
bytes, and whatever subset of parts a kill has left is sound.

A part's name holds its place: the part around it, how many checkpoints that one had passed, and how
many parts of the same name came before. The second round of a loop never finds arrays of the third.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from urllib.parse import quote

import numpy as np

from raysweep.arrays import Array, Arrays
from raysweep.errors import StoreError

SECONDS = 20.0  # of work between two writes, at least
SHARE = 0.02  # of a stage's time that writing takes, at most
HELD = 1.0  # seconds from which on the result of a part that is over is held for a later write
_BOUND = "bound"
_END = "\x1f"  # of a part's path, before the name of an array

Write = Callable[[Arrays], None]


def _pause(cost: float) -> float:
    """Return the seconds of work before the next write, if the last one took `cost` seconds."""
    return max(SECONDS, cost / SHARE)


class Checkpoints:
    """The arrays that the parts of one stage keep, and the moment to write them.

    Attributes:
        root: the part that is the stage itself.
    """

    def __init__(
        self,
        write: Write | None = None,
        restored: Arrays | None = None,
        *,
        bound: str = "",
        pause: Callable[[float], float] | None = None,
        held: float = HELD,
    ) -> None:
        """Take over what an earlier process of the same stage wrote.

        Args:
            write: keeps arrays across a kill of the process, in place of earlier ones; if it
                fails, that costs time alone. Without it nothing is kept.
            restored: the arrays that were written last.
            bound: all that the arrays depend on beside the parts' names. Arrays that were written
                under another text are ignored.
            pause: seconds that the last write took → seconds of work before the next; by
                default at least 20, and 50 times as many.
            held: seconds from which on the result of a part that is over is held.
        """
        self._write, self._bound, self._pause = write, bound, pause or _pause
        self.least = held
        self.held = unpacked(restored or {}, bound)
        self._since, self._cost = time.monotonic(), 0.0
        self.root = Part(self, "")

    @property
    def kept(self) -> bool:
        """Whether anything is kept at all."""
        return self._write is not None

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self.kept and time.monotonic() - self._since >= self._pause(self._cost)

    def write(self, began: float) -> None:
        """Write all that is held; the time since `began` is what it cost."""
        assert self._write is not None
        with contextlib.suppress(StoreError, OSError):
            self._write(packed(self.held, self._bound))
        self._since = time.monotonic()
        self._cost = self._since - began


class Part:
    """One part of a stage's work, told apart by its place from all others.

    Attributes:
        restored: the arrays that an earlier process kept for this part, or empty.
    """

    def __init__(self, checkpoints: Checkpoints, path: str) -> None:
        self._all, self._path = checkpoints, path
        self._passed, self.restored = checkpoints.held.get(path, (0, {}))
        self._as_restored = bool(self._passed)
        self._seen: Counter[str] = Counter()
        self._since = time.monotonic()

    def part(self, *names: str | int) -> Part:
        """Return the next part of this name within this one."""
        name = quote(" ".join(map(str, names)), safe=" ")
        self._seen[name] += 1
        return Part(self._all, f"{self._path}/{self._passed}.{name}.{self._seen[name]}")

    def checkpoint(self, make: Callable[[], Arrays], *, over: bool = False) -> None:
        """Pass a point from which the part can go on, if it is given these arrays.

        They stand for all parts within this one so far, which are then let go.

        Args:
            make: returns the arrays; called only where they are held or written, and copied.
            over: whether the part ends here. Its arrays are then held for what comes after it,
                unless it was short.
        """
        if over and self._as_restored:
            return  # it was over before the kill
        self._passed, self._as_restored = self._passed + 1, False
        self._seen.clear()
        if not self._all.kept:
            return
        began, held = time.monotonic(), self._all.held
        earlier = [path for path in held if self._is_earlier(path)]
        due = self._all.due
        if due or earlier or (over and began - self._since >= self._all.least):
            held[self._path] = (self._passed, {n: np.array(a) for n, a in make().items()})
            for path in earlier:
                del held[path]
        if due:
            self._all.write(began)

    def _is_earlier(self, path: str) -> bool:
        """Return whether a path is of a part within this one that the last checkpoint ended."""
        inside = f"{self._path}/"
        return path.startswith(inside) and int(path[len(inside) :].split(".", 1)[0]) < self._passed


def packed(held: Mapping[str, tuple[int, Arrays]], bound: str) -> dict[str, Array]:
    """Return the arrays of all parts as they are written, bound to a text."""
    arrays: dict[str, Array] = {_BOUND: np.array(bytearray(bound.encode()), np.uint8)}
    for path, (passed, kept) in held.items():
        arrays[f"{path}{_END}"] = np.array(passed)
        arrays |= {f"{path}{_END}{name}": array for name, array in kept.items()}
    return arrays


def unpacked(arrays: Arrays, bound: str) -> dict[str, tuple[int, Arrays]]:
    """Return path → (checkpoints passed, arrays) of the parts; empty if bound to another text."""
    if bytes(arrays.get(_BOUND, np.zeros(1, np.uint8))) != bound.encode():
        return {}
    parts: dict[str, dict[str, Array]] = {}
    for full, array in arrays.items():
        path, end, name = full.partition(_END)
        if end:
            parts.setdefault(path, {})[name] = array
    return {path: (int(kept.pop("")), kept) for path, kept in parts.items()}
