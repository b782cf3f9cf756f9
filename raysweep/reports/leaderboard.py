"""A leaderboard of several sweeps: every cell with n, interval, badges and the file that makes it.

A cell is an arena, attack, rate and defense. Where two sweeps hold the same cell both are shown,
each with its sweep's name; nothing is averaged over sweeps.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import re
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from raysweep.errors import SpecError
from raysweep.metrics.names import INPUT
from raysweep.reports.document import POLICY
from raysweep.reports.tables import interval_text, percent, words
from raysweep.results.cells import cells
from raysweep.results.columns import Cell
from raysweep.results.grouping import failure_texts, setting_column
from raysweep.results.records import Records, read
from raysweep.store import Store
from raysweep.sweep.yaml import parse

SHOWN = {
    "asr": "ASR", "ca": "CA", "der": "DER", "tpr": "TPR", "fpr": "FPR",
}  # fmt: skip
MEASURED = (*SHOWN, "ra", INPUT.of("tpr"), INPUT.of("fpr"))
FILTERS = ("arena", "attack", "rate", "defense", "kind", "badges", "sweep")
CELL = ("arena", "attack", "rate", "defense")
BREAKS = re.compile(r"(?<=[_(,])(?=\w)")  # where a reader would break a name


@dataclass(frozen=True, kw_only=True)
class Source:
    """A sweep that cells come from.

    Attributes:
        name, question: of the sweep.
        text: the sweep file as it was launched.
        command: makes the numbers, given that file.
        git_commit: of the code that evaluated the trials, joined by commas; empty if unknown.
        versions: package → version, where it was launched.
        launched: date of the launch, UTC; empty if unknown.
        trials, finished: how many there are.
        notes: what is to be said about its records, a line each.
    """

    name: str
    question: str
    text: str
    command: str
    git_commit: str
    versions: Mapping[str, str]
    launched: str
    trials: int
    finished: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The cells of several sweeps.

    Attributes:
        sources: the sweeps, in the order in which they were named.
        cells: one row per sweep, arena, attack, rate and defense, as `results.cells.cells` makes
            them, and beside these the columns sweep, dataset, model, found (why the attack failed,
            in words; else empty) and others (names of other sweeps that hold the same cell).
    """

    sources: tuple[Source, ...]
    cells: pd.DataFrame


def gather(store: Store, names: Sequence[str]) -> Leaderboard:
    """Return the leaderboard of stored sweeps.

    Arenas are told over all sweeps together: those whose recipes differ are not the same.

    Raises:
        StoreError: if there is no sweep of a name, or it has no records.
    """
    records = {name: read(store, name) for name in dict.fromkeys(names)}
    rows = pd.concat(
        [one.rows.assign(sweep=name) for name, one in records.items()], ignore_index=True
    )
    rows = rows.assign(arena=setting_column(rows))
    parts = [
        cells(part, MEASURED).assign(
            arena=str(arena), sweep=str(sweep), dataset=part["dataset"].iloc[0],
            model=part["model"].iloc[0], found=_found(part),
        )
        for (sweep, arena), part in rows.groupby(["sweep", "arena"], sort=False)
    ]  # fmt: skip
    every = pd.concat(parts, ignore_index=True)
    holders = every.groupby(list(CELL), sort=False)["sweep"].transform(
        lambda s: [tuple(s)] * len(s)
    )
    every["others"] = [
        tuple(one for one in held if one != own)
        for held, own in zip(holders, every["sweep"], strict=True)
    ]
    every = every.sort_values(
        ["arena", "attack", "rate", "asr"], kind="stable", na_position="last", ignore_index=True
    )
    return Leaderboard(
        sources=tuple(_source(name, one) for name, one in records.items()), cells=every
    )


def _found(part: pd.DataFrame) -> list[str]:
    """Return for each cell of one arena why its attack failed, in the order of the cells."""
    texts = part.assign(found=failure_texts(part, setting_column(part)))
    return texts.groupby(list(CELL), sort=False, dropna=False)["found"].first().tolist()


