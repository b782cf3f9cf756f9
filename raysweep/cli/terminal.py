"""Tables and lines on the terminal: plans, results, status. Reads state, changes none."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from raysweep import methods
from raysweep.results import history
from raysweep.results.table import read_table
from raysweep.results.tuned import Tuned, TunedMetric
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep import catalog
from raysweep.sweep.tuning import COSTS

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.run.preview import Preview
    from raysweep.sweep.spec import Sweep


def duration(seconds: float) -> str:
    """Return seconds in words: `45 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def print_preview(console: Console, sweep: Sweep, plan: Preview) -> None:
    """Print a plan: counts, sharing, reasons, estimate."""
    console.print(f"{sweep.name}: {plan.trials} trials")
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "if nothing were shared", "shared", "cached", "to run", "time"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    table.add_column("why")
    for kind in plan.kinds:
        took = duration(kind.seconds) + ("?" if kind.guessed else "") if kind.run else ""
        table.add_row(
            kind.kind, str(kind.naive), str(kind.distinct), str(kind.cached), str(kind.run),
            took, kind.reasons,
        )  # fmt: skip
    console.print(table)
    if plan.undecided:
        console.print(
            f"below the decisions of {plan.undecided} trials: 0 to {plan.below} further stages, "
            f"up to about {duration(plan.below_seconds)} "
            f"(trials whose decisions keep the same samples share them)"
        )
    for line in (*plan.forecasts, *history.damage_notes(list(plan.damaged))):
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


def print_tuned(console: Console, tuned: Tuned) -> None:
    """Print the held-out metrics of a tuning beside the method's own and the oracle's."""
    from raysweep.reports.tables import percent

    rows = (*tuned.rows, *tuned.means)
    metrics = dict.fromkeys(name for row in rows for name in row.metrics)
    shown = Table(box=None, pad_edge=False)
    for head in ("defense", "labels", "held out", "parameters"):
        shown.add_column(head, no_wrap=head != "parameters")
    for metric in metrics:
        unit = "s" if metric in COSTS else "%"
        for who in (f"{metric} {unit} tuned", "own", "oracle"):
            shown.add_column(who, justify="right")
    nothing = TunedMetric(tuned=math.nan, default=math.nan, oracle=math.nan)
    for row in rows:
        measured = [(name, row.metrics.get(name, nothing)) for name in metrics]
        values = [
            f"{value:.2f}" if name in COSTS else percent(value)
            for name, one in measured for value in (one.tuned, one.default, one.oracle)
        ]  # fmt: skip
        parameters = ", ".join(f"{name}={_short(v)}" for name, v in row.parameters.items())
        note = f" ({row.note})" if row.note else ""
        shown.add_row(row.defense, row.labels, row.held_out, parameters + note, *values)
    console.print(shown)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_status(console: Console, store: Store, name: str) -> None:
    """Print the standing of a sweep and its tuning, from ledger and store, and its versions.

    Raises:
        StoreError: if there is no sweep of that name; the message lists all sweeps.
    """
    place = history.folder_of(store, name)
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
    """Print the standing of the last run of a sweep; damaged stages count as missing."""
    now = ledger.standing(folder)
    if now.start is None:
        console.print(f"{title}: begun, nothing handed out yet")
        return
    stages = read_table(folder.store, folder.name, "stages")
    known = now.done if stages is None else now.done | set(stages["key"].map(str))
    _, damaged = folder.store.manifests(sorted(known))
    settled = now.cached + len(now.done) - len(damaged)
    state = "ended" if now.ended else f"running or killed since {time.ctime(now.start.t)}"
    console.print(
        f"{title}: {now.trials} trials; {settled} of {now.stages} stages stored, {len(now.out)} "
        f"handed out, {len(now.failed)} failed, {len(now.upstream)} wait for a failed one; {state}"
    )
    for line in history.damage_notes(damaged):
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
        entries = catalog.entries(role)
        kinds = any(one.kind for one in entries)
        for column in (*(["kind"] if kinds else []), "idea", "paper", "venue", "year"):
            table.add_column(column)
        table.add_column("where we differ", ratio=2)
        for one in entries:
            kind = [one.kind] if kinds else []
            table.add_row(
                one.name, *kind, one.idea, one.paper, one.venue, one.year, one.differs,
                end_section=True,
            )  # fmt: skip
        console.print(table)
