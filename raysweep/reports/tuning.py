"""The gain of tuning: the table of held-out metrics, and figures of the searches; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raysweep.reports.drawings import Drawing, Line
from raysweep.reports.sheets import Column, Sheet, seconds
from raysweep.reports.tables import percent, short
from raysweep.results.accounts import DecisionCurve, SearchAccount
from raysweep.results.tuned import Tuned, TunedRow
from raysweep.sweep.ranges import Parameters
from raysweep.sweep.tuning import COSTS, Labels, MetricName

SEEN: dict[Labels, str] = {
    "oracle": "oracle: tuned on the labels of the very attack that it is reported on",
    "transfer": "transfer: tuned on the labels of other attacks alone",
    "clean_only": "clean only: tuned on the reserved clean set, without labels of any attack",
}
NAMED: dict[MetricName, str] = {
    "youden": "TPR − FPR", "tpr_at_1fpr": "TPR at 1 % FPR",
    "false_alarms": "false alarms at rate 0", "verdict_correct": "right verdicts",
}  # fmt: skip


def split(tuned: Tuned) -> str:
    """Return the third split that all rows are measured on, such as `seed 3, 4`; else empty."""
    parts = tuned.settings.report_on.items()
    return ", ".join(f"{part} {', '.join(map(str, values))}" for part, values in parts)


def sentence(tuned: Tuned) -> str:
    """Return the objectives and bounds of the searches, and the labels that they have seen."""
    settings = tuned.settings
    goals = ", ".join(f"{one.goal} {one.name}" for one in settings.metric)
    bounds = " and ".join(settings.constraints) or "no constraint"
    third = f" Measured on {split(tuned)} alone, which no search has seen." if split(tuned) else ""
    return (
        f"{SEEN[settings.labels]}.{third} Sought: {goals}, {bounds}, {settings.over} of the "
        "instances. “own”: the method’s own parameters; “oracle”: the best, within the "
        "constraints, for the held-out instances of all that was tried, which no defender can "
        "know. Brackets: 95 % interval, of the inputs of one model, of three seeds or more, or of "
        "ten families of "
        "attacks or more."
    )


def sheet(tuned: Tuned) -> Sheet:
    """Return the table of tuned parameters, reported where they were held out."""
    rows = [*tuned.rows, *tuned.means]
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    comments = [
        f"{_said(row.parameters)} ({row.note})" if row.note else _said(row.parameters)
        for row in rows
    ]
    columns = [
        Column(title="defense", values=[row.defense for row in rows]),
        Column(title="held out", values=[row.held_out for row in rows]),
        Column(title="badges", values=[row.labels for row in rows], shown="badges"),
        Column(title="parameters", values=comments),
    ]
    for metric in metrics:
        cells = [_compared(row, metric) for row in rows]
        titles = (f"{_named(metric)} tuned", "own", "oracle")
        columns += [
            Column(title=title, values=[cell[place] for cell in cells])
            for place, title in enumerate(titles)
        ]
    columns += [
        Column(title="tried", values=[row.tried for row in rows], shown="number"),
        Column(title="seconds spent", values=[row.seconds for row in rows], shown="seconds"),
        Column(title="GPU seconds spent", values=[row.gpu_seconds for row in rows],
               shown="seconds"),
    ]  # fmt: skip
    return Sheet(title="Tuned parameters, reported where they were held out", columns=columns)


def drawings(tuned: Tuned) -> list[Drawing]:
    """Return the figures of gains, fronts, histories, importances and decision curves."""
    return [
        *_gaps(tuned), *_pareto(tuned), *_histories(tuned), *_importances(tuned), *_curves(tuned)
    ]  # fmt: skip


def _value(metric: MetricName, value: float) -> str:
    return seconds(value) if metric in COSTS else percent(value)


def _compared(row: TunedRow, metric: MetricName) -> list[str]:
    """Return one metric of a row as text: tuned, own, oracle; dashes where it has none."""
    compared = row.metrics.get(metric)
    if compared is None:
        return [_value(metric, math.nan)] * 3
    low, high = compared.interval or (math.nan, math.nan)
    interval = "" if math.isnan(low) else f" [{_value(metric, low)}–{_value(metric, high)}]"
    own, oracle = _value(metric, compared.default), _value(metric, compared.oracle)
    return [_value(metric, compared.tuned) + interval, own, oracle]


def _gaps(tuned: Tuned) -> list[Drawing]:
    """Return the figure of gains over the method's own parameters, by defense and held-out part."""
    objective = tuned.settings.metric[0]
    metric, sign = objective.name, -1 if objective.goal == "minimize" else 1
    first = [row for row in tuned.rows if row.point == 0 and metric in row.metrics]
    lines = []
    for part in dict.fromkeys(row.held_out for row in first):
        rows = [row for row in first if row.held_out == part]
        gains = np.array([sign * _gain(row, metric) for row in rows])
        lines.append(Line(name=part, x=[row.defense for row in rows], y=gains, shape="bars"))
    title = f"Gain in {_named(metric)} over the method's own parameters, by what was held out"
    unit = metric if metric in COSTS else "points"
    return [Drawing(title=title, x_title="", y_title=unit, lines=lines)]


