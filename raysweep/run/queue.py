"""The time that stages wait: from the moment they are ready to the moment they begin."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from raysweep.run.run import Run
from raysweep.stages.stage import Result


class QueueTimes:
    """Measures how long stages waited, by the driver's clock alone.

    A stage is ready when the last of its inputs has come in. What lies between that and its result,
    without the seconds that it took, it has waited: for a slot, for a worker's start, in its batch,
    for an attempt that came to nothing.
    """

    def __init__(self, run: Run) -> None:
        self._stages = run.planner.stages
        self._began = time.monotonic()
        self._before = frozenset(run.schedule.done)
        self._ended: dict[str, float] = {}

    def timed(self, results: Iterable[Result]) -> list[Result]:
        """Return results that have come in now, with the time that each stage waited."""
        now = time.monotonic()
        return [self._timed(result, now) for result in results]

    def _timed(self, result: Result, now: float) -> Result:
        if result.status != "done":
            return result
        ready = self._ready(result.key)
        self._ended[result.key] = now
        if ready is None:
            return result
        return replace(result, queue_seconds=round(max(0.0, now - ready - result.seconds), 3))

    def _ready(self, key: str) -> float | None:
        """Return the moment a stage was ready; None if an input came in another way than by us."""
        ready = self._began
        for need in self._stages[key].needs:
            if need not in self._before:
                if need not in self._ended:
                    return None
                ready = max(ready, self._ended[need])
        return ready
