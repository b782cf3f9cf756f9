"""The origin of the numbers: versions, commits, hosts, the storage; pure."""

from __future__ import annotations

import time

import pandas as pd

from raysweep.reports.material import Material
from raysweep.reports.tables import words
from raysweep.results.records import Records


def provenance(made: Material | Records) -> dict[str, str]:
    """Return the facts that the sweep was made with, by name."""
    sweep, rows, stages = made.sweep, made.rows, made.stages
    hosts = [*_distinct(rows, "host"), *_distinct(stages, "host")]
    facts = {
        "launched": _date(sweep.created_at),
        "commit of the launch": words(sweep.git_commit) or "not in a checkout",
        "commits of the results": ", ".join(_distinct(rows, "git_commit")),
        "hosts": ", ".join(dict.fromkeys(hosts)),
        "storage": words(sweep.storage),
        **(sweep.versions or {}),
    }
    return {name: words(value) or "–" for name, value in facts.items()}


def _date(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _distinct(frame: pd.DataFrame, column: str) -> list[str]:
    return [w for w in frame[column].map(words).unique() if w] if column in frame else []
