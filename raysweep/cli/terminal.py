"""Tables and lines on the terminal: plans, results, status. Reads state, changes none."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, JustifyMethod
from rich.table import Table

from raysweep.cli.attacked import print_attacked
from raysweep.identity import kind_of
from raysweep.results import history
from raysweep.results.account import NOTHING
from raysweep.results.drivers import Driver
from raysweep.results.status import RunStatus, SweepStatus, SweepSummary
from raysweep.results.tuned import Tuned, TunedMetric
from raysweep.sweep.tuning import COSTS

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.reports.logs import FailureLog
    from raysweep.run.preview import Preview
    from raysweep.store.heartbeat import RunningStage
    from raysweep.sweep.spec import Sweep

SHOWN_STAGES = 20  # that run; more are counted
UNLIMITED = 10_000  # columns, for a table that is measured
DATE = "%Y-%m-%d %H:%M"


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
    """Print the table of a sweep: attack × defense, mean over seeds with its spread.

    On a terminal that is too narrow for both, means stand alone, and a line says so.
    """
    from raysweep.reports.tables import text_table

    narrow = False
    for title, headers, lines in text_table(rows):
        table = _results(title, headers, lines)
        unlimited = console.options.update_width(UNLIMITED)
        if console.measure(table, options=unlimited).maximum > console.width:
            narrow = True
            means = [[*cells[:2], *(c.partition(" ")[0] for c in cells[2:-1]), cells[-1]]
                     for cells in lines]  # fmt: skip
            table = _results(title, headers, means)
        console.print(table)
    if narrow:
        console.print("means alone: the terminal is too narrow for their ranges; see the report")


def _results(title: str, headers: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, header in enumerate(headers):
        justify: JustifyMethod = "right" if 1 < number < len(headers) - 1 else "left"
        table.add_column(header, justify=justify, overflow="fold")  # Nothing is cut.
    for line in lines:
        table.add_row(*line)
    return table


def print_tuned(console: Console, tuned: Tuned, sweep: Sweep) -> None:
    """Print the held-out metrics of a tuning beside the method's own and the oracle's.

    Below stand a legend, how often the constraints hold, and the parameters to use.
    """
    if tuned.settings.who == "attack":
        print_attacked(console, tuned, sweep)
        return
    from raysweep.reports.tables import percent

    rows = (*tuned.rows, *tuned.means)
    metrics = dict.fromkeys(name for row in rows for name in row.metrics)
    shown = Table(box=None, pad_edge=False)
    for head in ("defense", "labels", "held out", "parameters"):
        shown.add_column(head, no_wrap=head != "parameters", overflow="fold")
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
    for line in (*legend(tuned), *constraint_lines(tuned), *to_use(tuned, sweep)):
        console.print(line)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def legend(tuned: Tuned) -> list[str]:
    """Return the two lines that say what the columns and the rows of a tuning's table are."""
    from raysweep.reports.tuning import SEEN, split

    settings = tuned.settings
    measured = f"; all are measured on {split(tuned)} alone" if split(tuned) else ""
    return [
        "tuned: with what the search chose; own: with the defense's own values; oracle: with the "
        "best, for what was held out, of all that was tried, which no defender can know",
        f"held out: the {settings.hold_out} that a row's numbers are measured on, {NOTHING}: tuned "
        f"and measured on all; {SEEN[settings.labels]}{measured}",
    ]


def constraint_lines(tuned: Tuned) -> list[str]:
    """Return a line per defense: for how many of the parts held out the constraints hold."""
    bounds, lines = tuned.settings.bounds, []
    for defense in dict.fromkeys(row.defense for row in tuned.rows) if bounds else ():
        held_out = [
            row.metrics.items() for row in tuned.rows
            if row.defense == defense and row.held_out != NOTHING and row.point == 0 and row.metrics
        ]  # fmt: skip
        as_tuned = [{name: one.tuned for name, one in metrics} for metrics in held_out]
        as_own = [{name: one.default for name, one in metrics} for metrics in held_out]
        kept, own = (
            sum(all(bound.excess(metrics) <= 0 for bound in bounds) for metrics in every)
            for every in (as_tuned, as_own)
        )
        if held_out:
            lines.append(
                f"{defense}: {' and '.join(tuned.settings.constraints)} holds for {kept} of "
                f"{len(held_out)} held out as tuned, for {own} with its own values"
            )
    return lines


def to_use(tuned: Tuned, sweep: Sweep) -> list[str]:
    """Return a line per defense: what was tuned on everything, as YAML that can be pasted."""
    from raysweep.sweep.guide import entry
    from raysweep.tuning.summary import tuned_sweep

    found = {row.defense: row for row in tuned.rows if row.held_out == NOTHING and row.point == 0}
    better = tuned_sweep(sweep, tuned.rows).defenses
    lines = []
    for before, after in zip(sweep.defenses, better, strict=True):
        row = found.get(before.label)
        if row is None:
            continue
        if row.kept_own:
            lines.append(f"{before.label}: keep its own values; {row.note}")
            continue
        lines.append(f"use these: {entry(after, row.parameters)}")
    return lines


