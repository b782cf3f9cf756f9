"""What is said of a trial and of a tuning in W&B: names, tags, parameters, numbers, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raysweep.identity import digest
from raysweep.sweep.spec import Track

CONFIG = (
    "dataset", "model", "attack", "attack_name", "rate", "target", "defense", "defense_name",
    "kind", "badges", "seed", "trial", "git_commit",
)  # fmt: skip
TAGS = ("dataset", "model", "attack_name", "defense_name")
# Shares of a cost change whenever another trial joins; they say nothing about this one.
UNSTABLE = frozenset({"own_seconds", "shared_seconds", "gpu_seconds", "finished_at"})
TAG_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run to be: its id, a digest of what it says, and what it says."""

    run: str
    mark: str
    name: str
    job: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    summary: dict[str, float]
    tables: Mapping[str, pd.DataFrame]


def trial(record: Mapping[Any, Any], sweep: Mapping[str, Any], track: Track) -> Entry:
    """Return the run of one finished trial."""
    row = {str(name): value for name, value in record.items()}
    config, summary = config_of(row), summary_of(row)
    where = [track.project, track.entity, track.group]
    told = json.dumps([where, config, summary], sort_keys=True, default=str)
    run = digest(f"{sweep['name']}/{row['trial']}")[:16]
    tags = dict.fromkeys(str(row[t])[:TAG_CHARACTERS] for t in TAGS if row.get(t))
    return Entry(
        run=run, mark=digest(told), config=config, summary=summary, tags=tuple(tags),
        name=f"{row['attack']} · {row['defense']} · seed {row['seed']}"[:128],
        job=str(row["kind"])[:TAG_CHARACTERS], tables={},
    )  # fmt: skip


def tuning(told: Mapping[str, Any], sweep: Mapping[str, Any], track: Track) -> Entry:
    """Return the run of a tuning, with tables of what was tuned and of every candidate."""
    rows = pd.DataFrame(told["rows"])
    candidates = [
        {
            "defense": search["defense"], "held_out": search["held_out"],
            "number": one["number"], "state": one["state"],
            **{f"parameter.{name}": value for name, value in one["parameters"].items()},
            **one["metrics"],
        }
        for search in told["searches"] for one in search.get("history", ())
    ]  # fmt: skip
    summary = {}
    for column in rows.columns:
        if str(column).startswith(("tuned_", "default_", "oracle_")):
            for held, part in rows.groupby("held_out"):
                value = float(pd.to_numeric(part[column]).mean())
                if math.isfinite(value):
                    summary[f"{column}/{held}"] = value
    tables = {"tuned": _textual(rows)}
    if candidates:
        tables["candidates"] = _textual(pd.DataFrame(candidates))
    where = [track.project, track.entity, track.group]
    mark = digest(json.dumps([where, told], sort_keys=True, default=str))
    return Entry(
        run=digest(f"{sweep['name']}/tune")[:16], mark=mark, name=f"tune · {sweep['name']}"[:128],
        job="tune", tags=("tune",), config={"sweep": sweep["name"]}, summary=summary, tables=tables,
    )  # fmt: skip


def _textual(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose cells W&B takes: parameters as JSON text, columns of one kind."""
    fixed = frame.copy()
    for column in fixed.select_dtypes(object).columns:
        fixed[column] = fixed[column].map(
            lambda cell: cell if isinstance(cell, str) else json.dumps(cell, default=str)
        )
    return fixed


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _defined(value: Any) -> bool:
    """Return whether a cell holds something: not None, NA, NaN or infinite."""
    if value is None or value is pd.NA or value is pd.NaT:
        return False
    return not isinstance(value, float) or math.isfinite(value)


def config_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with flat keys: filters and groups of W&B disagree on nested ones."""
    chosen = {k: _plain(v) for k, v in row.items() if k in CONFIG or _parameter(k)}
    return {k: v for k, v in chosen.items() if _defined(v)}


def _parameter(column: str) -> bool:
    """Return whether a column is a parameter; `found.*` are what a defense measured."""
    return "." in column and not column.startswith("found.")


def summary_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return every number that is neither a parameter nor undefined."""
    numbers = {}
    for name, value in row.items():
        plain = _plain(value)
        outside = _parameter(name) or name in CONFIG or name in UNSTABLE
        if not outside and isinstance(plain, int | float) and _defined(plain):
            numbers[name] = float(plain)
    return numbers
