"""The state of a running sweep: what is ready, what is out, what failed, what has grown.

Pure bookkeeping, with no Ray and no clock: executors ask `take` for work and report with
`finished` and `lost`. Ready stages go out by the longest remaining path. An outcome that trials
wait for lets them grow new stages; growing asks the planner again and does not depend on the order
in which stages finish.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raysweep.graph import Plan, Stage

Status = Literal["done", "failed", "damaged"]
MOST_PER_BATCH = 16
SHORT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one attempt at one stage.

    Attributes:
        damaged: the key of the input that must be recomputed first, if status is `damaged`.
        lasting: whether trying again is pointless, if status is `failed`.
    """

    key: str
    status: Status
    host: str = ""
    seconds: float = 0.0
    pid: int = 0
    error: str = ""
    trace: str = ""
    damaged: str = ""
    lasting: bool = True


class Schedule:
    """Hands out stages whose inputs are stored, until nothing is left to hand out."""

    def __init__(
        self,
        planner: Plan,
        done: set[str],
        outcome_of: Callable[[str], Mapping[str, Any]],
        *,
        expected: Callable[[Stage], float] = lambda stage: 0.1,
        attempts: int = 3,
        discard: Callable[[str], None] = lambda key: None,
        log: Callable[[dict[str, Any]], None] = lambda line: None,
    ) -> None:
        """Start with everything whose key is in `done` finished.

        Args:
            planner: gives stages and grows trials.
            done: keys with a stored manifest; other sweeps' count.
            outcome_of: reads the outcome of a finished stage that routes wait for.
            expected: seconds that a stage is expected to take.
            attempts: how often a stage may die or fail for a passing reason.
            discard: removes a damaged artifact from the store.
            log: receives one line per growth and failure.

        `routed` counts the trials of the planner that were taken in.
        """
        self.planner = planner
        self.expected = expected
        self.attempts = attempts
        self.log = log
        self._discard = discard
        self.failed: dict[str, Result] = {}
        self.upstream_failed: dict[str, str] = {}
        self.done: set[str] = set()
        self.ran: dict[str, Result] = {}
        self.wanted: set[str] = set()
        self.stopping = False
        self._stored = done
        self._outcome_of = outcome_of
        self.outcomes: dict[str, Mapping[str, Any]] = {}
        self._missing: dict[str, set[str]] = {}
        self._children: dict[str, list[str]] = defaultdict(list)
        self._waiting: dict[str, list[int]] = defaultdict(list)
        self._ready: dict[str, list[tuple[float, int, str]]] = {"cpu": [], "gpu": []}
        self._rank: dict[str, float] = {}
        self._longest = 0.0  # of all trainings
        self._order: dict[str, int] = {}
        self._tries: dict[str, int] = defaultdict(int)
        self._alone: set[str] = set()
        self._queued: set[str] = set()
        self._out: set[str] = set()
        self.routed = 0
        self.extend()

    # Growing

    def extend(self) -> int:
        """Take in trials that the planner has gained; return how many stages came with them."""
        before, known = len(self.wanted), self.routed
        self.routed = len(self.planner.trials)
        self._grow(range(known, self.routed))
        return len(self.wanted) - before

    @property
    def behind(self) -> bool:
        """Whether the planner has gained trials that were not taken in yet."""
        return self.routed < len(self.planner.trials)

    def _grow(self, numbers: Iterable[int]) -> None:
        """Route trials again and take in the stages that are new."""
        pending, fresh = list(numbers), []
        while pending:
            number = pending.pop()
            route = self.planner.route(self.planner.trials[number], self.outcomes)
            for key in self._closure([*route.roles.values()]):
                fresh.append(key)
            if route.waiting is not None:
                if route.waiting in self._stored:
                    # Already decided, perhaps by another sweep: no need to wait.
                    self.outcomes[route.waiting] = self._outcome_of(route.waiting)
                    pending.append(number)
                else:
                    self._waiting[route.waiting].append(number)
        self._enter(fresh)

    def _closure(self, keys: list[str]) -> list[str]:
        """Return keys and all that they need that are not wanted yet, and want them."""
        found, stack = [], keys
        while stack:
            key = stack.pop()
            if key not in self.wanted:
                self.wanted.add(key)
                found.append(key)
                stack.extend(self.planner.stages[key].needs)
        return found

    def _enter(self, keys: list[str]) -> None:
        for key in keys:
            self._order.setdefault(key, len(self._order))
            if key in self._stored:
                self.done.add(key)
            for need in self.planner.stages[key].needs:
                self._children[need].append(key)
        self._rank_again(keys)
        for key in keys:
            if key not in self.done:
                self._wait(key)

    def _wait(self, key: str) -> None:
        """Queue a stage, or keep it until its inputs are stored."""
        needs = set(self.planner.stages[key].needs)
        broken = [n for n in needs if n in self.failed or n in self.upstream_failed]
        if broken:
            self._fail_below(key, self.upstream_failed.get(broken[0], broken[0]))
            return
        missing = needs - self.done
        self._missing[key] = missing
        if not missing:
            self._push(key)

    def _push(self, key: str) -> None:
        if key in self._queued:
            return
        self._queued.add(key)
        stage = self.planner.stages[key]
        heapq.heappush(self._ready[stage.resource], (-self._rank[key], self._order[key], key))

    def _rank_again(self, keys: list[str]) -> None:
        """Set each new stage's longest remaining path, children before parents."""
        new = set(keys)
        ahead = {
            key: sum(child in new for child in self._children[key]) for key in keys
        }  # fmt: skip
        seconds = {key: self.expected(self.planner.stages[key]) for key in keys}
        trainings = [seconds[key] for key in keys if key.partition("-")[0] == "train"]
        self._longest = max([self._longest, *trainings])
        leaves = [key for key in keys if not ahead[key]]
        while leaves:
            key = leaves.pop()
            stage = self.planner.stages[key]
            below = max((self._rank.get(c, 0.0) for c in self._children[key]), default=0.0)
            if stage.kind == "decide":  # what it may grow: a training and its evaluation
                below = max(below, self._longest)
            self._rank[key] = seconds[key] + below
            for need in set(stage.needs):
                if need in new:
                    ahead[need] -= stage.needs.count(need)
                    if not ahead[need]:
                        leaves.append(need)

    # Handing out

    def take(self, slots: Mapping[str, int]) -> list[Stage]:
        """Return the next batch, all of one class; empty if nothing is ready.

        Args:
            slots: how many stages of each class can run at once; a class with 0 is passed over.
        """
        if self.stopping:
            return []
        heads = [(q[0][0], name) for name, q in self._ready.items() if q and slots.get(name, 0)]
        if not heads:
            return []
        name = min(heads)[1]
        queue = self._ready[name]
        share = -(-len(queue) // slots[name])
        batch: list[Stage] = []
        total = 0.0
        while queue and len(batch) < min(MOST_PER_BATCH, share):
            key = queue[0][2]
            stage = self.planner.stages[key]
            seconds = self.expected(stage)
            if batch and (total + seconds > SHORT_SECONDS or key in self._alone):
                break
            heapq.heappop(queue)
            batch.append(stage)
            total += seconds
            if key in self._alone:
                break
        self._out.update(stage.key for stage in batch)
        self._queued.difference_update(stage.key for stage in batch)
        return batch

    @property
    def finished_all(self) -> bool:
        """Whether nothing is ready and nothing is out, so that nothing can become ready."""
        return not self._out and (self.stopping or not any(self._ready.values()))

    @property
    def ready(self) -> int:
        """Number of stages whose inputs are stored."""
        return sum(len(queue) for queue in self._ready.values())

    @property
    def out(self) -> frozenset[str]:
        """Keys that an executor holds."""
        return frozenset(self._out)

    # Reports of executors

    def finished(self, results: Iterable[Result]) -> None:
        """Take in what became of stages that were handed out."""
        for result in results:
            self._out.discard(result.key)
            if result.status == "done":
                self._done(result)
            elif result.status == "damaged" and self._try_again(result):
                self._redo(result.damaged, result.key)
            elif result.status == "failed" and not result.lasting and self._try_again(result):
                self._push(result.key)
            else:
                self._fail(result)

    def lost(self, keys: Iterable[str], published: Iterable[str], reason: str) -> None:
        """Take in the death of a process: only a lone death counts against its stage."""
        gone = list(keys)
        stored = set(published)
        for key in gone:
            self._out.discard(key)
            if key in stored:
                self._done(Result(key=key, status="done"))
                continue
            result = Result(key=key, status="failed", error=reason, lasting=False)
            if len(gone) > 1 or self._try_again(result):
                self._alone.add(key)
                self._push(key)
            else:
                self._fail(result)

    def returned(self, keys: Iterable[str]) -> None:
        """Take back stages that were handed out and not begun."""
        for key in keys:
            self._out.discard(key)
            self._push(key)

    def _try_again(self, result: Result) -> bool:
        self._tries[result.key] += 1
        self.log({"event": "retry", "key": result.key, "error": result.error or result.damaged})
        return self._tries[result.key] < self.attempts

    def _done(self, result: Result) -> None:
        key = result.key
        self.done.add(key)
        self._stored.add(key)
        self.ran[key] = result
        for child in self._children[key]:
            missing = self._missing.get(child)
            if missing and key in missing:
                missing.discard(key)
                if not missing:
                    self._push(child)
        if key in self._waiting:
            self.outcomes[key] = self._outcome_of(key)
            numbers = self._waiting.pop(key)
            before = len(self.wanted)
            self._grow(numbers)
            grown = len(self.wanted) - before
            self.log({"event": "grow", "key": key, "stages": grown})

    def _redo(self, damaged: str, reader: str) -> None:
        """Recompute an artifact that turned out to be damaged, then its reader."""
        self._discard(damaged)
        self.done.discard(damaged)
        self._stored.discard(damaged)
        self._missing[reader] = {damaged}
        if damaged not in self._out:
            self._wait(damaged)

    def _fail(self, result: Result) -> None:
        self.failed[result.key] = result
        self.log({"event": "failed", "key": result.key, "error": result.error})
        for child in self._children[result.key]:
            self._fail_below(child, result.key)

    def _fail_below(self, key: str, cause: str) -> None:
        stack = [key]
        while stack:
            below = stack.pop()
            if below not in self.done and below not in self.upstream_failed:
                self.upstream_failed[below] = cause
                self._missing.pop(below, None)
                self.log({"event": "upstream_failed", "key": below, "cause": cause})
                stack.extend(self._children[below])
