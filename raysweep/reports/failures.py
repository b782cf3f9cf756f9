"""Trials and stages that did not finish; pure."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from raysweep.reports.html_elements import details, table, text
from raysweep.reports.material import Material
from raysweep.reports.tables import trial_names, words

SHOWN_AT_MOST = 3


def failures(material: Material) -> str:
    """Return trials and stages that did not finish, grouped by cause."""
    rows = material.rows
    bad = rows[rows["status"] != "ok"] if len(rows) else rows
    if bad.empty:
        return "<p>None: every trial finished.</p>" if len(rows) else "<p>There are no trials.</p>"
    who = trial_names(bad)
    cause = bad["error"].map(words)
    lines = []
    for error, part in bad.groupby(cause, sort=False):
        states = ", ".join(f"{n} {s}" for s, n in part["status"].value_counts().items())
        stages = [s for s in part["error_stage"].map(words).unique() if s]
        logs = [log for log in part["log"].map(words).unique() if log]
        lines.append(
            [text(error), text(states), _some(stages), _some(logs), _some(who[part.index])]
        )  # fmt: skip
    return table(
        "Trials that did not finish, by cause",
        ["error", "trials", "stage", "log", "which"], lines, words_first=5,
    ) + _failed_stages(material.stages)  # fmt: skip


def _some(values: Iterable[object]) -> str:
    every = list(values)
    more = [f"and {len(every) - SHOWN_AT_MOST} more"] if len(every) > SHOWN_AT_MOST else []
    return "<br>".join([*(text(v) for v in every[:SHOWN_AT_MOST]), *more]) or "–"


def _failed_stages(stages: pd.DataFrame) -> str:
    bad = stages[stages["status"] == "failed"] if "status" in stages else stages
    if bad.empty:
        return ""
    lines = [
        [text(s["key"]), text(s["kind"]), text(s.get("host")), text(s.get("error")),
         text(s.get("log")), str(s["trials"])]
        for s in bad.to_dict("records")
    ]  # fmt: skip
    headers = ["stage", "kind", "host", "error", "log", "trials that wait for it"]
    return details(
        f"Failed stages: {len(lines)}", table("Failed stages", headers, lines, words_first=5)
    )
