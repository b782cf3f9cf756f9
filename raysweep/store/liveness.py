"""Whether a driver is alive: its heartbeat's count rises, by the clock of the one who watches."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Literal

from raysweep.store.heartbeat import BEAT_SECONDS, BEATS_UNTIL_DEAD, Heartbeat, heartbeats
from raysweep.store.store import Store

Sign = Literal["alive", "dead", "unknown"]


class Liveness:
    """Watches the heartbeats in a store.

    One look tells little: a driver is alive once its count was seen to rise, and dead when it stood
    still for `BEATS_UNTIL_DEAD` spans, or at once if it ran on this host and its process is gone.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        """Begin to watch; nothing is read yet."""
        self._store = store
        self._clock = clock
        self._patience = beat_seconds * BEATS_UNTIL_DEAD
        self._since: dict[str, tuple[int, float]] = {}
        self._signs: dict[str, Sign] = {}

    def look(self) -> dict[str, Heartbeat]:
        """Return the heartbeats that there are now, by run, and take in which of them rose."""
        found = heartbeats(self._store)
        now = self._clock()
        for run, beat in found.items():
            count, since = self._since.get(run, (beat.count, now))
            if beat.count != count:
                self._signs[run] = "alive"
                since = now
            elif now - since > self._patience or gone_from_here(beat):
                self._signs[run] = "dead"
            self._since[run] = (beat.count, since)
        for run in self._since.keys() - found.keys():
            del self._since[run]
            self._signs.pop(run, None)
        return found

    def sign(self, run: str) -> Sign:
        """Return the sign of life of a driver, from all looks so far."""
        return self._signs.get(run, "unknown")


def gone_from_here(beat: Heartbeat) -> bool:
    """Return whether a driver ran on this very host, and its process is gone."""
    if beat.host != socket.gethostname():
        return False
    try:
        os.kill(beat.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
