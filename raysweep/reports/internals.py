"""The inside of defenses: named numbers and curves, places of poison, losses; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import pandas as pd

from raysweep.metrics.names import SEPARABILITY, Family
from raysweep.reports.cells import Cells
from raysweep.reports.drawings import Drawing, Line, thinned
from raysweep.reports.material import Material
from raysweep.reports.sheets import Column, Sheet, who_of
from raysweep.reports.tables import number
from raysweep.results.columns import FOUND
from raysweep.results.grouping import finished

LEGEND = (
    "A line of losses is their median over training samples, its band goes from the first to the "
    "third quartile. AUROC: how well a low loss tells poison from the rest. The defense does not "
    "know which samples are poisoned."
)
STEP = "step of the method"
GROUPS = {"poison": "poisoned", "rest": "not poisoned"}


def sheets(cells: Cells) -> list[Sheet]:
    """Return the tables of measured facts, and of how far apart poison lies."""
    named = (
        (FOUND, "What attacks and defenses measured of themselves"),
        (SEPARABILITY,
         "Separability: AUROC of a linear discriminant between poison and others of its label"),
    )  # fmt: skip
    return [sheet for family, title in named if (sheet := _named(cells, family, title))]


def _named(cells: Cells, family: Family, title: str) -> Sheet | None:
    """Return a table of the columns of a family, a row per cell; none if there are none."""
    rows = cells.rows
    done = finished(rows)
    parts = []
    for name, column in family.within(rows.columns).items():
        values = pd.to_numeric(done[column], errors="coerce").dropna()
        if values.empty:
            continue
        told = values.groupby(done.loc[values.index, "cell"]).agg(["mean", "min", "max", "count"])
        parts.append(told.assign(what=name).reset_index())
    if not parts:
        return None
    table = pd.concat(parts, ignore_index=True).sort_values("cell", kind="stable")
    who = rows.drop_duplicates("cell").set_index("cell").loc[table["cell"]]
    columns = [
        *who_of(who, several=cells.several),
        Column(title="what", values=list(table["what"])),
        *(Column(title=shown, values=list(table[name]), shown="number")
          for shown, name in (("mean", "mean"), ("least", "min"), ("most", "max"), ("n", "count"))),
    ]  # fmt: skip
    return Sheet(title=title, columns=columns, cells=[int(cell) for cell in table["cell"]])


def drawings(material: Material, cells: Cells) -> list[Drawing]:
    """Return the figures of losses, of losses as a sign of poison, and of curves."""
    return [
        *loss_lines(material, cells), *auroc_lines(material, cells), *curve_lines(material, cells)
    ]  # fmt: skip


def loss_lines(material: Material, cells: Cells) -> list[Drawing]:
    """Return the losses of poison and of the rest against steps, for each defense and attack."""
    groups: dict[str, list[Line]] = {}
    for trial, who, among, seed, cell in _trials(cells, material.losses):
        lines = groups.setdefault(f"{who}: loss by step{among}", [])
        losses = material.losses[trial]
        for group, quartiles in (("poison", losses.poison), ("rest", losses.rest)):
            if quartiles is None:
                continue
            low, middle, high = np.maximum(quartiles, 1e-6)
            steps, name = np.arange(1.0, len(middle) + 1), GROUPS[group]
            around = np.concatenate([steps, steps[::-1]]), np.concatenate([high, low[::-1]])
            lines.append(Line(name=name, x=around[0], y=around[1], cell=cell, shape="area"))
            lines.append(Line(name=name, x=steps, y=middle, label=seed, cell=cell, shape="both"))
    return [
        Drawing(
            title=title, x_title=STEP, y_title="cross-entropy", lines=lines, y_log=True,
        )
        for title, lines in groups.items()
    ]  # fmt: skip


def auroc_lines(material: Material, cells: Cells) -> list[Drawing]:
    """Return the figure of a low loss as a sign of poison after each step, a line per seed."""
    groups: dict[str, list[Line]] = {}
    for trial, who, among, seed, cell in _trials(cells, material.losses):
        areas = material.losses[trial].auroc
        if areas is not None:
            steps = np.arange(1.0, len(areas) + 1)
            line = Line(name=seed, x=steps, y=areas, label=seed, cell=cell)
            groups.setdefault(f"{who}: AUROC by step{among}", []).append(line)
    return [
        Drawing(
            title=title, x_title=STEP, y_title="AUROC of a low loss", lines=lines,
            y_range=(min(0.5, *(float(line.y.min()) for line in lines)) - 0.02, 1.02),
        )
        for title, lines in groups.items()
    ]  # fmt: skip


def curve_lines(material: Material, cells: Cells) -> list[Drawing]:
    """Return curves of the same axes together, for each defense and attack; a line per seed."""
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for trial, who, among, seed, cell in _trials(cells, material.measured):
        for name, curve in material.measured[trial].items():
            axes = (f"{who}: {curve.y_title}{among}", curve.x_title, curve.y_title)
            x, y = thinned(curve.x, curve.y)
            line = Line(name=name, x=x, y=y, label=f"{name}, {seed}", cell=cell)
            groups.setdefault(axes, []).append(line)
    return [
        Drawing(title=title, x_title=x_title, y_title=y_title, lines=lines)
        for (title, x_title, y_title), lines in groups.items()
    ]


def _trials(cells: Cells, wanted: Collection[str]) -> Iterator[tuple[str, str, str, str, int]]:
    """Yield trial, defense and attack, where trained if trials differ in it, seed, and cell."""
    if not wanted:  # a sweep that was only tuned has no rows
        return
    rows = cells.rows.drop_duplicates("trial").set_index("trial")
    several = cells.several
    columns = ("called", "shown", "arena", "seed", "cell")
    every = zip(*(rows[name] for name in columns), strict=True)
    known = {trial: own for trial, own in zip(rows.index, every, strict=True) if trial in wanted}
    for trial in wanted:
        if trial in known:
            defense, attack, arena, seed, cell = known[trial]
            among = f" · {arena}" if several else ""
            yield trial, f"{defense}, {attack}", among, f"seed {number(seed):g}", int(cell)
