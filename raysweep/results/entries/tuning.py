"""Runs of a tuning: one of all its tables, and one per search with the history of its candidates.

A candidate is no run: stored scores answer for thousands of them in a second, more than a project
of W&B takes. Parallel coordinates over what the searches found are drawn over the runs of searches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pandas as pd

from raysweep.results.account import CandidateRow, SearchAccount
from raysweep.results.columns import Cell
from raysweep.results.entries.entry import Entry, marked, numbers, run_id, textual
from raysweep.results.tuned import Tuned, TunedRow
from raysweep.sweep.spec import Track

JOB, SEARCH = "tune", "search"
CANDIDATE = "candidate_"  # a metric in the history of a search
PARAMETER = "parameter_"  # no dot: W&B's charts would take the name for a nested one


def tuning(tuned: Tuned, sweep: str, track: Track) -> Entry:
    """Return the run of a sweep's tuning, with tables of what was tuned and of every candidate."""
    rows = pd.DataFrame([row.pack() for row in tuned.rows])
    candidates = [
        {
            **({"attack": search.attack} if search.attack else {}),
            "defense": search.defense, "held_out": search.held_out,
            "number": one.number, "state": one.state,
            **{f"parameter.{name}": value for name, value in one.parameters.items()},
            **one.metrics,
        }
        for search in tuned.searches for one in search.history or ()
    ]  # fmt: skip
    summary, attacked = {}, tuned.settings.who == "attack"
    for column in dict.fromkeys(column for row in tuned.rows for column in row.columns()):
        for known, part in rows.groupby("labels" if attacked else "held_out"):
            value = float(pd.to_numeric(part[column]).mean())
            if math.isfinite(value):
                summary[f"{column}/{known}"] = value
    tables = {"tuned": textual(rows)}
    if candidates:
        tables["candidates"] = textual(pd.DataFrame(candidates))
    entry = Entry(
        run=run_id(sweep, JOB), name=f"{JOB} · {sweep}", job=JOB, tags=(JOB,),
        config={"sweep_name": sweep, **_settings(tuned)}, summary=summary, tables=tables,
    )  # fmt: skip
    return marked(entry, track)


def searches(tuned: Tuned, sweep: str, track: Track) -> Iterator[Entry]:
    """Yield one run per search: what it found, where that was held out, and its candidates."""
    accounts = {one.search: one for one in tuned.searches}
    for row in tuned.rows:
        # Of a Pareto front, the point that is best by the first objective; attacks as written are
        # no searches.
        if row.point or row.labels == "default":
            continue
        account, attack = accounts.get(row.search), dict[str, Cell]()
        place, known = f"{row.defense}/{row.held_out}", f"held out {row.held_out}"
        if row.attacker is not None:
            attack, known = {"attack": row.attacker.attack}, row.labels
            place = f"{row.attacker.attack}/{row.defense}/{known}"
        entry = Entry(
            run=run_id(sweep, f"{JOB}/{place}"),
            name=" · ".join((SEARCH, *map(str, attack.values()), row.defense, known)),
            job=SEARCH, tags=(JOB, row.defense),
            config={
                "sweep_name": sweep, **attack, "defense": row.defense, "held_out": row.held_out,
                "labels": row.labels, **parameters(row), **_settings(tuned),
            },
            summary=numbers(
                {**row.columns(), "tried": row.tried, "seconds": row.seconds,
                 "gpu_seconds": row.gpu_seconds, **_importance(account)}
            ),
            notes=row.note, history=_history(account),
        )  # fmt: skip
        yield marked(entry, track)


def parameters(row: TunedRow | CandidateRow) -> dict[str, Cell]:
    """Return parameters under flat names; lists and mappings as JSON."""
    return {
        f"{PARAMETER}{name}": value if isinstance(value, str | int | float) else json.dumps(value)
        for name, value in row.parameters.items()
    }


def _settings(tuned: Tuned) -> dict[str, Cell]:
    settings = tuned.settings.model_dump(mode="json")
    return {
        f"tune.{name}": value if isinstance(value, str | int | float) else json.dumps(value)
        for name, value in settings.items()
        if value is not None
    }


def _importance(account: SearchAccount | None) -> dict[str, float]:
    found = (account.importance if account else None) or {}
    return {f"importance/{name}": value for name, value in found.items()}


def _history(account: SearchAccount | None) -> list[dict[str, float]]:
    """Return one step per candidate that ended: its numeric parameters and metrics."""
    candidates = (account.history if account else None) or ()
    return [
        numbers({
            "candidate": one.number, **parameters(one),
            **{f"{CANDIDATE}{name}": value for name, value in one.metrics.items()},
        })
        for one in candidates if one.metrics
    ]  # fmt: skip
