"""Stages that are ready: a queue for each class, the longest remaining path first.

Before all others go the first few stages of each kind and method: from then on is known how long
those like them take, and a method that cannot work tells so at once. They travel together, since
the first one in a process also imports what the method needs.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping

from raysweep.plan.costs import pace_name
from raysweep.stages.stage import Stage

MOST_PER_BATCH = 64
SHORT_SECONDS = 1.0
FIRST = 3  # stages of each name that go before all others
# 0 for the first of a name; rank, the longest first; order; place among the first of the name; key.
Entry = tuple[int, float, int, int, str]


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
        self._queues: dict[str, list[Entry]] = {"cpu": [], "gpu": []}
        self._queued: set[str] = set()
        self._alone: set[str] = set()
        self._met: Counter[str] = Counter()  # by name, as `pace_name` has it
        self._unmet: dict[str, list[Entry]] = {}

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
            stage = self._stages[key]
            entry = (1, -self._rank[key], self._order[key], 0, key)
            if self._met[name := pace_name(stage)] < FIRST:
                self._unmet.setdefault(name, []).append(entry)
            else:
                heapq.heappush(self._queues[stage.resource], entry)

    def _meet(self) -> None:
        """Queue the stages of names of which few were handed out, so many of each name first."""
        for name, entries in self._unmet.items():
            entries.sort()
            most = FIRST - self._met[name]
            first, others = entries[:most], entries[most:]
            self._met[name] += len(first)
            together = [(0, *first[0][1:3], place, one[-1]) for place, one in enumerate(first)]
            for entry in together + others:
                heapq.heappush(self._queues[self._stages[entry[-1]].resource], entry)
        self._unmet.clear()

    def take(self, slots: Mapping[str, int], expected: Callable[[Stage], float]) -> list[Stage]:
        """Return the next batch, all of one class; empty if nothing is ready.

        Args:
            slots: how many stages of each class can run at once; a class with 0 is passed over.
            expected: seconds that a stage is expected to take.
        """
        self._meet()
        heads = [(q[0][:2], name) for name, q in self._queues.items() if q and slots.get(name, 0)]
        if not heads:
            return []
        name = min(heads)[1]
        queue = self._queues[name]
        share = -(-len(queue) // slots[name])
        batch: list[Stage] = []
        total, before = 0.0, queue[0][:3]
        while queue and len(batch) < min(MOST_PER_BATCH, share):
            key = queue[0][-1]
            stage = self._stages[key]
            seconds = expected(stage)
            together = queue[0][:3] == before and seconds <= SHORT_SECONDS
            long = total + seconds > SHORT_SECONDS and not together
            if batch and (long or key in self._alone):
                break
            before = heapq.heappop(queue)[:3]
            batch.append(stage)
            total += seconds
            if key in self._alone:
                break
        self._queued.difference_update(stage.key for stage in batch)
        return batch
