"""Verdicts on models, and the triggers that inspectors estimate; pure."""

from __future__ import annotations

import numpy as np

from raysweep.metrics.parts import classes_in
from raysweep.reports.cells import Cells
from raysweep.reports.material import Material
from raysweep.reports.pictures import Gallery, Shown, picture
from raysweep.reports.sheets import Column, Sheet, who_of
from raysweep.reports.tables import number, words
from raysweep.results.grouping import finished

MODELS = 12
CLASSES = 20


def sheet(cells: Cells) -> Sheet | None:
    """Return the table of the verdicts of inspectors; none if no model was judged."""
    rows = finished(cells.rows)
    if "verdict" not in rows or rows["verdict"].notna().sum() == 0:
        return None
    judged = rows[rows["verdict"].notna()]

    def cell(name: str) -> list[object]:
        return list(judged[name]) if name in judged else [None] * len(judged)

    columns = [
        *who_of(judged, several=cells.several),
        Column(title="seed", values=cell("seed"), shown="number"),
        Column(title="verdict", values=["backdoor" if v else "clean" for v in cell("verdict")]),
    ]
    told = [
        Column(title="classes", values=list(map(words, cell("verdict_classes")))),
        Column(title="verdict is", values=_said(cell("verdict_correct"), "right", "wrong")),
        Column(title="target among them", values=_said(cell("target_found"), "yes", "no")),
        Column(title="largest anomaly", values=_numbers(cell("anomaly")), shown="number"),
        Column(title="p-value", values=_numbers(cell("p_value")), shown="number"),
    ]
    # What no inspector of the sweep has told has no column.
    columns += [one for one in told if any(words(value) not in ("", "–") for value in one.values)]
    return Sheet(title="Verdicts on models", columns=columns, cells=list(map(int, judged["cell"])))


def _said(values: list[object], yes: str, no: str) -> list[str]:
    return [(yes if value else no) if words(value) else "–" for value in values]


def _numbers(values: list[object]) -> list[float]:
    return [number(value) for value in values]


def triggers(material: Material, cells: Cells) -> tuple[list[Gallery], str]:
    """Return the estimated triggers of some models, and a sentence on what is left out."""
    if not material.triggers:
        return [], ""
    rows = cells.rows.drop_duplicates("trial").set_index("trial")
    known = [trial for trial in material.triggers if trial in rows.index]
    galleries = []
    for trial in known[:MODELS]:
        row, estimated = rows.loc[trial], material.triggers[trial]
        who = f"{row['called']}, {row['shown']}, seed {row['seed']}"
        named = classes_in(words(row.get("verdict_classes")))
        images = [
            Shown(
                image=picture(np.rint(np.clip(np.nan_to_num(t), 0, 1) * 255).astype(np.uint8)),
                caption=f"class {k}" + (" (named)" if k in named else ""),
                alt=f"{who}: estimated trigger of class {k}",
            )
            for k, t in enumerate(estimated[:CLASSES])
        ]
        galleries.append(Gallery(title=who, groups=[images]))
    fewer = [f"the first {MODELS} of {len(known)} models"] if len(known) > MODELS else []
    if any(len(material.triggers[t]) > CLASSES for t in known[:MODELS]):
        fewer.append(f"the first {CLASSES} classes")
    return galleries, f"Shown: {' and '.join(fewer)}." if fewer else ""
