"""The longest that a stage may run: `resources.limits`, by stage kind or by method.

Where the sweep file sets none, one follows from what was timed: many times what the slowest stage
of the same methods, parameters and recipe took on the same class of device. A limit that comes late
costs hours; one that ends sound work costs the work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from raysweep.errors import SpecError, StoreError
from raysweep.identity import canonical, digest
from raysweep.methods import ROLES
from raysweep.plan.costs import Costs
from raysweep.stages.stage import Stage, kinds
from raysweep.store import Store
from raysweep.sweep.faults import near
from raysweep.sweep.resources import seconds_in
from raysweep.sweep.spec import Sweep

FILE = "slowest.json"
REMEMBERED = 2000  # setups; those that were timed longest ago are forgotten
FEWEST = 10  # stages that must have been timed
TIMES = 20  # what the slowest of them took
LEAST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The longest that a stage may run.

    Attributes:
        name: the stage kind or method whose limit it is.
        seconds: the time, above 0.
        text: the time as the sweep file has it.
        timed: how many stages like it were timed, if the limit follows from them; else 0.
    """

    name: str
    seconds: float
    text: str
    timed: int = 0

    @property
    def exceeded(self) -> str:
        """The error of a stage that ran longer."""
        if self.timed:
            return (
                f"TimeLimit: the stage ran longer than {self.text}, {TIMES} times as long as the "
                f"slowest of {self.timed} stages like it would have taken, and at least "
                f"{LEAST_SECONDS / 3600:g} h, and its process was ended; if it may take that long, "
                f"set resources.limits.{self.name}"
            )
        return (
            f"TimeLimit: the stage ran longer than {self.text} (resources.limits.{self.name}), and "
            f"its process was ended; raise the limit, or make the stage shorter"
        )


def limits_of(sweep: Sweep) -> Callable[[Stage], Limit | None]:
    """Return a function from a stage to its limit; a method's stands before its kind's.

    Raises:
        SpecError: if a limit is neither of a stage kind nor of a method of the sweep.
    """
    methods = [method.name for role in ROLES for method in getattr(sweep, role)]
    known = {}
    for name, value in sweep.resources.limits.items():
        if name not in (*kinds(), *methods):
            raise SpecError(
                f"resources.limits.{name}: must be a stage kind ({', '.join(kinds())}) or a method "
                f"of sweep {sweep.name}; {near(name, dict.fromkeys((*kinds(), *methods)))}"
            )
        text = value if isinstance(value, str) else f"{value:g} s"
        known[name] = Limit(name=name, seconds=seconds_in(value), text=text)
    return lambda stage: known.get(stage.method) or known.get(stage.kind)


class Limits:
    """The limits of the stages of a sweep: as its file sets them, else as they follow from paces.

    Of each setup the slowest pace is kept, for later runs. A setup is the class of device that a
    sweep asks for, kind, method and network, and every parameter of the methods and of the recipe.
    A pace is seconds by unit of work.
    """

    def __init__(self, sweep: Sweep, costs: Costs, store: Store) -> None:
        """Take what knows names and work of stages; nothing is read yet.

        Raises:
            SpecError: as `limits_of` does.
        """
        self._given = limits_of(sweep)
        self._costs = costs
        self._store = store
        self._known: dict[str, tuple[float, int]] | None = None
        self._new: dict[str, tuple[float, int]] = {}

    def of(self, stage: Stage) -> Limit | None:
        """Return the limit of a stage; None where too few like it were timed before this run."""
        if (given := self._given(stage)) is not None:
            return given
        if self._known is None:
            self._known = self._read()
        if not self._known:
            return None
        pace, timed = self._known.get(self._setup(stage), (0.0, 0))
        if timed < FEWEST:
            return None
        seconds = max(LEAST_SECONDS, TIMES * pace * self._work(stage))
        text = f"{seconds / 3600:.1f} h"
        return Limit(name=stage.method or stage.kind, seconds=seconds, text=text, timed=timed)

    def add(self, stage: Stage, seconds: float) -> None:
        """Take in a stage that has ended."""
        setup = self._setup(stage)
        pace, timed = self._new.get(setup, (0.0, 0))
        self._new[setup] = max(pace, seconds / self._work(stage)), timed + 1

    def save(self) -> None:
        """Keep what was added, for later runs; a storage that fails costs this alone."""
        if not self._new:
            return
        known = self._read()
        for setup, (pace, timed) in self._new.items():
            before, n = known.pop(setup, (0.0, 0))
            known[setup] = max(before, pace), n + timed
        newest = dict(list(known.items())[-REMEMBERED:])
        self._store.try_write(FILE, json.dumps(newest).encode())

    def _work(self, stage: Stage) -> float:
        return max(self._costs.work(stage), 1.0)

    def _setup(self, stage: Stage) -> str:
        on_gpu = stage.resource == "gpu" and self._costs.planner.sweep.resources.gpu.gpu
        params = {n: value for n, value in stage.params.items() if isinstance(value, Mapping)}
        own = digest(canonical(params))[:12]
        return f"{'gpu' if on_gpu else 'cpu'} {self._costs.name(stage)} {own}"

    def _read(self) -> dict[str, tuple[float, int]]:
        """Return pace and count of each setup, the newest last; damaged entries are left out."""
        try:
            found = json.loads(self._store.read(FILE) or b"{}")
        except (StoreError, ValueError, RecursionError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {
            setup: (float(entry[0]), entry[1])
            for setup, entry in entries
            if isinstance(entry, list)
            and [type(part) for part in entry] in ([float, int], [int, int])
            and 0 <= entry[0] < math.inf
        }


def forecast(limits: Iterable[Limit | None]) -> str:
    """Return the sentence on the limits of stages that follow from what was timed; may be empty."""
    derived = [limit for limit in limits if limit is not None and limit.timed]
    if not derived:
        return ""
    longest = max(derived, key=lambda limit: limit.seconds)
    return (
        f"{len(derived)} stages have a time limit of {TIMES} times the slowest like them, an hour "
        f"at least and {longest.text} at most; resources.limits sets others"
    )
