"""Entries in W&B for a trial and for a tuning: names, tags, parameters, numbers, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from raysweep.identity import Json, digest
from raysweep.results.columns import COSTS, WHO, Cell, is_parameter
from raysweep.results.tuned import Tuned
from raysweep.sweep.spec import Track

CONFIG = frozenset({*WHO, "git_commit"}) - {"sweep", "evades"}
TAGS = ("dataset", "model", "attack_name", "defense_name")
# Shares of a cost change whenever another trial joins; they say nothing about this one.
UNSTABLE = frozenset({*COSTS, "finished_at"}) - {"standalone_seconds"}
TAG_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One artifact of W&B: small files, by name."""

    name: str
    type: str
    metadata: Mapping[str, Json] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run to be: its id, a digest of what it says, and what it says.

    Attributes:
        run: its id.
        mark: digest of everything else, so that an unchanged run is not written again.
        name, job, tags: as lists of runs show and filter them; the job is W&B's job type.
        config: flat.
        summary: numbers; what is undefined is left out.
        tables: by name.
        group: of the run; empty: the sweep's.
        notes: Markdown, e.g. the error of a failed trial.
        state: how the run ends; `running` where more of it will be told.
        history: one mapping a step.
        media: gives charts and pictures by name, when the run is written; none: there are none.
        reads: artifacts of the same project that the run uses, as `name:alias`.
        writes: artifacts that it makes.
    """

    run: str
    mark: str
    name: str
    job: str
    tags: tuple[str, ...]
    config: Mapping[str, Cell]
    summary: Mapping[str, float]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    group: str = ""
    notes: str = ""
    state: Literal["finished", "failed", "running"] = "finished"
    history: Sequence[Mapping[str, float]] = ()
    media: Callable[[], Mapping[str, object]] | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[Artifact, ...] = ()


def run_id(sweep: str, what: str) -> str:
    """Return the id of a sweep's run: the same whenever it is told of the same thing."""
    return digest(f"{sweep}/{what}")[:16]


def trial(row: Mapping[str, Cell], sweep: str, track: Track) -> Entry:
    """Return the run of one finished trial of a sweep."""
    config, summary = config_of(row), summary_of(row)
    where = [track.project, track.entity, track.group]
    content = json.dumps([where, config, summary], sort_keys=True, default=str)
    run = run_id(sweep, str(row["trial"]))
    tags = dict.fromkeys(str(row[t])[:TAG_CHARACTERS] for t in TAGS if row.get(t))
    return Entry(
        run=run, mark=digest(content), config=config, summary=summary, tags=tuple(tags),
        name=f"{row['attack']} · {row['defense']} · seed {row['seed']}"[:128],
        job=str(row["kind"])[:TAG_CHARACTERS],
        state="finished" if row.get("status", "ok") == "ok" else "failed",
        notes=str(row.get("error") or ""),
    )  # fmt: skip


def tuning(tuned: Tuned, sweep: str, track: Track) -> Entry:
    """Return the run of a sweep's tuning, with tables of what was tuned and of every candidate."""
    rows = pd.DataFrame([row.pack() for row in tuned.rows])
    candidates = [
        {
            "defense": search.defense, "held_out": search.held_out,
            "number": one.number, "state": one.state,
            **{f"parameter.{name}": value for name, value in one.parameters.items()},
            **one.metrics,
        }
        for search in tuned.searches for one in search.history or ()
    ]  # fmt: skip
    summary = {}
    for column in dict.fromkeys(column for row in tuned.rows for column in row.columns()):
        for held, part in rows.groupby("held_out"):
            value = float(pd.to_numeric(part[column]).mean())
            if math.isfinite(value):
                summary[f"{column}/{held}"] = value
    tables = {"tuned": _textual(rows)}
    if candidates:
        tables["candidates"] = _textual(pd.DataFrame(candidates))
    where = [track.project, track.entity, track.group]
    mark = digest(json.dumps([where, json.loads(tuned.pack())], sort_keys=True))
    return Entry(
        run=run_id(sweep, "tune"), mark=mark, name=f"tune · {sweep}"[:128],
        job="tune", tags=("tune",), config={"sweep": sweep}, summary=summary, tables=tables,
    )  # fmt: skip


def _textual(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose cells W&B takes: parameters as JSON text, columns of one kind."""
    fixed = frame.copy()
    for column in fixed.select_dtypes(object).columns:
        fixed[column] = fixed[column].map(
            lambda cell: cell if isinstance(cell, str) else json.dumps(cell, default=str)
        )
    return fixed


def _defined(cell: Cell | np.generic) -> Cell:
    """Return a cell of a table as a plain value; None where it is missing, NaN or infinite."""
    plain: Cell = cell.item() if isinstance(cell, np.generic) else cell
    if pd.isna(plain) or (isinstance(plain, float) and math.isinf(plain)):
        return None
    return plain


def config_of(row: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return parameters with flat keys: filters and groups of W&B disagree on nested ones."""
    chosen = {name: _defined(cell) for name, cell in row.items() if _configures(name)}
    return {name: cell for name, cell in chosen.items() if cell is not None}


def summary_of(row: Mapping[str, Cell]) -> dict[str, float]:
    """Return every number that is neither a parameter nor undefined."""
    cells = {
        name: _defined(cell)
        for name, cell in row.items()
        if not _configures(name) and name not in UNSTABLE
    }
    return {name: float(cell) for name, cell in cells.items() if isinstance(cell, int | float)}


def _configures(column: str) -> bool:
    return column in CONFIG or is_parameter(column)
