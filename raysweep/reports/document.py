"""A page: one self-contained HTML document of sections and data, which opens offline; pure."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2

from raysweep.identity import Json
from raysweep.reports.data import packed
from raysweep.reports.drawings import Drawing, shortened
from raysweep.reports.pictures import Gallery
from raysweep.reports.sheets import Sheet

# The page may run what it holds and load nothing: the promise of an offline file, enforced.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
SCRIPTS = (
    "data", "view", "names", "filters", "maps", "sheets", "results", "downloads", "figures",
    "printing", "start",
)  # fmt: skip


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
    def is_shown(self) -> bool:
        """Whether there is anything to show, or to say where nothing is good news."""
        return bool(self.sheets or self.drawings or self.galleries) or self.key == "failures"

    @property
    def album(self) -> str:
        """The figures as JSON that cannot end a script."""
        return _safe([drawing.pack() for drawing in shortened(self.drawings)])


def document(
    template: str,
    sections: Sequence[Section],
    cells: Json,
    blocks: Mapping[str, Json],
    **given: object,
) -> str:
    """Return a page: one HTML document that needs no other file and no network.

    Args:
        template: its file in templates/.
        sections: its parts below the tables of results; those without content are left out.
        cells: the data that the first screen is drawn of.
        blocks: the other data of its scripts, by name.
        given: what the template shows beside these.
    """
    shown = [one for one in sections if one.is_shown]
    sheets = {
        f"{section.key}-{number}": packed(sheet.pack())
        for section in shown
        for number, sheet in enumerate(section.sheets)
    }
    return _templates().get_template(template).render(
        sections=shown,
        first=packed(cells),
        blocks={
            **{key: packed(block) for key, block in blocks.items()}, **sheets,
            "tabulator": _library("tabulator.min.js"), "plotly": _library("plotly-basic.min.js"),
        },
        policy=POLICY,
        style=_asset("vendor/tabulator.min.css") + _asset("page/page.css"),
        script=_script(),
        **given,
    )  # fmt: skip


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
    return f'{_asset("vendor/fflate.min.js")}\n(() => {{\n"use strict";\n{parts}}})();'


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("raysweep.reports"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
