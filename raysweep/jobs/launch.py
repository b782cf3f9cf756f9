"""A launch from beginning to end: run the plan, write records, publish, report."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raysweep.errors import HostError, StoreError
from raysweep.jobs.live import LivePage
from raysweep.jobs.publish import write_page
from raysweep.jobs.publishing import Publishing
from raysweep.results import history
from raysweep.results.rows import Collector
from raysweep.results.trials import Trials
from raysweep.results.wandb import Published
from raysweep.run.inline import run_inline
from raysweep.run.interruption import Signals, catching_signals
from raysweep.run.preview import class_names
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.sweep.spec import Sweep


@dataclass(frozen=True, kw_only=True, repr=False)
class Conclusion:
    """The end of a launch.

    Attributes:
        rows: the records as `raysweep.load` returns them, one row per trial: `status` is `ok` or
            says why there are no metrics.
        ran: how many stages this launch ran.
        cached: how many were stored before it.
        interrupted: the signal that stopped it before the end, or 0.
        report: path or URI of the HTML report.
        warnings: what went wrong beside the sweep itself (tracking).
        notes: hosts that refuse to work, earlier records that were kept, damage that was met, where
            the runs of W&B are.
        unfinished: how many trials this launch did not bring to their end.
    """

    rows: Trials
    ran: int
    cached: int
    interrupted: int
    report: str
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unfinished: int = 0

    def __repr__(self) -> str:
        """Return a few lines for a notebook: the rows are in `rows`, a table of their own."""
        done = len(self.rows) - self.unfinished
        stopped = f"stopped by {signal.Signals(self.interrupted).name}" if self.interrupted else ""
        return "\n".join(
            [
                f"{done} of {len(self.rows)} trials finished (.rows); "
                f"{self.ran} stages ran, {self.cached} were stored already",
                *([stopped] if stopped else []),
                *self.notes,
                *(f"warning: {warning}" for warning in self.warnings),
                f"report: {self.report}",
            ]
        )


def launch(
    sweep: Sweep,
    text: str,
    storage: str,
    *,
    address: str | None = None,
    inline: bool = False,
    max_concurrent: int | None = None,
    watch: Callable[[Run], None] = lambda run: None,
    force: Sequence[str] = (),
    publishing: Callable[[Published], None] = lambda published: None,
) -> Conclusion:
    """Run the stages of a sweep that are missing or failed, and conclude it in any case.

    Ctrl-C, SIGTERM and SIGHUP stop the run, not the conclusion: records and report are written
    from what there is, records first. One more signal ends the process at once.
    What W&B is to hold is published by a process beside this one; while the end waits for it,
    `publishing` is told the numbers.

    Stages of the kinds and methods in `force` are done again although they are stored. Their old
    results stay until the new ones replace them; stages below them run again where what they read
    has changed. This holds in every sweep of the storage, whoever launches it next.

    Raises:
        PlanError: if the sweep cannot be carried out as asked.
        HostError: if every host that could do the work refuses to; records are written before.
        Interrupted: if a signal comes while the sweep is planned; nothing was run.
    """
    tracking = Publishing(watch, publishing)
    page = LivePage(tracking)
    with (
        catching_signals() as signals,
        contextlib.closing(page),
        contextlib.closing(tracking),
        Run(sweep, Store(storage), text, page, force=force) as run,
    ):
        try:
            carry_out(run, signals, address=address, inline=inline, max_concurrent=max_concurrent)
        except (HostError, StoreError):
            page.close()
            with contextlib.suppress(StoreError):
                _conclude(run, signals, tracking)
            raise
        page.close()
        return _conclude(run, signals, tracking)


def carry_out(
    run: Run, signals: Signals, *, address: str | None, inline: bool, max_concurrent: int | None
) -> None:
    """Run everything that is missing, until it is done or a signal comes; signals are held then."""
    try:
        if not run.over:
            if inline:
                run_inline(run)
            else:
                from raysweep.run.cluster.ray import run_on_ray

                run_on_ray(run, address=address, max_concurrent=max_concurrent)
        signals.hold()
    except KeyboardInterrupt:
        signals.hold()
        run.schedule.stopping = True
        run.watch(run)
    finally:
        signals.hold()
        run.close()


def stopped_by(run: Run, signals: Signals) -> int:
    """Return the signal that stopped a run before its end, or 0."""
    return signals.number or (signal.SIGINT if run.schedule.stopping else 0)


def _conclude(run: Run, signals: Signals, tracking: Publishing) -> Conclusion:
    failed = {key: result.error for key, result in run.schedule.failed.items()}
    stored = run.schedule.stored
    anew = failed.keys() & (stored.forced | stored.replaced)
    collector = Collector(run.planner, run.store, failed, run.schedule.upstream_failed, anew)
    name = run.sweep.name
    rows, stages = collector.rows(name), collector.stages(run.schedule.ran)
    unfinished = int((rows["status"] != "ok").sum())
    rows, notes = history.store_records(run.store, name, rows, stages, run.before)
    tracking.close_input()
    page = write_page(run.folder)
    tracked = tracking.finish(run, signals)
    return Conclusion(
        rows=Trials.of(rows, run.store, name),
        ran=len(run.schedule.ran),
        cached=len(run.schedule.done) - len(run.schedule.ran),
        interrupted=stopped_by(run, signals),
        report=page.where,
        warnings=tracked.warnings,
        notes=[
            *run.notes,
            *class_names(run.planner),
            *notes,
            *history.damage_notes(collector.damaged),
            *tracked.notes,
        ],
        unfinished=unfinished,
    )
