"""Trials and stages that did not finish; pure."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from raysweep.reports.cells import Cells
from raysweep.reports.sheets import Column, Sheet
from raysweep.reports.tables import words
from raysweep.results.grouping import trial_names

SHOWN_AT_MOST = 3


def sentence(cells: Cells) -> str:
    """Return the number of trials that did not finish, in words."""
    rows = cells.rows
    bad = int((rows["status"] != "ok").sum()) if len(rows) else 0
    if bad:
        return f"{bad} of {len(rows)} trials did not finish."
    return "None: every trial finished." if len(rows) else "There are no trials."


def sheets(cells: Cells, stages: pd.DataFrame) -> list[Sheet]:
    """Return the tables of trials that did not finish, by cause, and of stages that failed."""
    rows = cells.rows
    bad = rows[rows["status"] != "ok"] if len(rows) else rows
    by_cause = [_by_cause(bad)] if len(bad) else []
    failed = stages[stages["status"] == "failed"] if "status" in stages else stages
    return by_cause + ([_failed_stages(failed)] if len(failed) else [])


def _by_cause(bad: pd.DataFrame) -> Sheet:
    who = trial_names(bad)
    lines = []
    for error, part in bad.groupby(bad["error"].map(words), sort=False):
        states = ", ".join(f"{n} {s}" for s, n in part["status"].value_counts().items())
        stages = [s for s in part["error_stage"].map(words).unique() if s]
        logs = [log for log in part["log"].map(words).unique() if log]
        lines.append((error, states, _some(stages), _some(logs), _some(who[part.index])))
    titles = ("error", "trials", "stage", "log", "which")
    columns = [
        Column(title=title, values=list(values))
        for title, values in zip(titles, zip(*lines, strict=True), strict=True)
    ]
    return Sheet(title="Trials that did not finish, by cause", columns=columns)


def _some(values: Iterable[object]) -> str:
    every = list(values)
    more = [f"and {len(every) - SHOWN_AT_MOST} more"] if len(every) > SHOWN_AT_MOST else []
    return "; ".join([*(words(value) for value in every[:SHOWN_AT_MOST]), *more]) or "–"


def _failed_stages(bad: pd.DataFrame) -> Sheet:
    titles = {
        "stage": "key", "kind": "kind", "host": "host", "error": "error", "log": "log",
        "trials that wait for it": "trials",
    }  # fmt: skip
    columns = [
        Column(title=title, values=list(map(words, bad[name])) if name in bad else [""] * len(bad))
        for title, name in titles.items()
    ]
    return Sheet(title="Failed stages", columns=columns)
