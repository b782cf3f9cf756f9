"""Tables as data; the page draws the rows that are in view, and sorts and filters them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from raysweep.identity import Json
from raysweep.reports.data import column
from raysweep.reports.tables import number

Shown = Literal["text", "badges", "number", "percent", "seconds"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        title: plain text.
        values: one for each row; numbers as they were measured, shares as fractions.
        shown: how they are written.
    """

    title: str
    values: Sequence[object]
    shown: Shown = "text"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table of the page.

    Attributes:
        title: plain text.
        columns: of the same length; the first stays in place.
        cells: the cell of each row, for the filters; none if the table is of no trials.
        note: what is to be said below it, plain text.
    """

    title: str
    columns: Sequence[Column]
    cells: Sequence[int] | None = None
    note: str = ""

    def pack(self) -> dict[str, Json]:
        """Return the table as JSON."""
        return {
            "title": self.title,
            "columns": [
                {"title": one.title, "shown": one.shown, **column(one.values)}
                for one in self.columns
            ],
            "cells": None if self.cells is None else list(self.cells),
            "note": self.note,
        }


def who_of(rows: pd.DataFrame, *, several: bool) -> list[Column]:
    """Return the columns that say of which cell each row is.

    Args:
        rows: of `Cells.rows`.
        several: whether the sweep has several arenas, so that they are told.
    """
    named = [("defense", "called"), ("attack", "shown")]
    named += [("trained on", "arena")] if several else []
    return [Column(title=title, values=list(rows[name])) for title, name in named]


def seconds(value: object) -> str:
    """Return seconds with a sensible number of digits, or a dash."""
    taken = number(value)
    if math.isnan(taken):
        return "–"
    if taken == 0 or taken >= 100:
        return f"{taken:.0f}"
    return f"{taken:.1f}" if taken >= 1 else f"{taken:.3f}"