def print_status(console: Console, status: SweepStatus) -> None:
    """Print the status of a sweep and of its tuning, and the versions of its records."""
    for line in status.notes:
        console.print(line)
    if status.launch is not None:
        _print_run(console, status.launch, status.name, "launch")
    if status.tuning is not None:
        _print_run(console, status.tuning, f"tuning of {status.name}", "tune")
    if len(status.versions) > 1:
        console.print(f"versions: {'; '.join(map(_version, status.versions))}")


def _version(one: history.Version) -> str:
    launched = f"launched {time.ctime(one.launched)}" if one.launched else "of unknown date"
    rows = "not concluded" if one.rows is None else f"{one.ok} of {one.rows} trials ok"
    return f"{one.number} ({launched}, {rows})"


def _print_run(console: Console, run: RunStatus, title: str, command: str) -> None:
    """Print the status of the last run of a sweep; damaged stages count as missing."""
    if run.started is None:
        console.print(f"{title}: begun, nothing handed out yet")
        return
    since = {"dead": run.last, "ended": 0.0}.get(run.state, run.started)
    console.print(
        f"{title}: {run.trials} trials; {run.stored} of {run.stages} stages stored, "
        f"{len(run.failures)} failed, {run.waiting} wait for a failed one; "
        f"{run.state}{f' since {time.ctime(since)}' if since else ''}"
    )
    for driver in run.drivers:
        print_driver(console, driver)
    for line in history.damage_notes(run.damaged):
        console.print(line)
    for failure in run.failures:
        console.print(f"failed: {failure.stage}: {failure.error}", style="red")
        console.print(f"  log: {failure.log}")
    if not (run.finished or any(driver.alive for driver in run.drivers)):
        console.print(f"{command} the same sweep file again to run what is missing or failed")


def print_driver(console: Console, driver: Driver) -> None:
    """Print the work of a driver: stages by kind, those that run now, the time that is left."""
    beat = driver.beat
    console.print(
        f"driver {beat.run}: {driver.state} on {beat.host}, process {beat.pid}, "
        f"since {time.ctime(beat.started)}"
    )
    if not driver.alive:
        console.print("  it gives no sign of life; what it had stored is kept")
        return
    running = Counter(kind_of(one.key) for one in beat.running)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("  stage", "stored", "of", "running", "queued", "failed", "mean time"):
        table.add_column(head, justify="left" if head == "  stage" else "right")
    for kind, n in beat.kinds.items():
        counts = (n.stored, n.wanted, running[kind], max(n.out - running[kind], 0), n.failed)
        mean = duration(n.seconds / n.ran) if n.ran else "–"
        table.add_row(f"  {kind}", *map(str, counts), mean)
    console.print(table)
    for one in sorted(beat.running, key=lambda one: -one.seconds)[:SHOWN_STAGES]:
        console.print(f"  {running_stage(one)}")
    if len(beat.running) > SHOWN_STAGES:
        console.print(f"  and {len(beat.running) - SHOWN_STAGES} more stages run")
    if beat.left_seconds is not None:
        console.print(f"  about {duration(beat.left_seconds)} left")


def running_stage(one: RunningStage) -> str:
    """Return a line on a stage that runs: what it does, how far it is, where and for how long."""
    far = f"{one.fraction:.0%} " if one.fraction else ""
    doing = f"{far}{one.doing}".strip()
    return (
        f"{one.key} on {one.host} ({one.device}), {duration(one.seconds)}"
        f"{f': {doing}' if doing else ''}"
    )


def print_sweeps(console: Console, sweeps: Sequence[SweepSummary], where: str) -> None:
    """Print all sweeps of a store: state, trials, when they were launched, tuning."""
    if not sweeps:
        console.print(f"no sweep in {where}; another place is named with --storage")
        return
    table = Table(box=None, pad_edge=False)
    for head in ("name", "state", "trials", "ok", "failed", "launched", "versions", "tuning"):
        numeric = head in ("trials", "ok", "failed", "versions")
        table.add_column(head, justify="right" if numeric else "left", overflow="fold")
    for one in sweeps:
        counts = ("–" if n is None else str(n) for n in (one.trials, one.ok, one.failed))
        when = "–" if one.launched is None else time.strftime(DATE, time.localtime(one.launched))
        table.add_row(
            one.name, one.state, *counts, when, str(one.versions), one.tuning or "–"
        )  # fmt: skip
    console.print(table)


def print_logs(console: Console, logs: Sequence[FailureLog], of: str) -> None:
    """Print the logs of failed stages, each below the stage, its error and its trials."""
    if not logs:
        console.print(f"no stage of {of} failed")
    for log in logs:
        console.print(f"failed: {log.stage}: {log.error}", style="red")
        if log.trials:
            more = f" and {len(log.trials) - 3} more" if len(log.trials) > 3 else ""
            console.print(f"trials: {'; '.join(log.trials[:3])}{more}")
        console.print(f"log: {log.where}{'' if log.text is not None else ' (none is stored)'}")
        console.print(f"\n{log.text or ''}")
