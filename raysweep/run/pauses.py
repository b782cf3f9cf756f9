"""Stages that failed for a passing reason: they are tried again after a pause, which grows.

A full disk, a storage that is away or a GPU without memory is often well again some seconds later;
attempts at once would all meet it.
"""

from __future__ import annotations

import time
from collections import Counter

SECONDS = (1.0, 10.0)  # before the second attempt, and before each further one


class Pauses:
    """The stages that wait to be tried again, and when their time comes."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()
        self._until: dict[str, float] = {}

    def add(self, key: str) -> None:
        """Let a stage wait, longer than before."""
        pause = SECONDS[min(self._failures[key], len(SECONDS) - 1)]
        self._failures[key] += 1
        self._until[key] = time.monotonic() + pause

    def over(self) -> list[str]:
        """Return the stages whose pause is over, each once."""
        now = time.monotonic()
        keys = [key for key, until in self._until.items() if until <= now]
        for key in keys:
            del self._until[key]
        return keys
