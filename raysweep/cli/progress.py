"""Progress of a run on the terminal: one bar with the remaining time, or plain lines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from raysweep.cli.terminal import duration
from raysweep.identity import kind_of

if TYPE_CHECKING:
    from raysweep.results.wandb import Published
    from raysweep.run.run import Run
    from raysweep.store.heartbeat import Heartbeat

PLAIN_EVERY_SECONDS = 10.0


class Progress:
    """One bar for the sweep on a terminal; plain lines elsewhere.

    `noted` counts the notes of the run that were printed.
    """

    def __init__(self, console: Console, first: str = "planning") -> None:
        """Take the terminal, and the word that stands on it until there is a number."""
        self.console = console
        self._first = first
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._last = 0.0
        self._failed: set[str] = set()
        self._stopping = False
        self.noted = 0

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeElapsedColumn(), TextColumn("{task.fields[note]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(self._first, total=None, note="")
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
        if schedule.stopping:
            self._say_stopping("; one more signal ends at once")
            return
        settled = len(schedule.done) + len(schedule.failed) + len(schedule.upstream_failed)
        total = len(schedule.wanted)
        if self._due(settled, total):
            running = Counter(kind_of(key) for key in schedule.out)
            left = run.pace.left_seconds() if running else None
            self._show(run.sweep.name, settled, total, running, left)

    def show(self, beat: Heartbeat) -> None:
        """Show the state of a run that a driver tells from elsewhere."""
        kinds = beat.kinds.values()
        settled = sum(n.stored + n.failed for n in kinds)
        total = sum(n.wanted for n in kinds)
        if beat.state == "stopping":
            self._say_stopping()
        elif self._due(settled, total):
            running = Counter({kind: n.out for kind, n in beat.kinds.items() if n.out})
            self._show(beat.folder, settled, total, running, beat.left_seconds)

    def published(self, told: Published) -> None:
        """Show the number of runs that are published to W&B; called after every batch."""
        if self._due(told.held, told.total):
            self._show("W&B", told.held, told.total, {}, None, "runs")

    def _say_stopping(self, more: str = "") -> None:
        self.close()
        if not self._stopping:
            self.console.print(f"stopping: records are written{more}")
        self._stopping = True

    def _due(self, settled: int, total: int) -> bool:
        """Return whether there is something to show: for a bar always, else now and then."""
        soon = time.monotonic() - self._last < PLAIN_EVERY_SECONDS and settled < total
        return self._bar is not None or not (soon or not total)

    def _show(
        self, name: str, settled: int, total: int, running: Mapping[str, int], left: float | None,
        counted: str = "stages",
    ) -> None:  # fmt: skip
        note = ", ".join(f"{n} {kind}" for kind, n in running.items())
        note = note if left is None else f"{note}; {duration(left)} left"
        if self._bar is not None:
            self._bar.update(
                self._task, description=name, total=total, completed=settled, note=note
            )
            return
        self._last = time.monotonic()
        self.console.print(f"{name}: {settled} of {total} {counted}{f'; {note}' if note else ''}")
