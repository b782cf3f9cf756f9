"""An entry: everything that one run of W&B is to hold, as plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from raysweep.identity import Json, digest
from raysweep.results.columns import Cell
from raysweep.results.text import visible
from raysweep.sweep.spec import Track

NAME_CHARACTERS, TAG_CHARACTERS = 128, 64  # that W&B takes
State = Literal["finished", "failed", "running"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One artifact of W&B: small files, never the arrays of a stage.

    Attributes:
        name: the key of the stage, so that trials that share the stage log one artifact.
        type: `dataset`, `poison`, `model`, `scores` or `result`.
        metadata: shown beside it.
        files: name → bytes, the same whenever they are made of the same stage.
    """

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
    mark: str = ""
    name: str
    job: str
    tags: tuple[str, ...]
    config: Mapping[str, Cell]
    summary: Mapping[str, float]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    group: str = ""
    notes: str = ""
    state: State = "finished"
    history: Sequence[Mapping[str, float]] = ()
    media: Callable[[], Mapping[str, object]] | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[Artifact, ...] = ()


def run_id(sweep: str, what: str) -> str:
    """Return the id of a sweep's run: the same whenever it is told of the same thing."""
    return digest(f"{sweep}/{what}")[:16]


def marked(entry: Entry, track: Track) -> Entry:
    """Return an entry with its texts made safe to show, and the mark of all that it says."""
    safe = replace(
        entry,
        name=visible(entry.name)[:NAME_CHARACTERS],
        job=visible(entry.job)[:TAG_CHARACTERS],
        tags=tuple(dict.fromkeys(visible(tag)[:TAG_CHARACTERS] for tag in entry.tags if tag)),
        config={name: visible(v) if isinstance(v, str) else v for name, v in entry.config.items()},
    )
    # A whole number that stood beside a missing one in a table has become a float.
    config = {n: float(v) if isinstance(v, int | float) else v for n, v in safe.config.items()}
    said = [
        [track.project, track.entity, track.group], safe.name, safe.job, safe.tags, config,
        safe.summary, {name: table.to_csv() for name, table in safe.tables.items()}, safe.group,
        safe.notes, safe.state, safe.history, safe.media is not None and track.images, safe.reads,
        [[one.name, one.type, one.metadata, *map(digest, one.files.values())]
         for one in safe.writes],
    ]  # fmt: skip
    return replace(safe, mark=digest(json.dumps(said, sort_keys=True, default=str)))


def defined(cell: Cell | np.generic) -> Cell:
    """Return a cell of a table as a plain value; None where it is missing, NaN or infinite."""
    plain = cell.item() if isinstance(cell, np.generic) else cell
    if isinstance(plain, str | int):
        return plain
    if isinstance(plain, float):
        return plain if math.isfinite(plain) else None
    return None


def numbers(cells: Mapping[str, Cell]) -> dict[str, float]:
    """Return the cells that are numbers and defined, as floats; truth values are 0 and 1."""
    plain = {name: defined(cell) for name, cell in cells.items()}
    return {name: float(cell) for name, cell in plain.items() if isinstance(cell, int | float)}


def textual(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose cells W&B takes: other values as JSON text, columns of one kind."""
    fixed = frame.copy()
    for column in fixed.select_dtypes("object").columns:
        fixed[column] = fixed[column].map(
            lambda cell: visible(cell) if isinstance(cell, str) else json.dumps(cell, default=str)
        )
    return fixed
