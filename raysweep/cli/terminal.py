"""What the terminal shows: progress, plans, results, status. Reads state, changes none."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from raysweep import methods
from raysweep.identity import kind_of
from raysweep.results import history
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep import catalog

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.run.preview import Preview
    from raysweep.run.run import Run
    from raysweep.sweep.spec import Sweep

PLAIN_EVERY_SECONDS = 10.0


def duration(seconds: float) -> str:
    """Return seconds in words: `45 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


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
        """Take the bar from the terminal, and give it its cursor back."""
        if self._bar is not None:
            self._bar.stop()

    def watch(self, run: Run) -> None:
        """Show how a run stands; called after every change."""
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
        note = f"{note}; {duration(_remaining(run))} left" if note else note
        if self._bar is not None:
            self._bar.update(
                self._task, description=run.sweep.name, total=total, completed=settled, note=note
            )
        else:
            self._last = now
            self.console.print(f"{run.sweep.name}: {settled} of {total} stages; {note}")


def _remaining(run: Run) -> float:
    """Return expected seconds: work left, over the pace of this run."""
    schedule = run.schedule
    stages = run.planner.stages
    spent = sum(schedule.expected(stages[key]) for key in schedule.ran)
    left = sum(
        schedule.expected(stages[key])
        for key in schedule.wanted - schedule.done - schedule.failed.keys()
    )
    return left * (time.time() - run.started) / spent if spent else left


def print_preview(console: Console, sweep: Sweep, plan: Preview) -> None:
    """Print a plan: counts, sharing, reasons, estimate."""
    console.print(f"{sweep.name}: {plan.trials} trials")
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "if nothing were shared", "shared", "cached", "to run", "time"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    table.add_column("why")
    for kind in plan.kinds:
        why = ", ".join(f"{n} {reason}" for reason, n in kind.why.items())
        took = duration(kind.seconds) + ("?" if kind.guessed else "") if kind.run else ""
        table.add_row(
            kind.kind, str(kind.naive), str(kind.distinct), str(kind.cached), str(kind.run),
            took, why,
        )  # fmt: skip
    console.print(table)
    if plan.undecided:
        console.print(
            f"below the decisions of {plan.undecided} trials: 0 to {plan.below} further stages, "
            f"up to about {duration(plan.below_seconds)} "
            f"(trials whose decisions keep the same samples share them)"
        )
    for line in (*plan.forecasts, *history.said_of_damage(list(plan.damaged))):
        console.print(line)
    guessed = sum(kind.guessed for kind in plan.kinds)
    note = f"; guessed for {guessed} stages: none like them was timed yet" if guessed else ""
    console.print(f"estimate: {duration(plan.seconds)} on one slot{note}")


def print_results(console: Console, rows: pd.DataFrame) -> None:
    """Print the table of a sweep: attack × defense, mean over seeds."""
    from raysweep.reports.tables import text_table

    for title, headers, lines in text_table(rows):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for number, header in enumerate(headers):
            table.add_column(header, justify="right" if 1 < number < len(headers) - 1 else "left")
        for line in lines:
            table.add_row(*line)
        console.print(table)


def print_tuned(console: Console, table: pd.DataFrame) -> None:
    """Print what tuning found: held-out metrics beside the method's own and the oracle's."""
    metrics = [str(name)[6:] for name in table.columns if str(name).startswith("tuned_")]
    metrics = [name for name in metrics if not name.endswith(("_low", "_high"))]
    shown = Table(box=None, pad_edge=False)
    for head in ("defense", "labels", "held out", "parameters"):
        shown.add_column(head, no_wrap=head != "parameters")
    for metric in metrics:
        unit = "s" if metric.endswith("seconds") else "%"
        for who in (f"{metric} {unit} tuned", "own", "oracle"):
            shown.add_column(who, justify="right")
    for row in table.to_dict("records"):
        values = [
            f"{row[f'{who}_{metric}']:.2f}" if metric.endswith("seconds") else
            percent(row[f"{who}_{metric}"])
            for metric in metrics for who in ("tuned", "default", "oracle")
        ]  # fmt: skip
        parameters = ", ".join(f"{name}={_short(v)}" for name, v in row["parameters"].items())
        note = f" ({row['note']})" if row["note"] else ""
        shown.add_row(
            row["defense"], row["labels"], row["held_out"], parameters + note, *values
        )  # fmt: skip
    console.print(shown)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_status(console: Console, store: Store, name: str) -> None:
    """Print how a sweep stands, from its ledger and what is stored; its tuning, its versions.

    Raises:
        StoreError: if there is no sweep of that name; the message lists those that there are.
    """
    place = history.place_of(store, name)
    for line in history.damage(store, place):
        console.print(line)
    tuned = SweepFolder(store, name).tuning
    if place == name:
        _print_standing(console, SweepFolder(store, name), name, "launch")
    if store.list(tuned.ledger):
        _print_standing(console, tuned, f"tuning of {name}", "tune")
    versions = history.versions(store, name)
    if len(versions) > 1:
        console.print(f"versions: {'; '.join(map(_version, versions))}")


def _version(one: history.Version) -> str:
    launched = f"launched {time.ctime(one.launched)}" if one.launched else "of unknown date"
    rows = "not concluded" if one.rows is None else f"{one.ok} of {one.rows} trials ok"
    return f"{one.number} ({launched}, {rows})"


def _print_standing(console: Console, folder: SweepFolder, title: str, command: str) -> None:
    """Print how the last run of a sweep stands; stages whose manifests are damaged are missing."""
    now = ledger.standing(folder)
    if now.start is None:
        console.print(f"{title}: begun, nothing handed out yet")
        return
    stages = history.table(folder.store, folder.name, "stages")
    known = now.done if stages is None else now.done | set(stages["key"].map(str))
    _, damaged = folder.store.manifests(sorted(known))
    settled = now.cached + len(now.done) - len(damaged)
    state = "ended" if now.ended else f"running or killed since {time.ctime(now.start.t)}"
    console.print(
        f"{title}: {now.trials} trials; {settled} of {now.stages} stages stored, {len(now.out)} "
        f"handed out, {len(now.failed)} failed, {len(now.upstream)} wait for a failed one; {state}"
    )
    for line in history.said_of_damage(damaged):
        console.print(line)
    for key, error in now.failed.items():
        console.print(f"failed: {key}: {error}", style="red")
        console.print(f"  log: {folder.store.where(folder.log(key))}")
    if not now.ended or settled < now.stages:
        console.print(f"{command} the same sweep file again to run what is missing or failed")


def print_methods(console: Console, roles: list[methods.Role]) -> None:
    """Print every method of some roles: its idea, its source, and where ours differs from it."""
    for role in roles:
        table = Table(box=None, pad_edge=False, title=role, title_justify="left", show_lines=False)
        table.add_column("name", no_wrap=True)
        found = catalog.entries(role)
        kinds = any(one.kind for one in found)
        for column in (*(["kind"] if kinds else []), "idea", "paper", "venue", "year"):
            table.add_column(column)
        table.add_column("where we differ", ratio=2)
        for one in found:
            kind = [one.kind] if kinds else []
            table.add_row(
                one.name, *kind, one.idea, one.paper, one.venue, one.year, one.differs,
                end_section=True,
            )  # fmt: skip
        console.print(table)


def print_doctor(console: Console, storage: str | None) -> bool:
    """Print versions, devices, data and storage; return whether a sweep can run here."""
    from raysweep.errors import StoreError
    from raysweep.paths import setting
    from raysweep.provenance import versions
    from raysweep.results.records import storage_uri
    from raysweep.sweep.resources import Resources, bfloat16_is_fast
    from raysweep.training.device import tried_kernel

    for package, version in versions().items():
        console.print(f"{package} {version}")
    fast = "bfloat16" if bfloat16_is_fast(Resources()) else "float32"
    console.print(f"{os.cpu_count()} CPUs (precision auto: {fast})")
    console.print(f"GPUs, one kernel tried on each: {tried_kernel()}")
    console.print(f"RAYSWEEP_DATA: {setting('RAYSWEEP_DATA') or 'not set'}")
    store = Store(storage_uri(storage))
    try:
        store.check()
    except StoreError as error:
        console.print(f"storage: {error}", style="red")
        return False
    console.print(f"storage: {store.where()} is writable")
    return True


def percent(value: float) -> str:
    """Return a fraction as a percentage with one decimal, or a dash where it is undefined."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"
