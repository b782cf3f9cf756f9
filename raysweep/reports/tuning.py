"""What tuning gained: the table of held-out metrics, and figures of how it was found; pure."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from raysweep.reports.elements import badges, note, plots, seconds, table, text
from raysweep.reports.figures import COLORS, DASHES, SYMBOLS, Titled, label, legend_height, plain
from raysweep.reports.material import Material
from raysweep.reports.tables import number, percent

Row = dict[str, Any]
SEEN = {
    "oracle": "oracle: tuned on the labels of the very attack that it is reported on",
    "transfer": "transfer: tuned on the labels of other attacks alone",
    "clean_only": "clean only: tuned on the reserved clean set, without labels of any attack",
}
COSTS = ("seconds", "gpu_seconds")
MOST_CURVES = 60


def section(material: Material) -> str:
    """Return the section on tuning as HTML; empty if the sweep was not tuned."""
    tuning = material.tuning
    if not tuning.get("rows"):
        return ""
    rows, settings = tuning["rows"], tuning["settings"]
    labels = str(settings["labels"])
    goals = ", ".join(f"{one['goal']} {one['name']}" for one in settings["metric"])
    bounds = " and ".join(settings["constraints"]) or "no constraint"
    said = note(
        f"{badges(labels)} {text(SEEN[labels])}. Sought: {text(goals)}, {text(bounds)}, "
        f"{text(settings['over'])} of the instances. “own”: the method’s own parameters; "
        "“oracle”: the best, within the constraints, for the held-out instances of all that was "
        "tried, which no defender can know. Brackets: 95 % interval of five instances or more, "
        "range of fewer, Wilson’s of one."
    )
    figures = [
        *_gaps(rows, settings), *_pareto(tuning), *_histories(tuning), *_importances(tuning),
        *_curves(tuning),
    ]  # fmt: skip
    return said + _table([*rows, *tuning.get("means", ())]) + plots(figures)


def _metrics(rows: list[Row]) -> list[str]:
    names = [name[6:] for row in rows for name in row if name.startswith("tuned_")]
    return [n for n in dict.fromkeys(names) if not n.endswith(("_low", "_high"))]


def _value(metric: str, value: object) -> str:
    return seconds(value) if metric in COSTS else percent(number(value))


def _table(rows: list[Row]) -> str:
    metrics = _metrics(rows)
    headers = ["held out", "defense", "badges", "parameters"]
    for metric in metrics:
        headers += [f"{_named(metric)} tuned", "own", "oracle"]
    lines = []
    for row in rows:
        values = ", ".join(f"{k}={_short(v)}" for k, v in row["parameters"].items())
        comment = f"{values} ({row['note']})" if row["note"] else values
        line = [text(row["held_out"]), text(row["defense"]), badges(row["labels"]), text(comment)]
        for metric in metrics:
            low, high = (row.get(f"tuned_{metric}_{end}") for end in ("low", "high"))
            interval = "" if math.isnan(number(low)) else (
                f" [{_value(metric, low)}–{_value(metric, high)}]"
            )  # fmt: skip
            line.append(_value(metric, row.get(f"tuned_{metric}")) + interval)
            line += [_value(metric, row.get(f"{who}_{metric}")) for who in ("default", "oracle")]
        lines.append([*line, text(row["tried"]), *(seconds(row[cost]) for cost in COSTS)])
    headers += ["tried", "seconds spent", "GPU seconds spent"]
    return table("Tuned parameters, reported where they were held out", headers, lines,
                 words_first=4)  # fmt: skip


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _gaps(rows: list[Row], settings: Row) -> Titled:
    """Return what tuning gains over the method's own parameters, by defense and held-out part."""
    metric = settings["metric"][0]["name"]
    sign = -1 if settings["metric"][0]["goal"] == "minimize" else 1
    first = [row for row in rows if row["point"] == 0 and f"tuned_{metric}" in row]
    parts = list(dict.fromkeys(row["held_out"] for row in first))
    figure = go.Figure()
    for turn, part in enumerate(parts):
        mine = [row for row in first if row["held_out"] == part]
        gains = [
            sign * _drawn(metric, number(r[f"tuned_{metric}"]) - number(r[f"default_{metric}"]))
            for r in mine
        ]
        figure.add_bar(
            x=[label(row["defense"]) for row in mine],
            y=gains,
            name=label(part),
            marker={"color": COLORS[turn % len(COLORS)],
                    "pattern": {"shape": ("", "/", "x", ".")[turn // len(COLORS) % 4]}},
        )  # fmt: skip
    figure.update_layout(barmode="group")
    figure.update_yaxes(title=metric if metric in COSTS else "points")
    title = f"Gain in {_named(metric)} over the method's own parameters, by what was held out"
    return [(title, plain(figure, 340 + legend_height(parts), 300 + 40 * len(first)))]


def _curves(tuning: Row) -> Titled:
    """Return TPR and FPR against a decision parameter; the tuned value is a vertical line."""
    figures = []
    with_curve = [one for one in tuning["searches"] if one.get("curve")]
    for search in with_curve[:MOST_CURVES]:
        curve = search["curve"]
        name, points = curve["parameter"], curve["points"]
        values = [point["value"] for point in points]
        figure = go.Figure()
        for turn, metric in enumerate(("tpr", "fpr")):
            figure.add_scatter(
                x=values, y=[100 * number(point[metric]) for point in points], mode="lines",
                name=metric.upper(), line={"color": COLORS[turn], "dash": DASHES[turn]},
            )  # fmt: skip
        # A trace, not a shape: shapes are not drawn at the edge of a logarithmic axis.
        figure.add_scatter(
            x=[curve["chosen"]] * 2, y=[0, 100], mode="lines", name="tuned",
            line={"color": COLORS[6], "dash": "dot"},
        )  # fmt: skip
        log = min(values) > 0 and max(values) / min(values) >= 20
        figure.update_xaxes(title=name, type="log" if log else "linear")
        figure.update_yaxes(title="%", range=[-4, 104])
        title = f"{search['defense']} where {search['held_out']} was held out: rates by {name}"
        figures.append((title, plain(figure, 300)))
    return figures


def _drawn(metric: str, value: object) -> float:
    """Return a metric as figures show it: shares in percent, seconds as they are."""
    return number(value) * (1 if metric in COSTS else 100)


def _axis(metric: str) -> str:
    return metric if metric in COSTS else f"{_named(metric)}, %"


def _named(metric: str) -> str:
    """Return a metric as people write it."""
    if metric in COSTS:
        return metric
    return {"youden": "TPR − FPR", "tpr_at_1fpr": "TPR at 1 % FPR"}.get(metric, metric.upper())


def _histories(tuning: Row) -> Titled:
    """Return every candidate's first objective in the order of asking, a figure a defense."""
    settings, figures = tuning["settings"], []
    metric = settings["metric"][0]["name"]
    studied = [one for one in tuning["searches"] if one.get("history")]
    for defense in dict.fromkeys(one["defense"] for one in studied):
        figure, names = go.Figure(), []
        for turn, search in enumerate(o for o in studied if o["defense"] == defense):
            names.append(search["held_out"])
            figure.add_scatter(
                x=[one["number"] for one in search["history"]],
                y=[_drawn(metric, one["metrics"].get(metric)) for one in search["history"]],
                hovertext=[
                    f"{label(_said(one['parameters']))} ({one['state']})"
                    for one in search["history"]
                ],
                name=label(search["held_out"]), mode="markers",
                marker={"color": COLORS[turn % len(COLORS)], "size": 7,
                        "symbol": SYMBOLS[turn % len(SYMBOLS)]},
            )  # fmt: skip
        figure.update_xaxes(title="candidate")
        figure.update_yaxes(title=_axis(metric))
        title = f"{defense}: candidates in the order of asking, by what was held out"
        figures.append((title, plain(figure, 320 + legend_height(names))))
    return figures


def _said(parameters: Row) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in parameters.items())


def _importances(tuning: Row) -> Titled:
    """Return how much each parameter mattered, a figure a defense."""
    weighed = [one for one in tuning["searches"] if one.get("importance")]
    figures = []
    for defense in dict.fromkeys(one["defense"] for one in weighed):
        figure, names = go.Figure(), []
        for turn, search in enumerate(o for o in weighed if o["defense"] == defense):
            names.append(search["held_out"])
            figure.add_bar(
                x=[label(name) for name in search["importance"]],
                y=list(search["importance"].values()),
                name=label(search["held_out"]), marker_color=COLORS[turn % len(COLORS)],
            )  # fmt: skip
        figure.update_layout(barmode="group")
        figure.update_yaxes(title="importance", range=[0, 1.02])
        title = f"{defense}: importance of parameters (PED-ANOVA), by what was held out"
        figures.append((title, plain(figure, 300 + legend_height(names))))
    return figures


def _pareto(tuning: Row) -> Titled:
    """Return the candidates and the front in the plane of the first two objectives."""
    settings = tuning["settings"]
    if len(settings["metric"]) < 2:
        return []
    x, y = (one["name"] for one in settings["metric"][:2])
    figures = []
    for search in tuning["searches"]:
        figure = go.Figure()
        cloud = [one["metrics"] for one in search.get("history", ())]
        if cloud:
            figure.add_scatter(
                x=[_drawn(x, one.get(x)) for one in cloud],
                y=[_drawn(y, one.get(y)) for one in cloud],
                mode="markers", name="tried, where tuned", marker={"color": COLORS[6], "size": 6},
            )  # fmt: skip
        held = [
            row for row in tuning["rows"]
            if (row["defense"], row["held_out"]) == (search["defense"], search["held_out"])
        ]  # fmt: skip
        figure.add_scatter(
            x=[_drawn(x, row.get(f"tuned_{x}")) for row in held],
            y=[_drawn(y, row.get(f"tuned_{y}")) for row in held],
            hovertext=[label(_said(row["parameters"])) for row in held],
            mode="markers", name="front, where held out",
            marker={"color": COLORS[0], "size": 9, "symbol": "diamond"},
        )  # fmt: skip
        figure.update_xaxes(title=_axis(x))
        figure.update_yaxes(title=_axis(y))
        title = f"{search['defense']}, {search['held_out']} held out: {_axis(x)} and {_axis(y)}"
        figures.append((title, plain(figure, 380)))
    return figures
