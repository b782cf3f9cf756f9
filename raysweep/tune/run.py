"""A tuning run from beginning to end: searches, the sweep that they feed, the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from raysweep import history, records, track
from raysweep.driver import Run
from raysweep.goals import Tune
from raysweep.launch import carry_out, second_interrupt_waits
from raysweep.report.html import render
from raysweep.spec import Sweep
from raysweep.store import Store
from raysweep.tune import conclude
from raysweep.tune.folds import Studies, searches_of
from raysweep.tune.search import Bench, Search
from raysweep.tune.supply import EvidencePlanner, Supply


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a tuning run leaves.

    Attributes:
        table: one row per defense, held-out part and point of its front, and one of means;
            empty if interrupted.
        ran: how many stages it ran.
        cached: how many were stored before it.
        interrupted: whether it was stopped before the end.
        where: path or URI of the table.
        report: path or URI of the HTML report.
        warnings: what went wrong beside the tuning itself (tracking).
    """

    table: pd.DataFrame
    ran: int
    cached: int
    interrupted: bool
    where: str
    report: str
    warnings: list[str] = field(default_factory=list)
    rows: list[conclude.Row] = field(default_factory=list)


def tune(
    sweep: Sweep,
    text: str,
    storage: str,
    *,
    address: str | None = None,
    inline: bool = False,
    most: int | None = None,
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
        most: at most so many stages at once.
        studies: URL of a database for Optuna's studies; none: a journal beside the records.
        watch: called whenever the state has changed.

    Raises:
        SpecError: if there is nothing to tune, or the settings are wrong.
    """
    settings = sweep.tune or Tune()
    store = Store(storage)
    planner = EvidencePlanner(sweep, whole=settings.whole)
    bench = Bench(planner, store, settings)
    searches = searches_of(sweep, planner, Studies(planner, store, studies))
    supply = Supply(planner, searches, bench)
    run = Run(sweep, store, text, watch, planner, supply, place=f"{sweep.name}/tune")
    interrupted = carry_out(run, address=address, inline=inline, most=most)
    with second_interrupt_waits():
        return _concluded(run, searches, bench, interrupted)


def _concluded(run: Run, searches: Sequence[Search], bench: Bench, interrupted: bool) -> Tuning:
    path = f"sweeps/{run.sweep.name}/tuned.json"
    settings = run.sweep.tune or Tune()
    found: list[conclude.Row] = []
    means: list[conclude.Row] = []
    report, warnings = "", []
    if not interrupted:
        found = conclude.rows(searches, bench)
        means = conclude.means(found, settings)
        told = {
            "settings": settings.model_dump(mode="json"),
            "rows": found,
            "means": means,
            "searches": conclude.accounts(searches, bench),
        }
        run.store.write(path, json.dumps(told, indent=1).encode())
        warnings = _publish(run, told)
        html = render(records.gather(run.sweep.name, run.store.uri)).encode()
        run.store.write(f"sweeps/{run.sweep.name}/report.html", html)
        report = run.store.where(f"sweeps/{run.sweep.name}/report.html")
    for search in searches:
        if search.study is not None:
            search.study.close()
    return Tuning(
        table=pd.DataFrame(found + means), rows=found, ran=len(run.schedule.ran),
        cached=len(run.schedule.done) - len(run.schedule.ran),
        interrupted=interrupted, where=run.store.where(path), report=report,
        warnings=[*run.notes, *warnings],
    )  # fmt: skip


def _publish(run: Run, told: dict[str, Any]) -> list[str]:
    """Write the table and the searches to W&B; whatever happens there, the tuning stands."""
    if run.sweep.track.wandb == "disabled":
        return []
    local = run.store.local(f"sweeps/{run.sweep.name}/wandb")
    folder = local or Path("wandb-offline") / run.sweep.name
    described = history.described(run.store, run.place)
    published = track.publish_tuning(told, described, run.sweep.track, folder)
    return [published.warning] if published.warning else []
