"""The stages that this process performs now: how far they are, for whoever asks.

A thread performs one stage at a time; any other thread may ask for it at any moment.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from raysweep.store.heartbeat import RunningStage

LONGEST_TEXT = 200
_NOW: dict[int, CurrentStage] = {}  # by thread


class CurrentStage:
    """A stage under way in this process.

    Attributes:
        key: of the stage.
        device: where it computes; `cpu` until it has claimed another.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.device = "cpu"
        self._began = time.monotonic()
        self._progress = (0.0, "")  # replaced as a whole: read by other threads

    def progress(self, fraction: float, text: str) -> None:
        """Note that a fraction of the stage is done, in [0, 1], and what it does now."""
        self._progress = (min(1.0, max(0.0, float(fraction))), str(text)[:LONGEST_TEXT])

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._began

    def state(self) -> RunningStage:
        """Return the state of the stage, as drivers tell each other."""
        fraction, doing = self._progress
        return RunningStage(
            key=self.key, host=socket.gethostname(), pid=os.getpid(), device=self.device,
            seconds=round(self.seconds, 3), fraction=round(fraction, 4), doing=doing,
        )  # fmt: skip


@contextmanager
def performing(key: str) -> Iterator[CurrentStage]:
    """Perform a stage in this thread: until the end of the block it is the current one."""
    thread = threading.get_ident()
    now = _NOW[thread] = CurrentStage(key)
    try:
        yield now
    finally:
        del _NOW[thread]


def current(thread: int) -> CurrentStage | None:
    """Return the stage that a thread performs now, None if it performs none."""
    return _NOW.get(thread)
