"""The drivers of a sweep, by their heartbeats: who runs it now, how far it is, how to stop it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from raysweep.store import Store
from raysweep.store.heartbeat import BEAT_SECONDS, Heartbeat, stop_path_of
from raysweep.store.liveness import Liveness
from raysweep.store.sweepfolder import SweepFolder

DriverState = Literal["running", "stopping", "dead"]
LOOKS = 4  # in a span of a heartbeat


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
    watch: Liveness | None = None,
) -> list[Driver]:
    """Return the drivers of a sweep that have not ended, those that began last at the end.

    It takes as long as a sign of life of each, a few seconds at most; of a dead one on another host
    as long as it takes to be sure.

    Args:
        store: where they leave their heartbeats.
        name: of the sweep; none: of every sweep.
        waiting: called once for each driver whose sign of life is late.
        watch: has looked before.
    """
    watch = watch or Liveness(store)
    told: set[str] = set()
    late = time.monotonic() + 2 * BEAT_SECONDS
    while True:
        found = [beat for beat in watch.look().values() if _is_of(beat, store, name)]
        unsure = [beat for beat in found if watch.sign(beat.run) == "unknown"]
        if not unsure:
            break
        for beat in unsure:
            if beat.run not in told and time.monotonic() > late:
                told.add(beat.run)
                waiting(beat)
        time.sleep(BEAT_SECONDS / LOOKS)
    return [
        Driver(
            state="dead" if watch.sign(beat.run) == "dead" else _state(beat),
            tuning=beat.folder != beat.folder.partition("/")[0],
            beat=beat,
        )
        for beat in sorted(found, key=lambda beat: beat.run)
    ]


def _state(beat: Heartbeat) -> DriverState:
    return "running" if beat.state == "running" else "stopping"


def _is_of(beat: Heartbeat, store: Store, name: str | None) -> bool:
    places = () if name is None else (name, SweepFolder(store, name).tuning.name)
    return beat.state != "ended" and (not places or beat.folder in places)


def follow(store: Store, run: str) -> Iterator[Heartbeat]:
    """Yield the heartbeats of a driver, until it has ended or is dead."""
    watch = Liveness(store)
    while True:
        beat = watch.look().get(run)
        if beat is None or beat.state == "ended" or watch.sign(run) == "dead":
            return
        yield beat
        time.sleep(BEAT_SECONDS)


def ask_to_stop(store: Store, run: str) -> None:
    """Ask a driver to stop; it finds the request at its next heartbeat, wherever it runs."""
    store.write(stop_path_of(run), b"stop\n")
