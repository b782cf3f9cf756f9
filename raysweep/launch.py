"""A launch from beginning to end: run the plan, write records, publish, report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from raysweep import execute, history, records
from raysweep.collect import Collector
from raysweep.driver import Run
from raysweep.report.html import render
from raysweep.spec import Sweep
from raysweep.store import Store


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What a launch leaves.

    Attributes:
        rows: the records, one row per trial.
        ran: how many stages this launch ran.
        cached: how many were stored before it.
        interrupted: whether it was stopped before the end.
        report: path or URI of the HTML report.
        warnings: what went wrong beside the sweep itself (tracking).
        notes: earlier records that were kept, and damage that was met.
        unfinished: how many trials this launch did not bring to their end.
    """

    rows: pd.DataFrame
    ran: int
    cached: int
    interrupted: bool
    report: str
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unfinished: int = 0


def launch(
    sweep: Sweep,
    text: str,
    storage: str,
    *,
    address: str | None = None,
    inline: bool = False,
    most: int | None = None,
    watch: Callable[[Run], None] = lambda run: None,
) -> Conclusion:
    """Run what is missing or failed of a sweep, and conclude it whatever happens.

    Ctrl-C stops the run, not the conclusion: records and report are written from what there is.
    """
    run = Run(sweep, Store(storage), text, watch)
    interrupted = carry_out(run, address=address, inline=inline, most=most)
    with second_interrupt_waits():
        return _conclude(run, interrupted)


def carry_out(run: Run, *, address: str | None, inline: bool, most: int | None) -> bool:
    """Run everything that is missing; return whether it was stopped before the end."""
    try:
        if not run.over:
            if inline:
                execute.run_inline(run)
            else:
                execute.run_on_ray(run, address=address, most=most)
    except KeyboardInterrupt:
        run.schedule.stopping = True
    finally:
        run.close()
    return run.schedule.stopping


@contextlib.contextmanager
def second_interrupt_waits() -> Iterator[None]:
    """Let an impatient second Ctrl-C not tear the records that are being written."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _conclude(run: Run, interrupted: bool) -> Conclusion:
    failed = {key: result.error for key, result in run.schedule.failed.items()}
    collector = Collector(run.planner, run.store, failed, run.schedule.upstream_failed)
    name = run.sweep.name
    rows, stages = collector.rows(name), collector.stages(run.schedule.ran)
    unfinished = int((rows["status"] != "ok").sum())
    rows, notes = history.conclude(run.store, name, rows, stages, run.before)
    warnings = _publish(run, rows)
    path = f"sweeps/{name}/report.html"
    html = render(records.gather(name, run.store.uri))
    run.store.write(path, html.encode())
    return Conclusion(
        rows=rows,
        ran=len(run.schedule.ran),
        cached=run.cached,
        interrupted=interrupted,
        report=run.store.where(path),
        warnings=warnings,
        notes=[*run.notes, *notes, *history.said_of_damage(collector.damaged)],
        unfinished=unfinished,
    )


def _publish(run: Run, rows: pd.DataFrame) -> list[str]:
    """Write finished trials to W&B; whatever happens there, the sweep stands."""
    if run.sweep.track.wandb == "disabled":
        return []
    from raysweep import track

    described = records.describe(run.store, run.sweep.name)
    local = run.store.local(f"sweeps/{run.sweep.name}/wandb")
    folder = local or Path("wandb-offline") / run.sweep.name
    published = track.publish(rows[rows["status"] == "ok"], described, run.sweep.track, folder)
    return [published.warning] if published.warning else []
