"""The figures of a report, as Plotly figures; pure."""

from __future__ import annotations

import html
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from raysweep.metrics.curves import Roc, Scored
from raysweep.metrics.names import INPUT
from raysweep.reports.material import Material
from raysweep.reports.tables import (
    METRICS,
    SHOWN,
    aggregate,
    attack_column,
    finished,
    number,
    percent,
    setting_column,
)

# Good is dark in every map: CA and TPR high, ASR and FPR low. Cividis reads without color vision.
GOOD_IS_HIGH = {metric: metric.endswith(("ca", "tpr")) for metric in METRICS}
# Okabe and Ito's colors that stand out on white and on black; symbols and dashes go on from there.
COLORS = ("#0080c8", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
Titled = list[tuple[str, go.Figure]]


def label(name: object) -> str:
    """Return a name as text: Plotly reads pseudo-HTML, and data must not become a link."""
    return html.escape(str(name), quote=False)


def plain(figure: go.Figure, height: int, least_width: int = 300) -> go.Figure:
    """Give a figure the page's look, its height, and the width below which it scrolls."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 34, "b": 8},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        meta={"least_width": least_width},
        template="none",
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    return figure


def legend_height(names: list[str]) -> int:
    """Return the height that a legend of these names needs on a phone."""
    return 22 * len(names) + 60 if len(names) < 4 else 22 * math.ceil(len(names) / 2) + 70


def _prepared(rows: pd.DataFrame) -> pd.DataFrame:
    merged = finished(rows).copy()
    merged["label"] = merged["attack"]
    merged["attack"] = attack_column(merged)
    merged["arena"] = setting_column(merged)
    return merged


def _among(arena: object, several: bool) -> str:
    return f" · {arena}" if several else ""


def heat_maps(rows: pd.DataFrame) -> Titled:
    """Return an attack × defense map for each metric that is defined somewhere, in each arena."""
    merged = _prepared(rows)
    several = merged["arena"].nunique() > 1
    figures = []
    for arena, part in merged.groupby("arena", sort=False):
        means = aggregate(part, ["attack", "defense"], METRICS)
        for metric in METRICS:
            if not means[metric].isna().all():
                title = f"{SHOWN[metric]} in percent, mean over seeds{_among(arena, several)}"
                figures.append((title, _heat_map(means, metric)))
    return figures


def _heat_map(means: pd.DataFrame, metric: str) -> go.Figure:
    attacks = list(dict.fromkeys(means["attack"]))
    defenses = list(dict.fromkeys(means["defense"]))
    table = means.pivot_table(index="defense", columns="attack", values=metric, dropna=False)
    values = table.reindex(index=defenses, columns=attacks).to_numpy(float)
    x, y = [label(a) for a in attacks], [label(d) for d in defenses]
    undefined = go.Heatmap(
        z=np.where(np.isnan(values), 0.0, np.nan),
        x=x, y=y, xgap=2, ygap=2, showscale=False,
        colorscale=[[0, "rgba(128,128,128,.18)"], [1, "rgba(128,128,128,.18)"]],
        hovertemplate="%{y}, %{x}: undefined<extra></extra>",
    )  # fmt: skip
    measured = go.Heatmap(
        z=100 * values,
        x=x, y=y, xgap=2, ygap=2, zmin=0, zmax=100,
        text=[[percent(v) for v in line] for line in values],
        texttemplate="%{text}",
        colorscale="Cividis_r" if GOOD_IS_HIGH[metric] else "Cividis",
        hovertemplate="%{y}, %{x}: %{text} %<extra></extra>",
        colorbar={"title": "%", "thickness": 12},
    )  # fmt: skip
    figure = go.Figure([undefined, measured])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False)
    longest = max(map(len, defenses))
    return plain(figure, 150 + 34 * len(defenses), 90 + 7 * longest + 64 * len(attacks))


def rate_lines(rows: pd.DataFrame) -> Titled:
    """Return metrics against poison rate, for each arena and attack with several rates."""
    merged = _prepared(rows)
    several = merged["arena"].nunique() > 1
    figures = []
    for (arena, attack), part in merged.groupby(["arena", "label"], sort=False):
        if part["rate"].nunique() < 2:
            continue
        for metric in METRICS:
            if metric in part and pd.to_numeric(part[metric], errors="coerce").notna().any():
                title = f"{attack}: {SHOWN[metric]} against poison rate{_among(arena, several)}"
                figures.append((title, _rate_lines(part, metric)))
    return figures


def _rate_lines(part: pd.DataFrame, metric: str) -> go.Figure:
    means = aggregate(part, ["defense", "rate"], [metric])
    figure = go.Figure()
    names = []
    for turn, (defense, line) in enumerate(means.groupby("defense", sort=False)):
        ordered = line.sort_values("rate")
        if ordered[metric].isna().all():
            continue
        names.append(str(defense))
        color, symbol = COLORS[turn % len(COLORS)], SYMBOLS[turn % len(SYMBOLS)]
        # Where no interval is honest the values themselves are drawn.
        enough = ordered[f"{metric}_low"].notna()
        high = (ordered[f"{metric}_high"] - ordered[metric]).where(enough, 0)
        low = (ordered[metric] - ordered[f"{metric}_low"]).where(enough, 0)
        figure.add_scatter(
            x=100 * ordered["rate"],
            y=100 * ordered[metric],
            error_y={"array": 100 * high, "arrayminus": 100 * low, "visible": bool(enough.any())},
            name=label(defense), legendgroup=str(turn), mode="lines+markers",
            line={"color": color, "dash": DASHES[turn // len(COLORS) % len(DASHES)]},
            marker={"symbol": symbol, "size": 8},
        )  # fmt: skip
        points = part[part["defense"] == defense]
        figure.add_scatter(
            x=100 * points["rate"],
            y=100 * pd.to_numeric(points[metric], errors="coerce"),
            hovertext=[f"{label(defense)}, seed {s}" for s in points["seed"]],
            legendgroup=str(turn), showlegend=False, mode="markers", opacity=0.5,
            marker={"symbol": f"{symbol}-open", "color": color, "size": 6},
        )  # fmt: skip
    rates = part.loc[part["rate"] > 0, "rate"]
    far = (part["rate"] > 0).all() and rates.max() / rates.min() >= 20
    figure.update_xaxes(title="poison rate, %", type="log" if far else "linear")
    figure.update_yaxes(title=f"{SHOWN[metric]}, %", range=[-4, 104])
    return plain(figure, 300 + legend_height(names))


def roc_curves(material: Material) -> Titled:
    """Return ROC curves of stored scores, for each arena, attack and kind of scores.

    A line per trial, never a mean of curves; a mark where the trial's decision stands.
    """
    rows = material.rows.drop_duplicates("trial").set_index("trial")
    attacks, arenas = attack_column(rows), setting_column(rows)
    several = arenas.nunique() > 1
    groups: dict[tuple[str, str, Scored], list[tuple[str, Roc]]] = {}
    for (trial, what), curve in material.curves.items():
        if trial in rows.index:
            key = (str(arenas[trial]), str(attacks[trial]), what)
            groups.setdefault(key, []).append((trial, curve))
    figures = []
    for (arena, attack, what), entries in groups.items():
        scored = "training samples" if what == "train" else "test inputs"
        title = f"{attack}: scores of {scored}, a line per seed{_among(arena, several)}"
        figures.append((title, _roc(rows, what, entries)))
    return figures


def _roc(rows: pd.DataFrame, what: Scored, entries: list[tuple[str, Roc]]) -> go.Figure:
    figure = go.Figure()
    numbers: dict[str, int] = {}
    for trial, curve in entries:
        row = rows.loc[trial]
        defense = str(row["defense"])
        first = defense not in numbers
        turn = numbers.setdefault(defense, len(numbers))
        color = COLORS[turn % len(COLORS)]
        who = f"{label(defense)}, seed {row['seed']}"
        figure.add_scatter(
            x=curve.fpr, y=curve.tpr, name=label(defense), legendgroup=str(turn), showlegend=first,
            mode="lines", hovertext=who,
            line={"color": color, "width": 1.7,
                  "dash": DASHES[turn // len(COLORS) % len(DASHES)]},
        )  # fmt: skip
        point = [number(row.get(m if what == "train" else INPUT.of(m))) for m in ("fpr", "tpr")]
        if not any(map(math.isnan, point)):
            figure.add_scatter(
                x=point[:1], y=point[1:], legendgroup=str(turn), showlegend=False,
                mode="markers", hovertext=f"{who}: its decision",
                marker={"color": color, "size": 9, "symbol": SYMBOLS[turn % len(SYMBOLS)]},
            )  # fmt: skip
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#888"}, name="chance",
        hoverinfo="skip",
    )  # fmt: skip
    figure.update_xaxes(title="FPR", range=[-0.02, 1.02])
    figure.update_yaxes(title="TPR", range=[-0.02, 1.02])
    return plain(figure, 340 + legend_height([*numbers, "chance"]))


def cost_bars(material: Material) -> Titled:
    """Return seconds by stage kind: as run, and as they would be if nothing were shared."""
    stages = material.stages
    alone = (stages["seconds"] * stages["trials"]).groupby(stages["kind"], sort=False).sum()
    once = stages["seconds"].groupby(stages["kind"], sort=False).sum()
    kinds = [label(kind) for kind in once.index]
    figure = go.Figure(
        [
            go.Bar(x=kinds, y=once, name="once, shared", marker_color=COLORS[0]),
            go.Bar(x=kinds, y=alone, name="unshared", marker_color=COLORS[1]),
        ]
    )
    figure.update_layout(barmode="group")
    figure.update_yaxes(title="seconds")
    return [("Seconds by stage kind: shared, and if every trial did its own", plain(figure, 380))]
