"""Trials that come while a run is under way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from raysweep.run.schedule import Schedule
from raysweep.store.events import Event


class TrialSource(Protocol):
    """Gives a run more trials while it runs; the searches of a tuning run are one."""

    @property
    def exhausted(self) -> bool:
        """Whether no more trials will come."""

    def more(self, slots: int) -> bool:
        """Give the planner more trials; False if there are none now."""

    def planned(self, schedule: Schedule) -> Sequence[Event]:
        """Look at trials that were taken in, and may be stored already; return the events."""

    def settled(self, keys: Iterable[str], schedule: Schedule) -> Sequence[Event]:
        """Take in that stages have ended; return the events."""
