"""The gain of tuning: the table of held-out metrics, and figures of the searches; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raysweep.reports.drawings import Drawing, Line
from raysweep.reports.sheets import Column, Sheet, seconds
from raysweep.reports.tables import percent, short
from raysweep.results.account import DecisionCurve, SearchAccount
from raysweep.results.tuned import Tuned, TunedRow
from raysweep.sweep.ranges import Parameters
from raysweep.sweep.tuning import COSTS, VISIBILITY, Knowledge, MetricName

SEEN: dict[Knowledge, str] = {
    "oracle": "oracle: tuned on the labels of the very attack that it is reported on",
    "transfer": "transfer: tuned on the labels of other attacks alone",
    "clean_only": "clean only: tuned on the reserved clean set, without labels of any attack",
}
NAMED: dict[MetricName, str] = {
    "youden": "TPR − FPR", "tpr_at_1fpr": "TPR at 1 % FPR",
    "false_alarms": "false alarms at rate 0", "verdict_correct": "right verdicts",
    "victim_asr": "ASR of the victim", "victim_ca": "CA of the victim", "rate": "rate", "l2": "L2",
    "linf": "L∞",
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


def sheets(tuned: Tuned) -> list[Sheet]:
    """Return the table of tuned parameters, reported where they were held out."""
    rows = [*tuned.rows, *tuned.means]
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    comments = [
        f"{parameters_text(row.parameters)} ({row.note})"
        if row.note
        else parameters_text(row.parameters)
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
        titles = (f"{named(metric)} tuned", "own", "oracle")
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
    return [Sheet(title="Tuned parameters, reported where they were held out", columns=columns)]


def drawings(tuned: Tuned) -> list[Drawing]:
    """Return the figures of gains, fronts, histories, importances and decision curves."""
    return [
        *_gaps(tuned), *fronts(tuned), *histories(tuned), *importances(tuned), *_curves(tuned)
    ]  # fmt: skip


def written(metric: MetricName, value: float) -> str:
    """Return a metric as text: seconds, distances as they are, shares in percent."""
    if metric in COSTS:
        return seconds(value)
    if metric in VISIBILITY:
        return "–" if math.isnan(value) else f"{value:.3f}"
    return percent(value)


def _compared(row: TunedRow, metric: MetricName) -> list[str]:
    """Return one metric of a row as text: tuned, own, oracle; dashes where it has none."""
    compared = row.metrics.get(metric)
    if compared is None:
        return [written(metric, math.nan)] * 3
    low, high = compared.interval or (math.nan, math.nan)
    interval = "" if math.isnan(low) else f" [{written(metric, low)}–{written(metric, high)}]"
    own, oracle = written(metric, compared.default), written(metric, compared.oracle)
    return [written(metric, compared.tuned) + interval, own, oracle]


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
    title = f"Gain in {named(metric)} over the method's own parameters, by what was held out"
    unit = metric if metric in COSTS else "points"
    return [Drawing(title=title, x_title="", y_title=unit, lines=lines)]


def _gain(row: TunedRow, metric: MetricName) -> float:
    compared = row.metrics[metric]
    return drawn(metric, compared.tuned - compared.default)


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


def drawn(metric: MetricName, value: float) -> float:
    """Return a metric as figures show it: shares in percent, seconds and distances as they are."""
    return float(value) * (1 if metric in (*COSTS, *VISIBILITY) else 100)


def axis(metric: MetricName) -> str:
    """Return the title of a metric's axis, with its unit."""
    return named(metric) if metric in (*COSTS, *VISIBILITY) else f"{named(metric)}, %"


def named(metric: MetricName) -> str:
    """Return a metric as people write it."""
    if metric in COSTS:
        return metric
    return NAMED.get(metric, metric.upper())


def parameters_text(parameters: Parameters) -> str:
    """Return parameters as text."""
    return ", ".join(f"{name}={short(value)}" for name, value in parameters.items())


def _by_subject(searches: Sequence[SearchAccount]) -> dict[str, list[SearchAccount]]:
    grouped: dict[str, list[SearchAccount]] = {}
    for search in searches:
        grouped.setdefault(search.subject, []).append(search)
    return grouped


def histories(tuned: Tuned) -> list[Drawing]:
    """Return every candidate's first objective in the order of asking, a figure a defense."""
    found, metric = [], tuned.settings.metric[0].name
    for subject, searches in _by_subject([one for one in tuned.searches if one.history]).items():
        lines = []
        for search in searches:
            history = search.history or ()
            values = [drawn(metric, one.metrics.get(metric, math.nan)) for one in history]
            lines.append(
                Line(
                    name=search.label, x=np.array([float(one.number) for one in history]),
                    y=np.array(values), shape="points",
                    label=[f"{parameters_text(one.parameters)} ({one.state})" for one in history],
                )
            )  # fmt: skip
        title = f"{subject}: candidates in the order of asking, by {_by(tuned)}"
        found.append(Drawing(title=title, x_title="candidate", y_title=axis(metric), lines=lines))
    return found


def _by(tuned: Tuned) -> str:
    return "what was known" if tuned.settings.who == "attack" else "what was held out"


def importances(tuned: Tuned) -> list[Drawing]:
    """Return figures of each parameter's importance, one for each defense."""
    found = []
    for subject, searches in _by_subject([one for one in tuned.searches if one.importance]).items():
        lines = [
            Line(name=search.label, x=list(search.importance or {}),
                 y=np.array(list((search.importance or {}).values())), shape="bars")
            for search in searches
        ]  # fmt: skip
        title = f"{subject}: importance of parameters (PED-ANOVA), by {_by(tuned)}"
        found.append(
            Drawing(title=title, x_title="", y_title="importance", lines=lines, y_range=(0, 1.02))
        )
    return found


def fronts(tuned: Tuned) -> list[Drawing]:
    """Return the candidates and the front in the plane of the first two objectives."""
    if len(tuned.settings.metric) < 2:
        return []
    x, y = (one.name for one in tuned.settings.metric[:2])
    found = []
    for search in tuned.searches:
        cloud = [one.metrics for one in search.history or ()]
        held = [
            row for row in tuned.rows
            if row.search == search.search
        ]  # fmt: skip
        tried = Line(
            name="tried, where tuned", shape="points",
            x=np.array([drawn(x, one.get(x, math.nan)) for one in cloud]),
            y=np.array([drawn(y, one.get(y, math.nan)) for one in cloud]),
        )  # fmt: skip
        front = Line(
            name="front, where held out", shape="points",
            label=[parameters_text(row.parameters) for row in held],
            x=np.array([drawn(x, _tuned(row, x)) for row in held]),
            y=np.array([drawn(y, _tuned(row, y)) for row in held]),
        )  # fmt: skip
        title = f"{search.title}: {axis(x)} and {axis(y)}"
        lines = [tried, front] if cloud else [front]
        found.append(Drawing(title=title, x_title=axis(x), y_title=axis(y), lines=lines))
    return found


def _tuned(row: TunedRow, metric: MetricName) -> float:
    compared = row.metrics.get(metric)
    return math.nan if compared is None else compared.tuned