def _source(name: str, records: Records) -> Source:
    about, rows = records.sweep, records.rows
    commits = [words(one) for one in rows["git_commit"].unique()] if "git_commit" in rows else []
    launched = about.created_at
    return Source(
        name=name, question=words(about.question), text=words(about.text),
        command=f"raysweep launch {name}.{_ending(words(about.text))}",
        git_commit=", ".join(filter(None, commits)), versions=dict(about.versions or {}),
        launched="" if launched is None else time.strftime("%Y-%m-%d", time.gmtime(launched)),
        trials=len(rows), finished=int((rows["status"] == "ok").sum()),
        notes=tuple(records.notes),
    )  # fmt: skip


def _ending(text: str) -> str:
    """Return the ending of a sweep file: `yaml`, or `py` for one in Python, which is no YAML."""
    try:
        parse("the sweep file", text)
    except SpecError:
        return "py" if text else "yaml"
    return "yaml"


def render(board: Leaderboard) -> str:
    """Return the page: one HTML document that needs no other file and no network.

    The same leaderboard gives the same text.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    lines = [_line(cell) for cell in board.cells.to_dict("records")]
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.filters["breakable"] = lambda name: Markup(BREAKS.sub("<wbr>", str(escape(name))))
    return made.from_string(_asset("leaderboard.html")).render(
        policy=Markup(POLICY), style=Markup(_asset("leaderboard.css")),
        script=Markup(_asset("leaderboard.js")), shown=SHOWN, lines=lines, sources=board.sources,
        numbers={one.name: n for n, one in enumerate(board.sources)},
        filters={name: list(dict.fromkeys(line[name] for line in lines)) for name in FILTERS},
    )  # fmt: skip


def _asset(name: str) -> str:
    return importlib.resources.files("raysweep.reports").joinpath(name).read_text("utf-8")


def _line(cell: Mapping[Hashable, object]) -> dict[str, object]:
    """Return a cell as the page shows it: text for each filter and metric, values to sort by."""
    detector = math.isnan(_number(cell["tpr"])) and math.isnan(_number(cell["fpr"]))
    metrics = {}
    for name, title in SHOWN.items():
        of = INPUT.of(name) if detector and name in ("tpr", "fpr") else name
        value = _number(cell[of])
        missing = math.isnan(value)
        metrics[title] = {
            "value": "" if missing else repr(value),
            "text": percent(value),
            "beside": "" if missing else _beside(cell, of),
        }
    finished, trials = cell["n_finished"], cell["n_trials"]
    return {
        **{name: words(cell[name]) for name in FILTERS}, "metrics": metrics,
        "rate": f"{100 * _number(cell['rate']):g} %", "rate_value": repr(_number(cell["rate"])),
        "trials": str(finished) if finished == trials else f"{finished} of {trials}",
        "found": cell["found"], "others": cell["others"],
    }  # fmt: skip


def _beside(cell: Mapping[Hashable, object], metric: str) -> str:
    """Return the interval of a metric, or its values, and how many of what it rests on."""
    values = cell[f"{metric}_values"]
    assert isinstance(values, tuple)
    low, high = _number(cell[f"{metric}_low"]), _number(cell[f"{metric}_high"])
    spread = interval_text(_number(cell[metric]), low, high, values).partition(" ")[2]
    n, unit = cell[f"{metric}_n"], str(cell[f"{metric}_unit"])
    counted = f"{n} {unit.removesuffix('s') if n == 1 else unit}".strip()
    of = "of inputs" if metric in (INPUT.of("tpr"), INPUT.of("fpr")) else ""
    return ", ".join(filter(None, (spread, counted, of)))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def to_json(board: Leaderboard) -> bytes:
    """Return the leaderboard as JSON: `sources` and `cells`; what is undefined is null."""
    shown = [
        {str(name): _plain(value) for name, value in cell.items()}
        for cell in board.cells.to_dict("records")
    ]
    content = {"sources": [asdict(one) for one in board.sources], "cells": shown}
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _plain(value: object) -> Cell | list[Cell]:
    if isinstance(value, tuple):
        return [_single(one) for one in value]
    return _single(value)


def _single(value: object) -> Cell:
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, float) and not math.isfinite(plain):
        return None
    return plain if isinstance(plain, str | int | float | bool | None) else str(plain)


def write(board: Leaderboard, folder: Path) -> Path:
    """Write the site into a folder, which is made if it is not there; return its page.

    Raises:
        OSError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "leaderboard.json").write_bytes(to_json(board))
    page = folder / "index.html"
    page.write_text(render(board), encoding="utf-8")
    return page
