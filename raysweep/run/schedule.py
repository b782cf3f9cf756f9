"""The state of a running sweep: stages that are ready, handed out, failed, newly grown.

Pure bookkeeping, with no Ray, no clock and no stage kinds: executors ask `take` for work and report
with `finished` and `lost`; each change is logged as a typed event. Ready stages go out by the
longest remaining path. Stages that another driver works on are set aside until it has stored them,
or they come back. An outcome that trials wait for lets them grow new stages; growing asks the
planner again and does not depend on the order in which stages finish.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from raysweep.identity import kind_of
from raysweep.plan.route import Plan, remaining
from raysweep.run.ready import ReadyStages
from raysweep.run.stored import ManifestsOf, StoredStages
from raysweep.run.tally import Tally
from raysweep.stages.stage import Outcome, Result, Stage
from raysweep.store.events import Damaged, Event, Failed, Grow, Kept, Retry, UpstreamFailed


class Schedule:
    """Hands out stages whose inputs are stored, until nothing is left to hand out."""

    def __init__(
        self,
        planner: Plan[Any],
        done: set[str],
        manifests_of: ManifestsOf,
        *,
        force: Callable[[Stage], bool] = lambda stage: False,
        expected: Callable[[Stage], float] = lambda stage: 0.1,
        batched: Callable[[Stage], float] | None = None,
        attempts: int = 3,
        discard: Callable[[str], None] = lambda key: None,
        log: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """Start with everything that is stored finished.

        Args:
            planner: gives stages and grows trials.
            done: keys with a stored manifest; other sweeps' count.
            manifests_of: reads the manifests of stored stages; what it leaves out is damaged.
            force: whether a stage is done again although it is stored.
            expected: seconds that a stage is expected to take.
            batched: the same by what this run has seen, for batches; by default `expected`.
            attempts: how often a stage may die or fail for a passing reason.
            discard: removes a damaged artifact from the store.
            log: receives an event for each growth, failure, retry and damaged artifact.

        `routed` counts the trials of the planner that were taken in; `stored` tells which stored
        stages count; `elsewhere` holds those that wait, mostly for another driver; `tally` counts;
        `waiting` tells which trials, by number, wait for the outcome of a stage.
        """
        self.planner = planner
        self.expected = expected
        self._batched = batched or expected
        self.attempts = attempts
        self.log = log
        self._discard = discard
        self.failed: dict[str, Result] = {}
        self.upstream_failed: dict[str, str] = {}
        self.done: set[str] = set()
        self.ran: dict[str, Result] = {}
        self.wanted: set[str] = set()
        self.stopping = False
        self.stored = StoredStages(planner.stages, done, manifests_of, force)
        self.outcomes: dict[str, Outcome] = {}
        self._missing: dict[str, set[str]] = {}
        self._children: dict[str, list[str]] = defaultdict(list)
        self.waiting: dict[str, list[int]] = defaultdict(list)
        self._rank: dict[str, float] = {}
        self.longest_grown = (0.0, "")  # seconds and key of a stage like those a decision may grow
        self._order: dict[str, int] = {}
        self._tries: dict[tuple[str, str], int] = defaultdict(int)
        self._ready = ReadyStages(planner.stages, self._rank, self._order)
        self._out: set[str] = set()
        self.elsewhere: set[str] = set()
        self.tally = Tally()
        self.routed = 0
        self.extend()

    # Growing

    def extend(self) -> int:
        """Take in trials that the planner has gained; return how many stages came with them."""
        known, self.routed = self.routed, len(self.planner.trials)
        return len(self._grow(range(known, self.routed)))

    @property
    def has_new_trials(self) -> bool:
        """Whether the planner has gained trials that were not taken in yet."""
        return self.routed < len(self.planner.trials)

    def _grow(self, numbers: Iterable[int]) -> list[str]:
        """Route trials again and take in the stages that are new; return their keys."""
        pending, fresh = list(numbers), []
        while pending:
            routes = {n: self.planner.route(self.planner.trials[n], self.outcomes) for n in pending}
            new = [k for route in routes.values() for k in self._closure([*route.keys])]
            self._examine(new, {route.waiting for route in routes.values()})
            fresh += new
            pending = []
            for number, route in routes.items():
                key = route.waiting
                if key is None:
                    continue
                if key in self.stored.keys and self._readable(key):
                    pending.append(number)  # already decided, perhaps by another sweep
                else:
                    self.waiting[key].append(number)
        self._enter(fresh)
        return fresh

    def _examine(self, keys: Collection[str], awaited: Collection[str | None]) -> None:
        """Discard stored stages that are damaged; keep the outcomes that trials wait for."""
        outcomes, damaged = self.stored.look(keys)
        for key in damaged:
            self._forget(key)
        self.outcomes |= {key: outcomes[key] for key in outcomes.keys() & awaited}

    def _readable(self, key: str) -> bool:
        """Return whether an outcome could be read; if not, its stage is computed again."""
        if key not in self.outcomes:
            self.outcomes |= self.stored.outcomes(key)
            if key not in self.outcomes:
                self.recompute(key)
        return key in self.outcomes

    def _forget(self, key: str) -> None:
        self._discard(key)
        if key in self.done:
            self.done.remove(key)
            self.tally.stored[kind_of(key)] -= 1
        self.stored.keys.discard(key)
        self.log(Damaged(key=key))

    def _closure(self, keys: list[str]) -> list[str]:
        """Return keys and all that they need that are not wanted yet, and want them."""
        found, stack = [], keys
        while stack:
            key = stack.pop()
            if key not in self.wanted:
                self.wanted.add(key)
                self.tally.wanted[kind_of(key)] += 1
                found.append(key)
                stack.extend(self.planner.stages[key].needs)
        return found

    def _enter(self, keys: list[str]) -> None:
        for key in keys:
            self._order.setdefault(key, len(self._order))
            if key in self.stored.keys:
                self._add_done(key)
            for need in self.planner.stages[key].needs:
                self._children[need].append(key)
        seconds = {key: self.expected(self.planner.stages[key]) for key in keys}
        regrown = [(seconds[key], key) for key in keys if self.planner.stages[key].work.GROWN]
        self.longest_grown = max([self.longest_grown, *regrown])
        remaining(seconds, self.planner.stages, self._children, self._rank, self.longest_grown[0])
        for key in keys:
            if key not in self.done:
                self._wait(key)

    def _add_done(self, key: str) -> None:
        if key not in self.done:
            self.done.add(key)
            self.tally.stored[kind_of(key)] += 1

    def _wait(self, key: str) -> None:
        """Begin a stage, or keep it until its inputs are stored."""
        needs = set(self.planner.stages[key].needs)
        if broken := [need for need in needs if self._broken(need)]:
            self._fail_below(key, self._broken(broken[0]))
            return
        self._missing[key] = needs - self.done
        if not self._missing[key]:
            self._begin(key)

    def _begin(self, key: str) -> None:
        """Queue a stage whose inputs are stored, unless its stored result was made from them."""
        if self.stored.settled(key):
            self.log(Kept(key=key))
            self._complete(key)
        else:
            self._ready.add(key)

    def _broken(self, key: str) -> str:
        """Return the key of the failure that a stage has come to; empty if it has not failed."""
        return key if key in self.failed else self.upstream_failed.get(key, "")

    # Handing out

    def take(self, slots: Mapping[str, int]) -> list[Stage]:
        """Return the next batch for so many slots of each class, as `ReadyStages.take` has it."""
        batch = [] if self.stopping else self._ready.take(slots, self._batched)
        self._out.update(stage.key for stage in batch)
        return batch

    @property
    def finished_all(self) -> bool:
        """Whether no stage is ready, handed out or elsewhere, so that none can become ready."""
        return not self._out and (self.stopping or not (self._ready or self.elsewhere))

    @property
    def ready(self) -> int:
        """Number of stages whose inputs are stored."""
        return len(self._ready)

    @property
    def out(self) -> frozenset[str]:
        """Keys that an executor holds."""
        return frozenset(self._out)

    # Other drivers

    def set_aside(self, keys: Collection[str]) -> None:
        """Take back stages that were handed out and that another driver works on."""
        self._out.difference_update(keys)
        self.elsewhere.update(keys)

    def came_back(self, keys: Iterable[str]) -> None:
        """Take in that stages wait no longer: no driver works on them, none has stored them."""
        for key in self.elsewhere.intersection(keys):
            self.elsewhere.remove(key)
            if not self._broken(key):
                self._ready.add(key)

    def stored_elsewhere(self, keys: Iterable[str]) -> None:
        """Take in that another driver has stored stages, set aside or handed out just now."""
        for key in keys:
            self.elsewhere.discard(key)
            self._out.discard(key)
            self.log(Kept(key=key))
            self._complete(key)

    # Reports of executors

    def finished(self, results: Iterable[Result]) -> None:
        """Take in results; what failed for a passing reason waits until it comes back."""
        for result in results:
            self._out.discard(result.key)
            if result.status == "done":
                self._complete(result.key, result)
            elif result.status == "damaged" and self._try_again(result):
                self._recompute(result.damaged, result.key)
            elif result.status == "failed" and not result.lasting and self._try_again(result):
                self.elsewhere.add(result.key)
            else:
                self._fail(result)

    def lost(
        self, keys: Iterable[str], published: Iterable[str], reason: str, *, counts: bool = True
    ) -> None:
        """Take in the death of a process: only a lone death counts, if any does."""
        gone = list(keys)
        stored = set(published)
        for key in gone:
            self._out.discard(key)
            if key in stored:
                self._complete(key, Result(key=key, status="done"))
                continue
            result = Result(key=key, status="failed", error=reason, lasting=False)
            if not counts or len(gone) > 1 or self._try_again(result):
                self._ready.add(key, alone=counts)
            else:
                self._fail(result)

    def returned(self, keys: Iterable[str]) -> None:
        """Take back stages that were handed out and not begun."""
        for key in keys:
            self._out.discard(key)
            self._ready.add(key)

    def _try_again(self, result: Result) -> bool:
        attempt = result.key, result.damaged  # one stage may meet several damaged inputs
        self._tries[attempt] += 1
        self.log(Retry(key=result.key, error=result.error or result.damaged))
        return self._tries[attempt] < self.attempts

    def _complete(self, key: str, result: Result | None = None) -> None:
        """Take in that a stage is stored: by this run, or by another one before it."""
        if key in self.waiting and not self._readable(key):
            return
        self._add_done(key)
        self.stored.add(key, ran=result is not None)
        if result is not None:
            self.ran[key] = result
            self.tally.add_run(key, result.seconds)
        for child in self._children[key]:
            missing = self._missing.get(child)
            if missing and key in missing:
                missing.discard(key)
                if not missing:
                    self._begin(child)
        if key in self.waiting:
            numbers = self.waiting.pop(key)
            fresh = self._grow(numbers)
            self.tally.add_growth(len(numbers), fresh)
            self.log(Grow(key=key, stages=len(fresh)))

    def _recompute(self, damaged: str, reader: str) -> None:
        """Recompute an artifact that turned out to be damaged, then its reader."""
        if cause := self._broken(damaged):
            self._fail_below(reader, cause)
            return
        self._forget(damaged)
        self._missing[reader] = {damaged}
        if damaged not in self._out and damaged not in self.elsewhere:
            self._wait(damaged)

    def recompute(self, key: str) -> None:
        """Recompute an artifact that the driver itself found damaged.

        What is damaged again whenever it is read back fails in the end.
        """
        if self._broken(key) or key in self._ready or key in self._out | self.elsewhere:
            return
        self._forget(key)
        result = Result(key=key, status="failed", error="what it stores cannot be read back")
        if self._try_again(result):
            self._wait(key)
        else:
            self._fail(result)

    def _fail(self, result: Result) -> None:
        if result.status == "damaged":
            result = replace(result, error=f"its input {result.damaged} is damaged every time")
        self.failed[result.key] = result
        self.tally.failed[kind_of(result.key)] += 1
        self.log(Failed(key=result.key, error=result.error))
        for child in self._children[result.key]:
            self._fail_below(child, result.key)

    def _fail_below(self, key: str, cause: str) -> None:
        stack = [key]
        while stack:
            below = stack.pop()
            if below not in self.done and below not in self.upstream_failed:
                self.upstream_failed[below] = cause
                self.tally.failed[kind_of(below)] += 1
                self._missing.pop(below, None)
                self.log(UpstreamFailed(key=below, cause=cause))
                stack.extend(self._children[below])
