"""Figures as data: lines and bars with titled axes, no more of them than a screen can show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from raysweep.arrays import Floats
from raysweep.identity import Json
from raysweep.reports.data import floats, packed

Shape = Literal["line", "points", "both", "area", "bars", "rule"]
POINTS = 200  # of a line; a figure is some 400 pixels wide
LINES = 24_000  # of all figures of a section
LEAST, MOST = 24, 120  # of each figure; more are not told apart


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line, a cloud of points, or bars.

    Attributes:
        name: in the legend; lines of the same name share color, dash and symbol.
        x, y: (P,) each; x may be names. An area's outline is closed.
        label: said of it on hover.
        cell: of its trial; a filter that hides the cell hides the line. -1: of no trial.
        shape: how it is drawn; a rule is a dotted line for comparison.
        ends: (P,) each, the low and the high end of an interval about each y; none: no intervals.
    """

    name: str
    x: Sequence[str] | Floats
    y: Floats
    label: str | Sequence[str] = ""
    cell: int = -1
    shape: Shape = "line"
    ends: tuple[Floats, Floats] | None = None

    def pack(self) -> dict[str, Json]:
        """Return the line as JSON."""
        x = floats(self.x) if isinstance(self.x, np.ndarray) else list(self.x)
        label = self.label if isinstance(self.label, str) else list(self.label)
        line: dict[str, Json] = {
            "name": self.name, "x": x, "y": floats(self.y), "label": label, "cell": self.cell,
            "shape": self.shape,
        }  # fmt: skip
        if self.ends is not None:
            line["low"], line["high"] = map(floats, self.ends)
        return line


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of the page.

    Attributes:
        title: plain text, the only one of its section.
        x_title, y_title: of the axes, plain text.
        lines: what is drawn.
        x_log, y_log: whether an axis is logarithmic.
        x_range, y_range: of the axes; none: as far as the lines go.
        fewer: how many lines were left out.
    """

    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line] = field(default_factory=list)
    x_log: bool = False
    y_log: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    fewer: int = 0

    def pack(self) -> dict[str, Json]:
        """Return title and cells as JSON, and the rest compressed: it is opened when drawn."""
        return {
            "title": self.title,
            "cells": sorted({line.cell for line in self.lines} - {-1}),
            "data": packed(
                {
                    "x": {"title": self.x_title, "log": self.x_log, "range": self.x_range},
                    "y": {"title": self.y_title, "log": self.y_log, "range": self.y_range},
                    "lines": [line.pack() for line in self.lines],
                    "fewer": self.fewer,
                }
            ),
        }


def shortened(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Return figures of no more lines than the page has room for; each counts what it lacks.

    Every cell keeps the same number of lines as far as it has them, the first ones.
    """
    most = min(MOST, max(LEAST, LINES // max(1, len(drawings))))
    return [_shortened(one, most) for one in drawings]


def _shortened(drawing: Drawing, most: int) -> Drawing:
    if len(drawing.lines) <= most:
        return drawing
    turns = Counter[int]()
    order = []
    for place, line in enumerate(drawing.lines):
        order.append((turns[line.cell] if line.cell >= 0 else -1, place))
        turns[line.cell] += 1
    kept = sorted(place for _, place in sorted(order)[:most])
    return replace(
        drawing,
        lines=[drawing.lines[place] for place in kept],
        fewer=drawing.fewer + len(drawing.lines) - most,
    )


def thinned(x: Floats, y: Floats, most: int = POINTS) -> tuple[Floats, Floats]:
    """Return points of a line that a screen cannot tell from all: (P,) each, at most about `most`.

    The least and the largest y of each stretch, and both ends, are among them.
    """
    n = len(x)
    if n <= most:
        return x, y
    edges = np.linspace(0, n, most // 2 + 1).astype(int)[:-1]
    lows = np.where(np.isnan(y), np.inf, y)
    highs = np.where(np.isnan(y), -np.inf, y)
    stretches = np.split(np.arange(n), edges[1:])
    kept = {0, n - 1}
    for own in stretches:
        kept |= {int(own[lows[own].argmin()]), int(own[highs[own].argmax()])}
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def thinned_roc(fpr: Floats, tpr: Floats, most: int = 128) -> tuple[Floats, Floats]:
    """Return corners of a ROC curve, from 0 to 1, no two further apart than about 2 / `most`.

    Corners are chosen evenly along the way from (0, 0) to (1, 1), so that a steep rise is kept.
    """
    if len(fpr) <= most:
        return fpr, tpr
    way = fpr.astype(float) + tpr
    chosen = np.unique(np.searchsorted(way, np.linspace(0, way[-1], most + 1)))
    chosen = np.unique(np.concatenate([[0], chosen.clip(0, len(way) - 1), [len(way) - 1]]))
    x, y = fpr[chosen].astype(float), tpr[chosen].astype(float)
    turns = np.diff(x[:-1]) * np.diff(y)[1:] != np.diff(y[:-1]) * np.diff(x)[1:]
    corner = np.concatenate([[True], turns, [True]])
    return x[corner], y[corner]
