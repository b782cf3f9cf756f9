"""The drivers of a sweep, by their heartbeats: who runs it now, how far it is, how to stop it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from raysweep.store import Store
from raysweep.store.heartbeat import (
    BEAT_SECONDS,
    BEATS_UNTIL_DEAD,
    Heartbeat,
    raw_heartbeats,
    stop_path_of,
)
from raysweep.store.liveness import Drivers
from raysweep.store.sweepfolder import SweepFolder

DriverState = Literal["running", "stopping", "dead"]
LOOKS = 4  # in a span of a heartbeat
LATE = 2  # spans until a sign of life is late


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A driver that has not ended.

    Attributes:
        state: running, told to stop, or dead: its heartbeat stands still.
        tuning: whether it tunes the sweep.
        beat: what it said last.
    """

    state: DriverState
    tuning: bool
    beat: Heartbeat

    @property
    def alive(self) -> bool:
        """Whether it still works."""
        return self.state != "dead"


def drivers(
    store: Store,
    name: str | None = None,
    waiting: Callable[[Heartbeat], None] = lambda beat: None,
) -> list[Driver]:
    """Return the drivers of a sweep that have not ended, those that began last at the end.

    It takes as long as a sign of life of each, a few seconds at most; of a dead one on another host
    as long as it takes to be sure.

    Args:
        store: where they leave their heartbeats.
        name: of the sweep; none: of every sweep.
        waiting: called once for each driver whose sign of life is late.
    """
    places = () if name is None else (name, SweepFolder(store, name).tuning.name)
    watch, looks = Drivers(BEATS_UNTIL_DEAD * LOOKS), 0
    while True:
        watch.look(raw_heartbeats(store))
        found = {
            run: one
            for run, one in sorted(watch.known.items())
            if (beat := one.heartbeat) is not None
            and beat.state != "ended"
            and (not places or beat.folder in places)
        }
        unsure = [one.heartbeat for one in found.values() if one.unsure and one.heartbeat]
        if not unsure:
            break
        looks += 1
        for beat in unsure if looks == LATE * LOOKS else ():
            waiting(beat)
        time.sleep(BEAT_SECONDS / LOOKS)
    return [_driver(one.heartbeat, one.dead) for one in found.values() if one.heartbeat]


def _driver(beat: Heartbeat, dead: bool) -> Driver:
    working: DriverState = "running" if beat.state == "running" else "stopping"
    tuning = beat.folder != beat.folder.partition("/")[0]
    return Driver(state="dead" if dead else working, tuning=tuning, beat=beat)


def follow(store: Store, run: str) -> Iterator[Heartbeat]:
    """Yield the heartbeats of a driver, until it has ended or is dead."""
    watch = Drivers()
    while True:
        watch.look(raw_heartbeats(store))
        one = watch.known.get(run)
        if one is None or one.dead or one.heartbeat is None or one.heartbeat.state == "ended":
            return
        yield one.heartbeat
        time.sleep(BEAT_SECONDS)


def ask_to_stop(store: Store, run: str) -> None:
    """Ask a driver to stop; it finds the request at its next heartbeat, wherever it runs."""
    store.write(stop_path_of(run), b"stop\n")
