"""The inside of defenses: named numbers and curves, places of poison, losses; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from raysweep.defenses import Curve
from raysweep.metrics.names import SEPARABILITY, Family
from raysweep.reports.figures import COLORS, DASHES, Titled, label, legend_height, plain
from raysweep.reports.html_elements import note, plots, table, text
from raysweep.reports.material import Material
from raysweep.reports.tables import attack_column, finished, number, setting_column
from raysweep.results.columns import FOUND

GROUPS = {"poison": ("poisoned", COLORS[1], "solid"), "rest": ("not poisoned", COLORS[0], "dash")}


def section(material: Material) -> str:
    """Return the table of facts and the figures of losses and curves, where there are any."""
    drawn = plots(loss_lines(material) + auroc_lines(material))
    legend = note(
        "Medians over training samples; the band is from the first to the third quartile. AUROC: "
        "how well a low loss tells poison from the rest. Which samples are poisoned the defense "
        "does not know."
    )
    facts = _named(material.rows, FOUND, "What defenses measured of themselves")
    apart = _named(
        material.rows,
        SEPARABILITY,
        "Separability: AUROC of a linear discriminant between poison and others of its label",
    )
    return facts + apart + (drawn and legend + drawn) + plots(curve_lines(material))


def _named(rows: pd.DataFrame, family: Family, title: str) -> str:
    """Return a table of the columns of a family, or nothing."""
    names = family.within(rows.columns)
    done = finished(rows) if names else rows
    if not names or done.empty:
        return ""
    labeled = done.assign(attack=attack_column(done), arena=setting_column(done))
    lines = []
    for (defense, attack, arena), part in labeled.groupby(
        ["defense", "attack", "arena"], sort=False
    ):
        for name, column in names.items():
            values = pd.to_numeric(part[column], errors="coerce").dropna()
            if len(values):
                lines.append(
                    [text(defense), text(attack), text(arena), text(name),
                     f"{values.mean():.3g}", f"{values.min():.3g} to {values.max():.3g}",
                     str(len(values))]
                )  # fmt: skip
    headers = ["defense", "attack", "trained on", "what", "mean", "range", "n"]
    return table(title, headers, lines, words_first=4) if lines else ""


def loss_lines(material: Material) -> Titled:
    """Return the losses of poison and of the rest against steps, for each defense and attack."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for trial, who, among, seed in _trials(material, material.losses):
        groups.setdefault(f"{who}: loss by step{among}", []).append((trial, seed))
    return [(title, _losses(material, trials)) for title, trials in groups.items()]


def auroc_lines(material: Material) -> Titled:
    """Return the figure of a low loss as a sign of poison after each step, a line per seed."""
    groups: dict[str, list[tuple[str, str, Curve]]] = {}
    x_title, y_title = "step of the method", "AUROC of a low loss"
    for trial, who, among, seed in _trials(material, material.losses):
        if (areas := material.losses[trial].auroc) is not None:
            steps = np.arange(1.0, len(areas) + 1)
            curve = Curve(x=steps, y=areas, x_title=x_title, y_title=y_title)
            groups.setdefault(f"{who}: AUROC by step{among}", []).append((seed, seed, curve))
    figures = {title: _curves(x_title, y_title, lines) for title, lines in groups.items()}
    for title, figure in figures.items():
        lowest = min(curve.y.min() for _, _, curve in groups[title])
        figure.update_yaxes(range=[min(0.5, lowest) - 0.02, 1.02])
    return list(figures.items())


def _trials(material: Material, wanted: Collection[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield trial, defense and attack, where trained if trials differ in it, and seed."""
    if not wanted:  # a sweep that was only tuned has no rows
        return
    rows = material.rows.drop_duplicates("trial").set_index("trial")
    attacks, arenas = attack_column(rows), setting_column(rows)
    several = arenas.nunique() > 1
    for trial in wanted:
        if trial in rows.index:
            among = f" · {arenas[trial]}" if several else ""
            who, seed = f"{rows['defense'][trial]}, {attacks[trial]}", number(rows["seed"][trial])
            yield trial, who, among, f"seed {seed:g}"


def _losses(material: Material, trials: list[tuple[str, str]]) -> go.Figure:
    figure, shown = go.Figure(), set()
    for trial, seed in trials:
        losses = material.losses[trial]
        for group, quartiles in (("poison", losses.poison), ("rest", losses.rest)):
            name, color, dash = GROUPS[group]
            if quartiles is None:
                continue
            low, middle, high = np.maximum(quartiles, 1e-6)
            steps = np.arange(1, len(middle) + 1)
            figure.add_scatter(
                x=np.concatenate([steps, steps[::-1]]), y=np.concatenate([high, low[::-1]]),
                mode="lines", fill="toself", fillcolor=color, opacity=0.12, line={"width": 0},
                legendgroup=group, showlegend=False, hoverinfo="skip",
            )  # fmt: skip
            figure.add_scatter(
                x=steps, y=middle, name=name, legendgroup=group,
                showlegend=group not in shown, hovertext=f"{name}, {seed}", mode="lines+markers",
                line={"color": color, "dash": dash},
            )  # fmt: skip
            shown.add(group)
    figure.update_xaxes(title="step of the method", dtick=1 if len(steps) < 25 else None)
    figure.update_yaxes(title="cross-entropy", type="log")
    return plain(figure, 320 + legend_height(sorted(shown)))


def curve_lines(material: Material) -> Titled:
    """Return curves of the same axes together, for each defense and attack; a line per seed."""
    groups: dict[tuple[str, str, str], list[tuple[str, str, Curve]]] = {}
    for trial, who, among, seed in _trials(material, material.measured):
        for name, curve in material.measured[trial].items():
            axes = (f"{who}: {curve.y_title}{among}", curve.x_title, curve.y_title)
            groups.setdefault(axes, []).append((name, seed, curve))
    return [(axes[0], _curves(*axes[1:], lines)) for axes, lines in groups.items()]


def _curves(x_title: str, y_title: str, lines: list[tuple[str, str, Curve]]) -> go.Figure:
    figure, turns = go.Figure(), dict[str, int]()
    for name, seed, curve in lines:
        first = name not in turns
        turn = turns.setdefault(name, len(turns))
        figure.add_scatter(
            x=curve.x, y=curve.y, name=label(name), legendgroup=str(turn), showlegend=first,
            mode="lines", hovertext=label(f"{name}, {seed}"),
            line={"color": COLORS[turn % len(COLORS)],
                  "dash": DASHES[turn // len(COLORS) % len(DASHES)]},
        )  # fmt: skip
    figure.update_xaxes(title=label(x_title))
    figure.update_yaxes(title=label(y_title))
    return plain(figure, 320 + legend_height(list(turns)))
