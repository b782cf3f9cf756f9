"""Stages that are ready: a queue for each class, the longest remaining path first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

from raysweep.stages.stage import Stage

MOST_PER_BATCH = 64
SHORT_SECONDS = 1.0


class ReadyStages:
    """Stages whose inputs are stored and that nobody works on."""

    def __init__(
        self, stages: Mapping[str, Stage], rank: Mapping[str, float], order: Mapping[str, int]
    ) -> None:
        """Begin with none.

        Args:
            stages: of the plan; it may grow.
            rank: key → seconds of the longest path that is left from there.
            order: key → its place among stages of one rank.
        """
        self._stages = stages
        self._rank = rank
        self._order = order
        self._queues: dict[str, list[tuple[float, int, str]]] = {"cpu": [], "gpu": []}
        self._queued: set[str] = set()
        self._alone: set[str] = set()

    def __len__(self) -> int:
        return len(self._queued)

    def __contains__(self, key: str) -> bool:
        return key in self._queued

    def add(self, key: str, *, alone: bool = False) -> None:
        """Add a stage, unless it is there; `alone`: from now on it shares no batch."""
        if alone:
            self._alone.add(key)
        if key not in self._queued:
            self._queued.add(key)
            queue = self._queues[self._stages[key].resource]
            heapq.heappush(queue, (-self._rank[key], self._order[key], key))

    def take(self, slots: Mapping[str, int], expected: Callable[[Stage], float]) -> list[Stage]:
        """Return the next batch, all of one class; empty if nothing is ready.

        Args:
            slots: how many stages of each class can run at once; a class with 0 is passed over.
            expected: seconds that a stage is expected to take.
        """
        heads = [(q[0][0], name) for name, q in self._queues.items() if q and slots.get(name, 0)]
        if not heads:
            return []
        name = min(heads)[1]
        queue = self._queues[name]
        share = -(-len(queue) // slots[name])
        batch: list[Stage] = []
        total = 0.0
        while queue and len(batch) < min(MOST_PER_BATCH, share):
            key = queue[0][2]
            stage = self._stages[key]
            seconds = expected(stage)
            if batch and (total + seconds > SHORT_SECONDS or key in self._alone):
                break
            heapq.heappop(queue)
            batch.append(stage)
            total += seconds
            if key in self._alone:
                break
        self._queued.difference_update(stage.key for stage in batch)
        return batch
