"""Publishing beside the driver: a process that follows the launch, and its end.

The process is `raysweep sync NAME --follow`. It takes what time of processors the stages leave, and
finds by itself what has finished. The driver holds its standard input: the end of that says that
the records are written. Then the process publishes the rest, and the driver waits for it a while.
Where the driver is gone, the process ends, too.

Of several drivers of one sweep, one publishes for all: the one that holds the lease of it. None
begins where nothing is left to publish.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raysweep.jobs import beside
from raysweep.results.published import Completion
from raysweep.results.wandb import Published, command, offline_note
from raysweep.run.interruption import Signals
from raysweep.store.sweepfolder import SweepFolder

if TYPE_CHECKING:
    from raysweep.run.run import Run

END_SECONDS = 10.0  # that a driver waits, once records are written, for what is not published yet
START_SECONDS = 60.0  # until the process must have said something
LOOK_SECONDS = 0.1
CLAIM_SECONDS = 10.0  # between two attempts to take over from another driver


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """The end of publishing to W&B: where the runs are, and what went wrong, a line each."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Publishing:
    """Watches a run, and has its trials published; whatever goes wrong costs the publishing alone.

    Attributes:
        published: the numbers that the process told last; none before it has.
    """

    def __init__(
        self,
        watch: Callable[[Run], None] = lambda run: None,
        tell: Callable[[Published], None] = lambda published: None,
    ) -> None:
        """Take what else watches the run, and what is told the numbers while the driver waits."""
        self._watch = watch
        self._tell = tell
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._begun = False
        self._started = 0.0
        self._claimed = float("-inf")
        self._closed = 0.0
        self._before: Published | None = None
        self.published: Published | None = None

    def __call__(self, run: Run) -> None:
        """Take in that a run has changed; its first result starts the process."""
        self._watch(run)
        if self._begun or not run.schedule.ran or run.schedule.stopping or _is_off(run):
            return
        now = time.monotonic()
        if now >= self._claimed + CLAIM_SECONDS:
            self._claimed = now
            self._begun = _is_ours(run)
            if self._begun:
                self._start(run, waits=True)

    def _start(self, run: Run, *, waits: bool) -> None:
        words = ["sync", run.sweep.name, "--follow", "--json"]
        if run.sweep.track.wandb == "offline":
            words.append("--offline")
        with contextlib.suppress(OSError):
            self._process = beside.started(words, run.store.uri, answers=True, waits=waits)
            self._started = time.monotonic()
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        with self._process.stdout as told:
            for line in told:
                with contextlib.suppress(ValueError, TypeError):
                    self.published = Published(**json.loads(line))

    def close_input(self) -> None:
        """Say that the records are written: what is left is published while the page is made."""
        if not self._closed:
            self._closed, self._before = time.monotonic(), self.published
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def finish(self, run: Run, signals: Signals) -> Tracked:
        """Wait a while for what is left; a first signal breaks it off.

        Whatever happens at W&B, the sweep stands: its records and its page are written before.
        """
        if _is_off(run):
            return Tracked()
        again = command(folder := SweepFolder(run.store, run.sweep.name))
        if self._process is None or self._process.poll() is not None:  # It may have been killed.
            self.close()
            self.published = self._before = None
            if not _is_ours(run):
                other = "W&B: another driver of this sweep publishes it"
                return Tracked(notes=[f"{other}; what it leaves is sent by: {again}"])
            completion = Completion(folder, online=run.sweep.track.wandb == "online")
            if (before := completion.note()) is not None:
                note = before if completion.online else offline_note(folder)
                return Tracked(notes=[note] if note else [])
            self._start(run, waits=False)
        if self._process is None:
            return Tracked()
        try:
            with signals.raising():
                over = self._wait()
        except KeyboardInterrupt:
            so_far = f"{self._so_far()} when a signal came"
            return Tracked(warnings=[f"{so_far}; publish the rest with: {again}"])
        finally:
            self.close()
        told = self.published
        if not over:
            return Tracked(notes=[f"{self._so_far()}; publish the rest with: {again}"])
        if told is None or (told.left and not told.note and not told.warning):
            return Tracked(warnings=[f"W&B: the publisher ended early; see why with: {again}"])
        return Tracked(
            notes=[told.note] if told.note else [], warnings=[told.warning] if told.warning else []
        )

    def _so_far(self) -> str:
        told = self.published
        count = f"{told.held} of {told.total} runs were" if told else "no run was yet"
        return f"W&B: {count} published"

    def _wait(self) -> bool:
        """Return whether the process came to its end: in time, or a little later."""
        self.close_input()
        process, reader = self._process, self._reader
        assert process is not None and reader is not None
        beside.hurry(process)
        told, before = self.published, self._before
        while process.poll() is None:
            waited = time.monotonic() - self._closed
            if self.published is not told and self.published is not None:
                self._tell(self.published)
            told = self.published
            if told is before and time.monotonic() - self._started < START_SECONDS:
                pass
            elif waited > END_SECONDS and not _is_little(before, told, waited):
                return False
            time.sleep(LOOK_SECONDS)
        reader.join(1)  # What the process has started may hold the other end a moment longer.
        return True

    def close(self) -> None:
        """End the process, and all that it has started in its session.

        wandb's own process is in another one, and may hold the other end of the output for minutes
        more: who reads there closes that.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _is_off(run: Run) -> bool:
    """Return whether nothing of a sweep is published."""
    return run.sweep.track.wandb == "disabled"


def _is_ours(run: Run) -> bool:
    """Return whether this run is the one of its sweep's that publishes, from now on."""
    return run.leases.hold(f"publish-{run.sweep.name}")


def _is_little(before: Published | None, now: Published | None, seconds: float) -> bool:
    """Return whether the rest takes about as long as was waited already, at most."""
    if now is None or seconds > 2 * END_SECONDS:
        return False
    done = now.held - (before.held if before else 0)
    return now.left <= done
