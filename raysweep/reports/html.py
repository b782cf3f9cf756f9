"""The HTML report: one self-contained file that opens offline; a pure function of the material."""

from __future__ import annotations

import re

from raysweep.identity import Json
from raysweep.metrics.names import INPUT
from raysweep.reports import (
    adaptive,
    answer,
    costs,
    curves,
    failures,
    internals,
    provenance,
    race,
    tuning,
    verdicts,
)
from raysweep.reports.cells import Cells
from raysweep.reports.data import column
from raysweep.reports.document import Section, document
from raysweep.reports.material import Material
from raysweep.reports.pictures import pictures
from raysweep.reports.tables import words
from raysweep.results.tuned import Tuned

LEGENDS = {
    "results": "In percent. a [b–c]: mean and its 95 % interval, of the inputs of one model or of "
    "three seeds or more; a (b, c): mean and values, or their range, where no interval is honest; "
    "–: undefined. n: finished trials. Lost CA: clean accuracy of the undefended model of the same "
    "seed, less the defended one’s, in points.",
    "trials": "Every trial in view, with every column of the records; “columns” shows parameters, "
    "seconds, and the key of the artifact behind each number.",
    "rows": "Trials",
}
FIRST = (
    "defense", "attack", "rate", "seed", "status", "asr", "ca", "tpr", "fpr", INPUT.of("tpr"),
    INPUT.of("fpr"), "dataset", "model", "trial", "error",
)  # fmt: skip
OURS = ("arena", "called", "shown", "cell", "lost", "der")  # columns that records lack


def render(material: Material) -> str:
    """Return the page: one HTML document that needs no other file and no network.

    The same material gives the same text.
    """
    cells = Cells.read(material.rows)
    found = answer.answers(material.rows)
    return document(
        "page.html",
        _sections(material, cells),
        cells.pack(),
        {"rows": _rows(cells, words(material.sweep.name) or "sweep")},
        name=words(material.sweep.name) or "sweep",
        question=words(material.sweep.question) or "No question was written down.",
        finished=int((cells.rows["status"] == "ok").sum()) if len(cells.rows) else 0,
        total=len(cells.rows),
        answers=found,
        headings=answer.columns(found),
        rule=answer.RULE,
        badges=_badges(cells),
        names=cells.names["defense"],
        attack_names=cells.names["attack"],
        count=len(cells.table),
        rated=_is_rated(cells),
        legends=LEGENDS,
        notes=[*material.notes, *_unread(material)],
        facts=provenance.provenance(material),
        sources={"The sweep file": words(material.sweep.text)},
    )  # fmt: skip


def _sections(material: Material, cells: Cells) -> list[Section]:
    tuned = material.tuned if material.tuned and material.tuned.rows else None
    verdict = verdicts.sheet(cells)
    triggers, fewer_triggers = verdicts.triggers(material, cells)
    attacks, fewer_attacks = pictures(material, cells)
    raced, ends = race.ended(material)
    return [
        Section(key="roc", title="ROC curves", drawings=curves.roc_curves(material, cells)),
        Section(key="insides", title="Inside the defenses", said=internals.LEGEND,
                sheets=internals.sheets(cells), drawings=internals.drawings(material, cells)),
        Section(key="verdicts", title="Verdicts", sheets=[verdict] if verdict else [],
                galleries=triggers, fewer=fewer_triggers),
        Section(key="race", title="Race over seeds", said=raced, sheets=race.sheets(ends)),
        *([_tuning(tuned)] if tuned else []),
        Section(key="pictures", title="What the attacks look like", galleries=attacks,
                fewer=fewer_attacks),
        Section(key="cost", title="Cost and reuse", said=costs.sentence(material),
                sheets=costs.sheets(material, cells), drawings=costs.drawings(material)),
        Section(key="failures", title="Failures", said=failures.sentence(cells),
                sheets=failures.sheets(cells, material.stages)),
    ]  # fmt: skip


def _tuning(tuned: Tuned) -> Section:
    told = adaptive if tuned.settings.who == "attack" else tuning
    return Section(
        key="tuning", title="Tuning", said=told.sentence(tuned), sheets=told.sheets(tuned),
        drawings=told.drawings(tuned),
    )  # fmt: skip


def _badges(cells: Cells) -> dict[str, str]:
    """Return label of a defense → its badges, of those that have some."""
    own = cells.table[["defense", "badges"]].drop_duplicates("defense").set_index("defense")
    return {str(label): str(badges) for label, badges in own["badges"].items() if badges}


def _is_rated(cells: Cells) -> bool:
    """Return whether an attack has several rates in one arena; 0 is the clean model's."""
    if cells.table.empty:
        return False
    poisoned = cells.table[cells.table["rate"] > 0]
    return bool((poisoned.groupby(["arena", "attack"])["rate"].nunique() > 1).any())


def _rows(cells: Cells, name: str) -> dict[str, Json]:
    """Return the records of all trials as JSON, and the cell of each."""
    rows = cells.rows
    columns: list[Json] = [
        {"name": str(label), **column(rows[label])} for label in rows if label not in OURS
    ]
    file = re.sub(r"[^\w.-]+", "_", name)
    return {
        "columns": columns, "cells": rows["cell"].tolist(), "first": list(FIRST),
        "command": {
            "said": "Parquet of all trials: ",
            "line": f"raysweep results {name} --format parquet --output {file}.parquet",
        },
    }  # fmt: skip


def _unread(material: Material) -> list[str]:
    """Return a note on the trials whose artifacts were not looked at."""
    if not material.unread:
        return []
    rows = material.rows[material.rows["trial"].isin(material.unread)]
    counts = ", ".join(f"{attack}: {n:,}" for attack, n in rows["attack"].value_counts().items())
    name = words(material.sweep.name)
    return [
        f"Curves, triggers and pictures of {len(rows):,} finished trials were not read in time and "
        f"are not shown ({counts}); their numbers are. `raysweep report {name}` reads all."
    ]
