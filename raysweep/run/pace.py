"""The pace of a run: how long its stages took, and how long the rest will take.

No estimate is made before enough stages were timed, and those that most of the rest is like: a
guess of the first minute is taken for a promise. Then each stage left counts what stages like it
took in this run; where none of them has ended yet, what they took before, by as much as this run is
faster or slower than that, or what others of its kind took on average, which may be a tenth of it.
The sum is divided by the stage seconds that the run has done in
each second of late, which holds the number of workers and all that they lose between two stages.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from raysweep.plan.costs import Costs
from raysweep.run.ready import FIRST
from raysweep.run.schedule import Schedule
from raysweep.stages.stage import Stage
from raysweep.store.heartbeat import RunningStage

TIMED_STAGES = 8  # until then nothing is said
TIMED_SECONDS = 3.0  # from the beginning of the first stage
WINDOW_SECONDS = 120.0
UNKNOWN_SHARE = 0.25  # of the rest that may stand on guesses alone
FEW, MOST_OF_MEDIAN, AGAIN = 4, 3.0, 1.05
IMPORT_SECONDS = 30.0  # beside a longer stage, what it imports counts little
COST = 20.0  # an estimate is kept for as many times the seconds that it took


class Timed:
    """The stages of one name, as `Costs.name` has it, that have ended in this run.

    The first one in a process also imports what the method needs, which may take longer than ten
    of the others: of few stages the shortest counts, of many none for more than some of the median.

    Attributes:
        took: seconds and work of each.
        pace: seconds per unit of work.
        mean: the seconds of one of them.
    """

    def __init__(self, *, known: bool) -> None:
        self.known = known
        self.took: list[tuple[float, float]] = []
        self.seconds = self.work = self.expected = 0.0
        self.pace = self.mean = 0.0
        self._weighed = 0

    @property
    def enough(self) -> bool:
        """Whether they tell how long others will take: some imports are no matter to long ones."""
        return len(self.took) >= FIRST or min(self.took)[0] > IMPORT_SECONDS

    def add(self, seconds: float, work: float, expected: float) -> None:
        """Take in a stage that has ended."""
        self.took.append((seconds, max(work, 1.0)))
        self.seconds += seconds
        self.work += max(work, 1.0)
        self.expected += expected
        if len(self.took) <= FEW or len(self.took) > self._weighed * AGAIN:
            self._weigh()

    def _weigh(self) -> None:
        self._weighed = count = len(self.took)
        paces = [seconds / work for seconds, work in self.took]
        most = min(paces) if count <= FEW else MOST_OF_MEDIAN * median(paces)
        told = sum(min(pace, most) * work for pace, (_, work) in zip(paces, self.took, strict=True))
        self.pace, self.mean = told / self.work, told / count


class Pace:
    """Takes in how long stages took, and tells how long the rest will take."""

    def __init__(
        self,
        schedule: Schedule,
        costs: Costs,
        running: Callable[[], Sequence[RunningStage]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without any stage.

        Args:
            schedule: what is wanted, done, failed and handed out.
            costs: expected seconds, names and work of stages.
            running: returns what workers do now.
            clock: seconds.
        """
        self._schedule = schedule
        self._costs = costs
        self._running = running
        self._clock = clock
        self.timed: dict[str, Timed] = {}
        self._by_kind: dict[str, list[Timed]] = {}
        self._total = 0.0
        self._ended = 0
        self._began: float | None = None
        self._window: deque[tuple[float, float]] = deque()
        self._estimate: tuple[float, float | None] = (float("-inf"), None)
        self._facts: dict[str, tuple[str, bool, float]] = {}

    def _facts_of(self, stage: Stage) -> tuple[str, bool, float]:
        """Return a stage's name, whether stages like it were timed before, and its work; kept."""
        if stage.key not in self._facts:
            costs = self._costs
            self._facts[stage.key] = costs.name(stage), costs.known(stage), costs.work(stage)
        return self._facts[stage.key]

    @property
    def spent(self) -> dict[str, list[tuple[float, float]]]:
        """Name → seconds and work of each stage that has ended."""
        return {name: timed.took for name, timed in self.timed.items()}

    def add(self, stage: Stage, seconds: float) -> None:
        """Take in a stage that has ended."""
        now, (name, known, work) = self._clock(), self._facts_of(stage)
        timed = self.timed.get(name) or Timed(known=known)
        timed.add(seconds, work, self._costs(stage))
        if name not in self.timed:  # last, since another thread may ask at any moment
            self.timed[name] = timed
            self._by_kind.setdefault(stage.kind, []).append(timed)
        self._ended += 1
        if self._began is None:
            self._began = now - seconds
            self._window.append((self._began, 0.0))
        self._total += seconds
        self._window.append((now, self._total))
        while len(self._window) > TIMED_STAGES and self._window[1][0] < now - WINDOW_SECONDS:
            self._window.popleft()

    def seconds(self, stage: Stage) -> float:
        """Return the seconds that a stage will take, by stages like it that have ended here."""
        return self._expected(stage, {True: 1.0, False: 1.0})[0]

    def left_seconds(self) -> float | None:
        """Return the seconds that the rest will take; None while too little was timed."""
        now = self._clock()
        until, estimate = self._estimate
        if now < until:
            return estimate
        estimate = self._estimated(now)
        after = self._clock()
        self._estimate = after + 1.0 + COST * (after - now), estimate
        return estimate

    def _estimated(self, now: float) -> float | None:
        if self._ended < TIMED_STAGES or self._began is None or now < self._began + TIMED_SECONDS:
            return None
        schedule, under_way = self._schedule, {one.key: one.seconds for one in self._running()}
        settled = (schedule.done, schedule.failed, schedule.upstream_failed)
        drift = {known: self._drift(known=known) for known in (True, False)}
        left = longest = unknown = 0.0
        for key in tuple(schedule.wanted):
            if any(key in keys for keys in settled):
                continue
            seconds, sure = self._expected(schedule.planner.stages[key], drift)
            rest = max(seconds - under_way.get(key, 0.0), 0.0)
            left += rest
            unknown += 0.0 if sure else rest
            longest = max(longest, rest)
        each, sure = self._growth(drift)
        growth = each * sum(map(len, schedule.waiting.values()))
        left += growth
        unknown += 0.0 if sure else growth
        if left and unknown > UNKNOWN_SHARE * left:
            return None
        began, before = self._window[0]
        done = self._total - before + sum(under_way.values())
        return max(left * (now - began) / done, longest) if done else None

    def _drift(self, *, known: bool) -> float:
        """Return the ratio of seconds to expected ones, of recorded or of guessed paces."""
        those = [timed for timed in tuple(self.timed.values()) if timed.known == known]
        expected = sum(timed.expected for timed in those)
        return sum(timed.seconds for timed in those) / expected if expected else 1.0

    def _expected(self, stage: Stage, drift: dict[bool, float]) -> tuple[float, bool]:
        """Return the seconds that a stage will take, and whether stages like it were timed."""
        name, known, work = self._facts_of(stage)
        timed = self.timed.get(name)
        if timed is not None:
            return timed.pace * max(work, 1.0), timed.enough
        if not known and (others := self._by_kind.get(stage.kind)):
            # Not by work: it counts sample passes of one method, and samples of another.
            return sum(one.mean for one in others) / len(others), False
        return self._costs(stage) * drift[known], known

    def _growth(self, drift: dict[bool, float]) -> tuple[float, bool]:
        """Return the seconds of the stages that a trial gains when its outcome is known.

        They are as many as trials have gained so far; until one has, a training like the longest.

        Returns:
            The seconds, and whether stages like these were timed.
        """
        schedule = self._schedule
        stages = schedule.planner.stages
        if not schedule.tally.resumed_trials:
            _, longest = schedule.longest_grown
            return self._expected(stages[longest], drift) if longest else (0.0, True)
        grown = (self._expected(stages[key], drift)[0] for key in tuple(schedule.tally.grown))
        return sum(grown) / schedule.tally.resumed_trials, True
