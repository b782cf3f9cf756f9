"""The figures of a report, as Plotly figures; pure."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from raysweep.report.material import Curve, Material
from raysweep.report.tables import METRICS, aggregate, attack_column, percent, with_detection

NAMES = {"ca": "CA", "asr": "ASR", "tpr": "TPR", "fpr": "FPR"}
# Good is dark in every map: CA and TPR high, ASR and FPR low. Cividis reads without color vision.
GOOD_IS_HIGH = {"ca": True, "asr": False, "tpr": True, "fpr": False}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


def _plain(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1a1a1a"},
        legend={"orientation": "h", "y": -0.2},
    )
    figure.update_xaxes(automargin=True, gridcolor="#e5e5e5")
    figure.update_yaxes(automargin=True, gridcolor="#e5e5e5")
    return figure


def heat_maps(rows: pd.DataFrame) -> list[tuple[str, go.Figure]]:
    """Return an attack × defense map for each metric that is defined somewhere."""
    merged = with_detection(rows)
    merged["attack"] = attack_column(rows)
    means = aggregate(merged, ["attack", "defense"], METRICS)
    attacks = list(dict.fromkeys(means["attack"]))
    defenses = list(dict.fromkeys(means["defense"]))
    figures = []
    for metric in METRICS:
        table = means.pivot_table(index="defense", columns="attack", values=metric, dropna=False)
        table = table.reindex(index=defenses, columns=attacks)
        values = table.to_numpy(float)
        if np.isnan(values).all():
            continue
        figure = go.Figure(
            go.Heatmap(
                z=values * 100,
                x=attacks,
                y=defenses,
                text=[[percent(v) for v in line] for line in values],
                texttemplate="%{text}",
                colorscale="Cividis_r" if GOOD_IS_HIGH[metric] else "Cividis",
                zmin=0,
                zmax=100,
                hovertemplate="%{y}, %{x}: %{text} %<extra></extra>",
                colorbar={"title": "%"},
            )
        )
        figure.update_yaxes(autorange="reversed")
        figure.update_layout(title=f"{NAMES[metric]} in percent, mean over seeds")
        figures.append((NAMES[metric], _plain(figure, 120 + 34 * len(defenses))))
    return figures


def rate_lines(rows: pd.DataFrame) -> list[tuple[str, go.Figure]]:
    """Return metrics against poison rate, a figure for each attack with several rates."""
    merged = with_detection(rows)
    figures = []
    for attack, part in merged.groupby("attack", sort=False):
        if part["rate"].nunique() < 2:
            continue
        means = aggregate(part, ["defense", "rate"], METRICS)
        for metric in METRICS:
            if means[metric].isna().all():
                continue
            figure = go.Figure()
            for number, (defense, line) in enumerate(means.groupby("defense", sort=False)):
                ordered = line.sort_values("rate")
                figure.add_scatter(
                    x=100 * ordered["rate"],
                    y=100 * ordered[metric],
                    error_y={
                        "array": 100 * (ordered[f"{metric}_high"] - ordered[metric]).fillna(0),
                        "arrayminus": 100 * (ordered[metric] - ordered[f"{metric}_low"]).fillna(0),
                    },
                    name=str(defense),
                    mode="lines+markers",
                    line={"color": COLORS[number % len(COLORS)]},
                    marker={"symbol": number},
                )
            figure.update_layout(title=f"{attack}: {NAMES[metric]} against poison rate")
            figure.update_xaxes(title="poison rate, %")
            figure.update_yaxes(title=f"{NAMES[metric]}, %", range=[-2, 102])
            figures.append((f"{attack}, {NAMES[metric]}", _plain(figure, 420)))
    return figures


def roc_curves(material: Material) -> list[tuple[str, go.Figure]]:
    """Return ROC curves from stored scores, a figure for each attack and kind of scores."""
    rows = material.rows.set_index("trial")
    seeds = rows["seed"].astype(int).to_dict()
    groups: dict[tuple[str, str], list[tuple[str, int, Curve]]] = {}
    attacks = attack_column(rows)
    for (trial, what), curve in material.curves.items():
        row = rows.loc[trial]
        entry = (str(row["defense"]), seeds[trial], curve)
        groups.setdefault((str(attacks[trial]), what), []).append(entry)
    figures = []
    for (attack, what), entries in groups.items():
        figure = go.Figure()
        colors: dict[str, str] = {}
        for defense, seed, (fpr, tpr) in entries:
            first = defense not in colors
            color = colors.setdefault(defense, COLORS[len(colors) % len(COLORS)])
            figure.add_scatter(
                x=fpr, y=tpr, name=defense, legendgroup=defense, showlegend=first, mode="lines",
                line={"color": color, "width": 1.5}, hovertext=f"{defense}, seed {seed}",
            )  # fmt: skip
        figure.add_scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#888"}, name="chance"
        )
        title = "training samples" if what == "train" else "test inputs"
        figure.update_layout(title=f"{attack}: scores of {title}, a line per seed")
        figure.update_xaxes(title="FPR", range=[-0.02, 1.02])
        figure.update_yaxes(title="TPR", range=[-0.02, 1.02])
        figures.append((f"{attack}, {title}", _plain(figure, 440)))
    return figures


def cost_bars(material: Material) -> list[tuple[str, go.Figure]]:
    """Return seconds by stage kind: as run, and as they would be if nothing were shared."""
    stages = material.stages
    kinds = list(dict.fromkeys(stages["kind"]))
    once = [stages.loc[stages["kind"] == k, "seconds"].sum() for k in kinds]
    alone = [
        (stages["seconds"] * stages["trials"])[stages["kind"] == k].sum() for k in kinds
    ]  # fmt: skip
    figure = go.Figure(
        [
            go.Bar(x=kinds, y=once, name="as run, shared", marker_color=COLORS[0]),
            go.Bar(x=kinds, y=alone, name="if every trial did its own", marker_color=COLORS[1]),
        ]
    )
    figure.update_layout(title="Seconds by stage kind", barmode="group")
    figure.update_yaxes(title="seconds")
    return [("seconds by stage kind", _plain(figure, 380))]


def picture(image_CHW: np.ndarray, side: int = 96) -> str:
    """Return a uint8 image as a PNG data URI, enlarged without smoothing."""
    from PIL import Image

    pixels = image_CHW.transpose(1, 2, 0)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3])
    factor = max(1, math.ceil(side / max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def difference(clean: np.ndarray, triggered: np.ndarray) -> np.ndarray:
    """Return |triggered - clean| stretched to the full range, uint8."""
    gap = np.abs(triggered.astype(int) - clean.astype(int))
    stretched: np.ndarray = (gap * (255 / max(int(gap.max()), 1))).astype(np.uint8)
    return stretched
