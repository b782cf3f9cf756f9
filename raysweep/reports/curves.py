"""ROC curves of stored scores, as figures; pure."""

from __future__ import annotations

import numpy as np

from raysweep.metrics.curves import Scored
from raysweep.metrics.names import INPUT
from raysweep.reports.cells import Cells
from raysweep.reports.drawings import Drawing, Line
from raysweep.reports.material import Material
from raysweep.reports.tables import number

WHO = ("defense", "shown", "arena", "seed", "cell")
DECISIONS: dict[Scored, tuple[str, str]] = {
    "train": ("fpr", "tpr"), "input": (INPUT.of("fpr"), INPUT.of("tpr")),
}  # fmt: skip
DIAGONAL = np.array([0.0, 1.0])


def roc_curves(material: Material, cells: Cells) -> list[Drawing]:
    """Return ROC curves, a figure for each arena, attack and kind of scores.

    A line per trial, never a mean of curves; a mark where the trial's decision stands.
    """
    if not material.curves:
        return []
    rows = cells.rows.drop_duplicates("trial").set_index("trial")
    several = cells.several
    used = [name for name in (*WHO, *DECISIONS["train"], *DECISIONS["input"]) if name in rows]
    known = rows[used].to_dict("index")
    groups: dict[str, list[Line]] = {}
    for (trial, what), curve in material.curves.items():
        if trial not in known:
            continue
        row = known[trial]
        scored = "training samples" if what == "train" else "test inputs"
        title = f"{row['shown']}: scores of {scored}, a line per seed"
        title += f" · {row['arena']}" if several else ""
        name, label = str(row["defense"]), f"seed {row['seed']}"
        cell = int(row["cell"])
        lines = groups.setdefault(title, [])
        lines.append(Line(name=name, x=curve.fpr, y=curve.tpr, label=label, cell=cell))
        point = np.array([number(row.get(metric)) for metric in DECISIONS[what]])
        if not np.isnan(point).any():
            lines.append(
                Line(name=name, x=point[:1], y=point[1:], label=f"{label}: its decision",
                     cell=cell, shape="points")
            )  # fmt: skip
    chance = Line(name="chance", x=DIAGONAL, y=DIAGONAL, shape="rule")
    unit = (-0.02, 1.02)
    return [
        Drawing(title=title, x_title="FPR", y_title="TPR", lines=[chance, *lines], x_range=unit,
                y_range=unit)
        for title, lines in groups.items()
    ]  # fmt: skip
