"""The origin of the numbers: versions, commits, the sweep file, artifact keys; pure."""

from __future__ import annotations

import time

import pandas as pd

from raysweep.reports.html_elements import details, table, text
from raysweep.reports.material import Material
from raysweep.reports.tables import attack_column, words
from raysweep.results.columns import KEYS

KEYS_AT_MOST = 1000


def provenance(material: Material) -> str:
    """Return the section on versions, the sweep file, and the key of every stage."""
    sweep, rows, stages = material.sweep, material.rows, material.stages
    hosts = [*_distinct(rows, "host"), *_distinct(stages, "host")]
    facts = {
        "launched": _date(sweep.created_at),
        "commit of the launch": words(sweep.git_commit) or "not in a checkout",
        "commits of the results": ", ".join(_distinct(rows, "git_commit")),
        "hosts": ", ".join(dict.fromkeys(hosts)),
        "storage": words(sweep.storage),
        **(sweep.versions or {}),
    }
    lines = [[text(name), text(value)] for name, value in facts.items()]
    source = f'<pre tabindex="0">{text(sweep.text)}</pre>'
    return (
        table("What this was made with", ["what", "value"], lines, words_first=2)
        + details("The sweep file", source) + _keys(rows)
    )  # fmt: skip


def _date(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _distinct(frame: pd.DataFrame, column: str) -> list[str]:
    return [w for w in frame[column].map(words).unique() if w] if column in frame else []


def _keys(rows: pd.DataFrame) -> str:
    roles = KEYS.within(rows.columns)
    if rows.empty or not roles:
        return ""
    some = rows.head(KEYS_AT_MOST)
    who = attack_column(some) + " · " + some["defense"] + " · seed " + some["seed"].map(words)
    lines = [
        [text(name), text(row["trial"]), *(text(row[column]) for column in roles.values())]
        for name, row in zip(who, some.to_dict("records"), strict=True)
    ]
    headers = ["trial", "id", *roles]
    caption = "The artifact behind every number"
    if len(rows) > KEYS_AT_MOST:
        caption += f", first {KEYS_AT_MOST} of {len(rows)} trials"
    body = table(caption, headers, lines, words_first=len(headers))
    return details(f"Artifact keys of {len(lines)} trials", body)
