"""Progress of a run on the terminal: one bar with the remaining time, or plain lines."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from raysweep.cli.terminal import duration
from raysweep.identity import kind_of

if TYPE_CHECKING:
    from raysweep.run.run import Run

PLAIN_EVERY_SECONDS = 10.0


class Progress:
    """One bar for the sweep on a terminal; plain lines elsewhere.

    `noted` counts the notes of the run that were printed.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._last = 0.0
        self._failed: set[str] = set()
        self.noted = 0

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeElapsedColumn(), TextColumn("{task.fields[note]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("planning", total=None, note="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar from the terminal, and show the cursor again."""
        if self._bar is not None:
            self._bar.stop()

    def watch(self, run: Run) -> None:
        """Show the state of a run; called after every change."""
        schedule = run.schedule
        for note in run.notes[self.noted :]:
            self.console.print(note, style="yellow")
        self.noted = len(run.notes)
        for key in schedule.failed.keys() - self._failed:
            self._failed.add(key)
            self.console.print(f"failed: {key}: {schedule.failed[key].error}", style="red")
        settled = len(schedule.done) + len(schedule.failed) + len(schedule.upstream_failed)
        total = len(schedule.wanted)
        now = time.monotonic()
        if schedule.stopping:
            self.close()
            self.console.print("stopping: records are written; one more signal ends at once")
            return
        soon = now - self._last < PLAIN_EVERY_SECONDS and settled < total
        if self._bar is None and (soon or not total):
            return
        running = Counter(kind_of(key) for key in schedule.out)
        note = ", ".join(f"{n} {kind}" for kind, n in running.items())
        left = run.pace.left_seconds() if note else None
        note = note if left is None else f"{note}; {duration(left)} left"
        if self._bar is not None:
            self._bar.update(
                self._task, description=run.sweep.name, total=total, completed=settled, note=note
            )
        else:
            self._last = now
            note = f"; {note}" if note else ""
            self.console.print(f"{run.sweep.name}: {settled} of {total} stages{note}")
