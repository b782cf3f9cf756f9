"""The drivers of a store, as their heartbeats tell: who is alive, who is gone.

No clock is read. A driver is dead when its heartbeat is the same in so many looks of ours, which
are a known time apart; one that ran on this host is gone when its process is.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raysweep.store.heartbeat import BEATS_UNTIL_DEAD, Heartbeat, unpack


@dataclass
class WatchedDriver:
    """A driver that has left a heartbeat.

    Attributes:
        raw: its heartbeat, as it stood in the store.
        heartbeat: what it says; None if it is damaged.
        patience: how often it may be found unchanged until it is taken for dead.
        looks: how often it was found unchanged.
        seen_alive: whether it has changed under our eyes, or its process runs on this host.
    """

    raw: bytes
    heartbeat: Heartbeat | None
    patience: int
    looks: int = 0
    seen_alive: bool = False

    @property
    def dead(self) -> bool:
        """Whether it is to be taken for dead."""
        return self.looks >= self.patience

    @property
    def unsure(self) -> bool:
        """Whether no sign of life has come, and it may still come."""
        return not (self.seen_alive or self.dead)

    @property
    def held(self) -> tuple[str, ...]:
        """Keys that it has claimed."""
        return self.heartbeat.held if self.heartbeat else ()

    @property
    def name(self) -> str:
        """The sweep that it runs, and where."""
        beat = self.heartbeat
        return f"sweep {beat.folder} on {beat.host} (run {beat.run})" if beat else "another sweep"


class Drivers:
    """Every driver that has left a heartbeat, by run."""

    def __init__(self, patience: int = BEATS_UNTIL_DEAD) -> None:
        """Take the number of unchanged looks after which a driver is dead; nobody is known yet."""
        self._patience = patience
        self.known: dict[str, WatchedDriver] = {}

    def look(self, heartbeats: Mapping[str, bytes]) -> None:
        """Take in the heartbeats that stand in the store now, by run."""
        before, self.known = self.known, {}
        for run, raw in heartbeats.items():
            driver = before.get(run)
            if driver is None:
                driver = WatchedDriver(raw, unpack(raw), self._patience)
            elif driver.raw != raw:
                driver = WatchedDriver(raw, unpack(raw), self._patience, seen_alive=True)
            else:
                driver.looks += 1
            here = _runs_here(driver.heartbeat) if driver.heartbeat else None
            if here is False:
                driver.looks = self._patience
            driver.seen_alive = driver.seen_alive or here is True
            self.known[run] = driver

    @property
    def alive(self) -> dict[str, WatchedDriver]:
        """The drivers that may be alive, by run."""
        return {run: driver for run, driver in self.known.items() if not driver.dead}

    @property
    def dead(self) -> list[str]:
        """The runs of the drivers that are dead."""
        return [run for run, driver in self.known.items() if driver.dead]


@functools.cache
def machine() -> str:
    """Return the running kernel and the namespace of this process's id; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _runs_here(heartbeat: Heartbeat) -> bool | None:
    """Return whether the process of a driver runs, if that can be told: None on another host."""
    here = machine()
    if not here or (heartbeat.host, heartbeat.machine) != (socket.gethostname(), here):
        return None
    try:
        os.kill(heartbeat.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return None  # of another user
    return not _ended(heartbeat.pid)


def _ended(pid: int) -> bool:
    """Return whether a process has ended and only waits for its parent to take notice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] in (["Z"], ["X"])
