"""What happens inside defenses: named numbers, where poison lies, losses step by step; pure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from raysweep.report.elements import note, plots, table, text
from raysweep.report.figures import COLORS, Titled, label, legend_height, plain
from raysweep.report.material import Material
from raysweep.report.tables import arena_column, attack_column, finished, number

FACT, SEPARABILITY = "found.", "separability_"
GROUPS = {"poison": ("poisoned", COLORS[1], "solid"), "rest": ("not poisoned", COLORS[0], "dash")}


def section(material: Material) -> str:
    """Return the table of facts and the figures of losses, where there are any."""
    drawn = plots(loss_lines(material)) if material.losses else ""
    said = note(
        "Medians over training samples; the band is from the first to the third quartile. Which "
        "samples are poisoned the defense does not know."
    )
    facts = _named(material.rows, FACT, "What defenses measured of themselves")
    apart = _named(
        material.rows, SEPARABILITY, "How far apart poison lies: AUROC of a linear discriminant in"
    )
    return facts + apart + (drawn and said + drawn)


def _named(rows: pd.DataFrame, prefix: str, title: str) -> str:
    """Return a table of the columns with a prefix, or nothing."""
    names = [str(c) for c in rows.columns if str(c).startswith(prefix)]
    done = finished(rows) if names else rows
    if not names or done.empty:
        return ""
    told = done.assign(attack=attack_column(done), arena=arena_column(done))
    lines = []
    for (defense, attack, arena), part in told.groupby(["defense", "attack", "arena"], sort=False):
        for name in names:
            values = pd.to_numeric(part[name], errors="coerce").dropna()
            if len(values):
                lines.append(
                    [text(defense), text(attack), text(arena), text(name.removeprefix(prefix)),
                     f"{values.mean():.3g}", f"{values.min():.3g} to {values.max():.3g}",
                     str(len(values))]
                )  # fmt: skip
    headers = ["defense", "attack", "trained on", "what", "mean", "range", "n"]
    return table(title, headers, lines, words_first=4) if lines else ""


def loss_lines(material: Material) -> Titled:
    """Return the losses of poison and of the rest against steps, for each defense and attack."""
    rows = material.rows.drop_duplicates("trial").set_index("trial")
    attacks, arenas = attack_column(rows), arena_column(rows)
    several = arenas.nunique() > 1
    groups: dict[str, list[str]] = {}
    for trial in material.losses:
        if trial in rows.index:
            among = f" · {arenas[trial]}" if several else ""
            title = f"{rows['defense'][trial]}, {attacks[trial]}: loss by step{among}"
            groups.setdefault(title, []).append(trial)
    return [(title, _losses(material, rows, trials)) for title, trials in groups.items()]


def _losses(material: Material, rows: pd.DataFrame, trials: list[str]) -> go.Figure:
    figure, shown = go.Figure(), set()
    for trial in trials:
        for group, quartiles in material.losses[trial].items():
            name, color, dash = GROUPS[group]
            low, middle, high = np.maximum(quartiles, 1e-6)
            steps = np.arange(1, len(middle) + 1)
            who = f"{name}, seed {number(rows['seed'][trial]):g}"
            figure.add_scatter(
                x=np.concatenate([steps, steps[::-1]]), y=np.concatenate([high, low[::-1]]),
                mode="lines", fill="toself", fillcolor=color, opacity=0.12, line={"width": 0},
                legendgroup=group, showlegend=False, hoverinfo="skip",
            )  # fmt: skip
            figure.add_scatter(
                x=steps, y=middle, name=name, legendgroup=group,
                showlegend=group not in shown, hovertext=label(who), mode="lines+markers",
                line={"color": color, "dash": dash},
            )  # fmt: skip
            shown.add(group)
    figure.update_xaxes(title="step of the method", dtick=1 if len(steps) < 25 else None)
    figure.update_yaxes(title="cross-entropy", type="log")
    return plain(figure, 320 + legend_height(sorted(shown)))
