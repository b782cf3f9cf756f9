"""A tuning run from beginning to end: searches, the sweep that they feed, the table."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raysweep.jobs.launch import carry_out, stopped_by
from raysweep.jobs.publish import write_page
from raysweep.jobs.publishing import Publishing, Tracked
from raysweep.results.tuned import Tuned
from raysweep.run.interruption import Signals, catching_signals
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Sweep
from raysweep.sweep.tuning import Tune
from raysweep.tuning.feed import Feed, TuningPlanner
from raysweep.tuning.folds import Studies, searches_of
from raysweep.tuning.measurements import Measurements
from raysweep.tuning.search import Search
from raysweep.tuning.summary import failed_searches, summary


@dataclass(frozen=True, kw_only=True, repr=False)
class Tuning:
    """The end of a tuning run.

    Attributes:
        tuned: the content of `tuned.json`; none if interrupted.
        ran: how many stages it ran.
        cached: how many were stored before it.
        interrupted: the signal that stopped it before the end, or 0.
        where: path or URI of the table.
        report: path or URI of the HTML report.
        failed: defense and held-out part of each search whose candidates all failed.
        warnings: what went wrong beside the tuning itself (tracking).
        notes: hosts that refuse to work, damage that was met, where the runs of W&B are.
    """

    tuned: Tuned | None
    ran: int
    cached: int
    interrupted: int
    where: str
    report: str
    failed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        """Return a few lines for a notebook: found parameters, a line each."""
        stopped = f"stopped by {signal.Signals(self.interrupted).name}" if self.interrupted else ""
        rows = self.tuned.rows if self.tuned else ()
        return "\n".join(
            [
                f"{self.ran} stages ran, {self.cached} were stored already",
                *([stopped] if stopped else []),
                *(f"{row.title}: {dict(row.parameters)}" for row in rows),
                *(f"every candidate failed: {search}" for search in self.failed),
                *self.notes,
                *(f"warning: {warning}" for warning in self.warnings),
                f"table: {self.where}",
                f"report: {self.report}",
            ]
        )


def tune(
    sweep: Sweep,
    text: str,
    storage: str,
    *,
    address: str | None = None,
    inline: bool = False,
    max_concurrent: int | None = None,
    studies: str | None = None,
    watch: Callable[[Run], None] = lambda run: None,
) -> Tuning:
    """Search better parameters for every defense of a sweep, and report them where held out.

    Args:
        sweep: with its `tune` section; by default every decision is tuned.
        text: the sweep file as written.
        storage: where artifacts and records are.
        address: of a running Ray cluster; none: start Ray here.
        inline: run in this process, without Ray.
        max_concurrent: the most stages that run at once.
        studies: URL of a database for Optuna's studies; none: a journal beside the records.
        watch: called whenever the state has changed.

    Raises:
        SpecError: if there is nothing to tune, or the settings are wrong.
        HostError: if every host that could do the work refuses to.
        Interrupted: if a signal comes while the sweep is planned; nothing was run.
    """
    settings = sweep.tune or Tune()
    store = Store(storage)
    with catching_signals() as signals:
        planner = TuningPlanner(sweep, whole=settings.needs_models)
        measurements = Measurements(planner, store, settings)
        searches = searches_of(sweep, planner, Studies(planner, store, studies))
        feed = Feed(planner, searches, measurements)
        try:
            folder = SweepFolder(store, sweep.name).tuning
            with Run(sweep, store, text, watch, planner, feed, folder) as run:
                carry_out(
                    run, signals, address=address, inline=inline, max_concurrent=max_concurrent
                )
                over = stopped_by(run, signals)
                tuned = None if over else _tuned(searches, measurements, signals)
                failed = failed_searches(searches, measurements) if tuned else []
                return _concluded(run, tuned, failed, signals)
        finally:
            for search in searches:
                if search.study is not None:
                    search.study.close()


def _tuned(
    searches: Sequence[Search], measurements: Measurements, signals: Signals
) -> Tuned | None:
    """Return the summary of a tuning run; None if a signal comes before it is worked out."""
    try:
        with signals.raising():
            return summary(searches, measurements)
    except KeyboardInterrupt:
        return None


def _concluded(run: Run, tuned: Tuned | None, failed: list[str], signals: Signals) -> Tuning:
    folder = SweepFolder(run.store, run.sweep.name)
    page, tracked = "", Tracked()
    if tuned is not None:
        run.store.write(folder.tuned, tuned.pack(), durable=True)
        page = write_page(folder).where
        with contextlib.closing(Publishing()) as tracking:
            tracked = tracking.finish(run, signals)
    return Tuning(
        tuned=tuned, ran=len(run.schedule.ran),
        cached=len(run.schedule.done) - len(run.schedule.ran),
        interrupted=stopped_by(run, signals), where=run.store.where(folder.tuned),
        report=page, failed=failed, warnings=tracked.warnings, notes=[*run.notes, *tracked.notes],
    )  # fmt: skip
