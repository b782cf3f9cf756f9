"""The HTML report: one self-contained file that opens offline; a pure function of the material."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from raysweep.identity import Json
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
from raysweep.reports.data import column, packed
from raysweep.reports.drawings import Drawing, shortened
from raysweep.reports.material import Material
from raysweep.reports.pictures import Gallery, pictures
from raysweep.reports.sheets import Sheet
from raysweep.reports.tables import words
from raysweep.results.tuned import Tuned

# The page may run what it holds and load nothing: the promise of an offline file, enforced.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
SCRIPTS = (
    "data", "view", "names", "filters", "maps", "sheets", "results", "downloads", "figures",
    "printing", "start",
)  # fmt: skip
OURS = ("arena", "called", "shown", "cell", "lost", "der")  # columns that records lack


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page under a heading; one without content is left out.

    Attributes:
        key: of its anchor.
        title: plain text.
        said: sentences above its content, plain text.
        sheets, drawings, galleries: its content, in this order.
        fewer: a sentence on the images that are left out.
    """

    key: str
    title: str
    said: str = ""
    sheets: Sequence[Sheet] = ()
    drawings: Sequence[Drawing] = ()
    galleries: Sequence[Gallery] = ()
    fewer: str = ""

    @property
    def album(self) -> str:
        """The figures as JSON that cannot end a script."""
        return _safe([drawing.pack() for drawing in shortened(self.drawings)])


def render(material: Material) -> str:
    """Return the page: one HTML document that needs no other file and no network.

    The same material gives the same text.
    """
    cells = Cells.read(material.rows)
    sections = [one for one in _sections(material, cells) if _is_shown(one)]
    found = answer.answers(material.rows)
    blocks = {
        "cells": packed(cells.pack()),
        "rows": packed(_rows(cells)),
        **{
            f"{section.key}-{number}": packed(sheet.pack())
            for section in sections
            for number, sheet in enumerate(section.sheets)
        },
        "tabulator": _library("tabulator.min.js"),
        "plotly": _library("plotly-basic.min.js"),
    }
    return _templates().get_template("page.html").render(
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
        cells=len(cells.table),
        rated=_is_rated(cells),
        sections=sections,
        notes=[*material.notes, *_unread(material)],
        facts=provenance.provenance(material),
        source=words(material.sweep.text),
        blocks=blocks,
        policy=POLICY,
        style=_asset("vendor/tabulator.min.css") + _asset("page/page.css"),
        script=_script(),
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


def _is_shown(section: Section) -> bool:
    content = section.sheets or section.drawings or section.galleries
    return bool(content) or section.key == "failures"


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


def _rows(cells: Cells) -> dict[str, Json]:
    """Return the records of all trials as JSON, and the cell of each."""
    rows = cells.rows
    columns: list[Json] = [
        {"name": str(name), **column(rows[name])} for name in rows if name not in OURS
    ]
    return {"columns": columns, "cells": rows["cell"].tolist()}


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


def _safe(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return importlib.resources.files("raysweep.reports").joinpath(name).read_text("utf-8")


@functools.cache
def _library(name: str) -> str:
    """Return a library, compressed; it is run when the first table or figure is drawn."""
    return packed(_asset(f"vendor/{name}"))


def _script() -> str:
    parts = "\n".join(_asset(f"page/{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();'


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("raysweep.reports"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
