"""The gain of tuning: the table of held-out metrics, and figures of the searches; pure."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from raysweep.reports.figures import COLORS, DASHES, SYMBOLS, Titled, label, legend_height, plain
from raysweep.reports.html_elements import badges, note, plots, seconds, table, text
from raysweep.reports.material import Material
from raysweep.reports.tables import percent, short
from raysweep.results.tuned import DecisionCurve, SearchAccount, Tuned, TunedRow
from raysweep.sweep.tuning import COSTS, Labels, MetricName, Parameters

SEEN: dict[Labels, str] = {
    "oracle": "oracle: tuned on the labels of the very attack that it is reported on",
    "transfer": "transfer: tuned on the labels of other attacks alone",
    "clean_only": "clean only: tuned on the reserved clean set, without labels of any attack",
}
MOST_CURVES = 60


def section(material: Material) -> str:
    """Return the section on tuning as HTML; empty if the sweep was not tuned."""
    tuned = material.tuned
    if tuned is None or not tuned.rows:
        return ""
    settings = tuned.settings
    goals = ", ".join(f"{one.goal} {one.name}" for one in settings.metric)
    bounds = " and ".join(settings.constraints) or "no constraint"
    introduction = note(
        f"{badges(settings.labels)} {text(SEEN[settings.labels])}. Sought: {text(goals)}, "
        f"{text(bounds)}, "
        f"{text(settings.over)} of the instances. “own”: the method’s own parameters; "
        "“oracle”: the best, within the constraints, for the held-out instances of all that was "
        "tried, which no defender can know. Brackets: 95 % interval, of the "
        "inputs of one model, of three seeds or more, or of ten families of attacks or more."
    )
    figures = [
        *_gaps(tuned), *_pareto(tuned), *_histories(tuned), *_importances(tuned),
        *_curves(tuned),
    ]  # fmt: skip
    return introduction + _table([*tuned.rows, *tuned.means]) + plots(figures)


def _value(metric: MetricName, value: float) -> str:
    return seconds(value) if metric in COSTS else percent(value)


def _table(rows: list[TunedRow]) -> str:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    headers = ["held out", "defense", "badges", "parameters"]
    for metric in metrics:
        headers += [f"{_named(metric)} tuned", "own", "oracle"]
    lines = []
    for row in rows:
        values = _said(row.parameters)
        comment = f"{values} ({row.note})" if row.note else values
        line = [text(row.held_out), text(row.defense), badges(row.labels), text(comment)]
        for metric in metrics:
            line += _compared(row, metric)
        lines.append([*line, text(row.tried), seconds(row.seconds), seconds(row.gpu_seconds)])
    headers += ["tried", "seconds spent", "GPU seconds spent"]
    return table("Tuned parameters, reported where they were held out", headers, lines,
                 words_first=4)  # fmt: skip


def _compared(row: TunedRow, metric: MetricName) -> list[str]:
    """Return one metric of a row as cells: tuned, own, oracle; dashes where it has none."""
    compared = row.metrics.get(metric)
    if compared is None:
        return [_value(metric, math.nan)] * 3
    low, high = compared.interval or (math.nan, math.nan)
    interval = "" if math.isnan(low) else f" [{_value(metric, low)}–{_value(metric, high)}]"
    own, oracle = _value(metric, compared.default), _value(metric, compared.oracle)
    return [_value(metric, compared.tuned) + interval, own, oracle]


def _gaps(tuned: Tuned) -> Titled:
    """Return the figure of gains over the method's own parameters, by defense and held-out part."""
    objective = tuned.settings.metric[0]
    metric, sign = objective.name, -1 if objective.goal == "minimize" else 1
    first = [row for row in tuned.rows if row.point == 0 and metric in row.metrics]
    parts = list(dict.fromkeys(row.held_out for row in first))
    figure = go.Figure()
    for turn, part in enumerate(parts):
        rows = [row for row in first if row.held_out == part]
        figure.add_bar(
            x=[label(row.defense) for row in rows],
            y=[sign * _gain(row, metric) for row in rows],
            name=label(part),
            marker={"color": COLORS[turn % len(COLORS)],
                    "pattern": {"shape": ("", "/", "x", ".")[turn // len(COLORS) % 4]}},
        )  # fmt: skip
    figure.update_layout(barmode="group")
    figure.update_yaxes(title=metric if metric in COSTS else "points")
    title = f"Gain in {_named(metric)} over the method's own parameters, by what was held out"
    return [(title, plain(figure, 340 + legend_height(parts), 300 + 40 * len(first)))]


def _gain(row: TunedRow, metric: MetricName) -> float:
    compared = row.metrics[metric]
    return _drawn(metric, compared.tuned - compared.default)


def _curves(tuned: Tuned) -> Titled:
    """Return TPR and FPR against a decision parameter; the tuned value is a vertical line."""
    figures = []
    with_curve = [(one, one.curve) for one in tuned.searches if one.curve is not None]
    for search, curve in with_curve[:MOST_CURVES]:
        title = f"{search.defense} where {search.held_out} was held out: rates by {curve.parameter}"
        figures.append((title, _rates(curve)))
    return figures


def _rates(curve: DecisionCurve) -> go.Figure:
    values = [point.value for point in curve.points]
    rates = {
        "tpr": [100.0 * point.tpr for point in curve.points],
        "fpr": [100.0 * point.fpr for point in curve.points],
    }
    figure = go.Figure()
    for turn, (metric, shares) in enumerate(rates.items()):
        figure.add_scatter(
            x=values, y=shares, mode="lines", name=metric.upper(),
            line={"color": COLORS[turn], "dash": DASHES[turn]},
        )  # fmt: skip
    # A trace, not a shape: shapes are not drawn at the edge of a logarithmic axis.
    figure.add_scatter(
        x=[curve.chosen] * 2, y=[0, 100], mode="lines", name="tuned",
        line={"color": COLORS[6], "dash": "dot"},
    )  # fmt: skip
    log = min(values) > 0 and max(values) / min(values) >= 20
    figure.update_xaxes(title=curve.parameter, type="log" if log else "linear")
    figure.update_yaxes(title="%", range=[-4, 104])
    return plain(figure, 300)


def _drawn(metric: MetricName, value: float) -> float:
    """Return a metric as figures show it: shares in percent, seconds as they are."""
    return float(value) * (1 if metric in COSTS else 100)


def _axis(metric: MetricName) -> str:
    return metric if metric in COSTS else f"{_named(metric)}, %"


def _named(metric: MetricName) -> str:
    """Return a metric as people write it."""
    if metric in COSTS:
        return metric
    return {"youden": "TPR − FPR", "tpr_at_1fpr": "TPR at 1 % FPR"}.get(metric, metric.upper())


def _said(parameters: Parameters) -> str:
    return ", ".join(f"{name}={short(value)}" for name, value in parameters.items())


def _by_defense(searches: list[SearchAccount]) -> dict[str, list[SearchAccount]]:
    grouped: dict[str, list[SearchAccount]] = {}
    for search in searches:
        grouped.setdefault(search.defense, []).append(search)
    return grouped


def _histories(tuned: Tuned) -> Titled:
    """Return every candidate's first objective in the order of asking, a figure a defense."""
    figures, metric = [], tuned.settings.metric[0].name
    for defense, searches in _by_defense([one for one in tuned.searches if one.history]).items():
        figure = go.Figure()
        for turn, search in enumerate(searches):
            history = search.history or ()
            figure.add_scatter(
                x=[one.number for one in history],
                y=[_drawn(metric, one.metrics.get(metric, math.nan)) for one in history],
                hovertext=[f"{label(_said(one.parameters))} ({one.state})" for one in history],
                name=label(search.held_out), mode="markers",
                marker={"color": COLORS[turn % len(COLORS)], "size": 7,
                        "symbol": SYMBOLS[turn % len(SYMBOLS)]},
            )  # fmt: skip
        figure.update_xaxes(title="candidate")
        figure.update_yaxes(title=_axis(metric))
        title = f"{defense}: candidates in the order of asking, by what was held out"
        names = [search.held_out for search in searches]
        figures.append((title, plain(figure, 320 + legend_height(names))))
    return figures


def _importances(tuned: Tuned) -> Titled:
    """Return figures of each parameter's importance, one for each defense."""
    figures = []
    for defense, searches in _by_defense([one for one in tuned.searches if one.importance]).items():
        figure = go.Figure()
        for turn, search in enumerate(searches):
            importance = search.importance or {}
            figure.add_bar(
                x=[label(name) for name in importance],
                y=list(importance.values()),
                name=label(search.held_out), marker_color=COLORS[turn % len(COLORS)],
            )  # fmt: skip
        figure.update_layout(barmode="group")
        figure.update_yaxes(title="importance", range=[0, 1.02])
        title = f"{defense}: importance of parameters (PED-ANOVA), by what was held out"
        names = [search.held_out for search in searches]
        figures.append((title, plain(figure, 300 + legend_height(names))))
    return figures


def _pareto(tuned: Tuned) -> Titled:
    """Return the candidates and the front in the plane of the first two objectives."""
    if len(tuned.settings.metric) < 2:
        return []
    x, y = (one.name for one in tuned.settings.metric[:2])
    figures = []
    for search in tuned.searches:
        figure = go.Figure()
        if search.history:
            cloud = [one.metrics for one in search.history]
            figure.add_scatter(
                x=[_drawn(x, one.get(x, math.nan)) for one in cloud],
                y=[_drawn(y, one.get(y, math.nan)) for one in cloud],
                mode="markers", name="tried, where tuned", marker={"color": COLORS[6], "size": 6},
            )  # fmt: skip
        held = [
            row for row in tuned.rows
            if (row.defense, row.held_out) == (search.defense, search.held_out)
        ]  # fmt: skip
        figure.add_scatter(
            x=[_drawn(x, _tuned(row, x)) for row in held],
            y=[_drawn(y, _tuned(row, y)) for row in held],
            hovertext=[label(_said(row.parameters)) for row in held],
            mode="markers", name="front, where held out",
            marker={"color": COLORS[0], "size": 9, "symbol": "diamond"},
        )  # fmt: skip
        figure.update_xaxes(title=_axis(x))
        figure.update_yaxes(title=_axis(y))
        title = f"{search.defense}, {search.held_out} held out: {_axis(x)} and {_axis(y)}"
        figures.append((title, plain(figure, 380)))
    return figures


def _tuned(row: TunedRow, metric: MetricName) -> float:
    compared = row.metrics.get(metric)
    return math.nan if compared is None else compared.tuned
