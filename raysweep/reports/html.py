"""The HTML report: one self-contained file that opens offline; a pure function of the material."""

from __future__ import annotations

import html
import importlib.resources
from collections.abc import Callable

import pandas as pd

from raysweep.reports import (
    costs,
    failures,
    figures,
    internals,
    pictures,
    provenance,
    results,
    tuning,
    verdicts,
)
from raysweep.reports.html_elements import note, plots
from raysweep.reports.material import Material
from raysweep.reports.tables import finished, words

# The page may run what it holds and load nothing: the promise of an offline file, enforced.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
BESIDE = note('Every number of these figures also stands in <a href="#results">the tables</a>.')


def render(material: Material) -> str:
    """Return the page: one HTML document that needs no other file and no network.

    The same material gives the same text.
    """
    from plotly.offline import get_plotlyjs

    name = html.escape(words(material.sweep.name) or "sweep")
    rows = material.rows
    sections = [
        ("answer", "Question and answer", results.answer(material)),
        ("headline", "Headline", results.headline(rows)),
        ("results", "Results by attack", results.by_attack(rows)),
        ("maps", "Attack × defense", _drawn(figures.heat_maps, rows, wide=True)),
        ("rates", "Metrics against poison rate", _drawn(figures.rate_lines, rows)),
        ("roc", "ROC curves", plots(figures.roc_curves(material)) if material.curves else ""),
        ("insides", "Inside the defenses", internals.section(material)),
        ("verdicts", "Verdicts", verdicts.verdicts(material)),
        ("tuning", "Tuning", tuning.section(material)),
        ("pictures", "What the attacks look like", pictures.pictures(material)),
        ("cost", "Cost and reuse", costs.cost(material)),
        ("failures", "Failures", failures.failures(material)),
        ("provenance", "Provenance", provenance.provenance(material)),
    ]
    shown = [(key, title, body) for key, title, body in sections if body]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in shown)
    bodies = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>'
        f"{body}</section>"
        for key, title, body in shown
    )
    notes = "".join(note(html.escape(line)) for line in material.notes)
    library = get_plotlyjs() if '<figure class="plot">' in bodies else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{name} · raysweep</title><link rel="icon" href="data:,">'
        f"<style>{_asset('page.css')}</style></head><body>"
        f'<a class="skip" href="#main">Skip to the results</a><header><h1>{name}</h1>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f'<main id="main" tabindex="-1">{notes}{bodies}</main>'
        f"<script>{library}</script><script>{_asset('page.js')}</script></body></html>"
    )


def _asset(name: str) -> str:
    return importlib.resources.files("raysweep.reports").joinpath(name).read_text()


def _drawn(
    make: Callable[[pd.DataFrame], figures.Titled], rows: pd.DataFrame, *, wide: bool = False
) -> str:
    """Return the figures of the finished trials, if there are any."""
    if rows.empty or finished(rows).empty:
        return ""
    drawn = plots(make(rows), wide=wide)
    return drawn and BESIDE + drawn
