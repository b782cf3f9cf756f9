"""The page of a sweep that still runs: written anew now and then, by a command beside the driver.

Records need nothing of the kind: until a launch has concluded they are derived from manifests
whenever they are read. A page is a file, and takes a while to write.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from raysweep.jobs import beside

if TYPE_CHECKING:
    from raysweep.run.run import Run

PAGE_SECONDS = 180.0  # between two pages
SHARE = 0.02  # of the time, at most, that a page may be in the making


class LivePage:
    """Watches a run, and has its page written now and then; errors of that cost the page alone."""

    def __init__(self, watch: Callable[[Run], None], seconds: float | None = None) -> None:
        """Take what else watches the run, and the seconds between two pages."""
        self._watch = watch
        self._seconds = PAGE_SECONDS if seconds is None else seconds
        self._writing: subprocess.Popen[bytes] | None = None
        self._began = time.monotonic()
        self._next = self._began + self._seconds

    def __call__(self, run: Run) -> None:
        """Take in that a run has changed."""
        self._watch(run)
        now = time.monotonic()
        if self._writing is not None and self._writing.poll() is not None:
            self._writing = None
            self._next = now + max(self._seconds, (now - self._began) / SHARE)
        if self._writing is None and now >= self._next and run.schedule.ran:
            self._began, self._next = now, now + self._seconds
            with contextlib.suppress(OSError):
                self._writing = beside.started(["report", run.sweep.name], run.store.uri)

    def close(self) -> None:
        """End what is being written, before the last page is."""
        if self._writing is not None:
            self._writing.kill()
            self._writing.wait()
            self._writing = None