def _gain(row: TunedRow, metric: MetricName) -> float:
    compared = row.metrics[metric]
    return _drawn(metric, compared.tuned - compared.default)


def _curves(tuned: Tuned) -> list[Drawing]:
    """Return TPR and FPR against a decision parameter; the tuned value is a vertical line."""
    return [
        _rates(
            f"{one.defense} where {one.held_out} was held out: rates by {one.curve.parameter}",
            one.curve,
        )
        for one in tuned.searches
        if one.curve is not None
    ]


def _rates(title: str, curve: DecisionCurve) -> Drawing:
    values = np.array([point.value for point in curve.points])
    tpr = np.array([100.0 * point.tpr for point in curve.points])
    fpr = np.array([100.0 * point.fpr for point in curve.points])
    chosen = np.array([curve.chosen] * 2)
    return Drawing(
        title=title, x_title=curve.parameter, y_title="%", y_range=(-4, 104),
        x_log=bool(values.min() > 0 and values.max() / values.min() >= 20),
        lines=[
            Line(name="TPR", x=values, y=tpr), Line(name="FPR", x=values, y=fpr),
            Line(name="tuned", x=chosen, y=np.array([0.0, 100.0]), shape="rule"),
        ],
    )  # fmt: skip


def _drawn(metric: MetricName, value: float) -> float:
    """Return a metric as figures show it: shares in percent, seconds as they are."""
    return float(value) * (1 if metric in COSTS else 100)


def _axis(metric: MetricName) -> str:
    return metric if metric in COSTS else f"{_named(metric)}, %"


def _named(metric: MetricName) -> str:
    """Return a metric as people write it."""
    if metric in COSTS:
        return metric
    return NAMED.get(metric, metric.upper())


def _said(parameters: Parameters) -> str:
    return ", ".join(f"{name}={short(value)}" for name, value in parameters.items())


def _by_defense(searches: Sequence[SearchAccount]) -> dict[str, list[SearchAccount]]:
    grouped: dict[str, list[SearchAccount]] = {}
    for search in searches:
        grouped.setdefault(search.defense, []).append(search)
    return grouped


def _histories(tuned: Tuned) -> list[Drawing]:
    """Return every candidate's first objective in the order of asking, a figure a defense."""
    found, metric = [], tuned.settings.metric[0].name
    for defense, searches in _by_defense([one for one in tuned.searches if one.history]).items():
        lines = []
        for search in searches:
            history = search.history or ()
            values = [_drawn(metric, one.metrics.get(metric, math.nan)) for one in history]
            lines.append(
                Line(
                    name=search.held_out, x=np.array([float(one.number) for one in history]),
                    y=np.array(values), shape="points",
                    label=[f"{_said(one.parameters)} ({one.state})" for one in history],
                )
            )  # fmt: skip
        title = f"{defense}: candidates in the order of asking, by what was held out"
        found.append(Drawing(title=title, x_title="candidate", y_title=_axis(metric), lines=lines))
    return found


def _importances(tuned: Tuned) -> list[Drawing]:
    """Return figures of each parameter's importance, one for each defense."""
    found = []
    for defense, searches in _by_defense([one for one in tuned.searches if one.importance]).items():
        lines = [
            Line(name=search.held_out, x=list(search.importance or {}),
                 y=np.array(list((search.importance or {}).values())), shape="bars")
            for search in searches
        ]  # fmt: skip
        title = f"{defense}: importance of parameters (PED-ANOVA), by what was held out"
        found.append(
            Drawing(title=title, x_title="", y_title="importance", lines=lines, y_range=(0, 1.02))
        )
    return found


def _pareto(tuned: Tuned) -> list[Drawing]:
    """Return the candidates and the front in the plane of the first two objectives."""
    if len(tuned.settings.metric) < 2:
        return []
    x, y = (one.name for one in tuned.settings.metric[:2])
    found = []
    for search in tuned.searches:
        cloud = [one.metrics for one in search.history or ()]
        held = [
            row for row in tuned.rows
            if (row.defense, row.held_out) == (search.defense, search.held_out)
        ]  # fmt: skip
        tried = Line(
            name="tried, where tuned", shape="points",
            x=np.array([_drawn(x, one.get(x, math.nan)) for one in cloud]),
            y=np.array([_drawn(y, one.get(y, math.nan)) for one in cloud]),
        )  # fmt: skip
        front = Line(
            name="front, where held out", shape="points",
            label=[_said(row.parameters) for row in held],
            x=np.array([_drawn(x, _tuned(row, x)) for row in held]),
            y=np.array([_drawn(y, _tuned(row, y)) for row in held]),
        )  # fmt: skip
        title = f"{search.defense}, {search.held_out} held out: {_axis(x)} and {_axis(y)}"
        lines = [tried, front] if cloud else [front]
        found.append(Drawing(title=title, x_title=_axis(x), y_title=_axis(y), lines=lines))
    return found


def _tuned(row: TunedRow, metric: MetricName) -> float:
    compared = row.metrics.get(metric)
    return math.nan if compared is None else compared.tuned
