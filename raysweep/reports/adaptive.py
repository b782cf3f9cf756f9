"""Defenses under an attacker who searches: worst cases beside default ones, and findings; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from raysweep.reports.drawings import Drawing, Line
from raysweep.reports.sheets import Column, Sheet
from raysweep.reports.tuning import (
    axis,
    drawn,
    fronts,
    histories,
    importances,
    named,
    parameters_text,
    split,
    written,
)
from raysweep.results.tuned import Tuned, TunedRow
from raysweep.sweep.tuning import ATTACKED, Knowledge, MetricName, Tune

KNOWN: Mapping[Knowledge, str] = {
    "default": "the attack as the sweep file has it",
    "adaptive": "searched against the very defense of the row, which the attacker knows",
    "transferred": "searched against the other defenses, of which the row's is none",
}
NOTE = (
    "The worst is the worst of the three on the settings that they are measured on, which favors "
    "chance finds a little. Brackets: 95 % interval, of three seeds or more."
)


def sentence(tuned: Tuned) -> str:
    """Return the attacker's goals and bounds, what it met, and what the rows have seen."""
    settings = tuned.settings
    goals = ", ".join(f"{one.goal} {one.name}" for one in settings.metric)
    third = " All are measured on what the searches have seen, which favors what they found."
    if split(tuned):
        third = f" All are measured on {split(tuned)} alone, which no search has seen."
    known = "; ".join(f"{name}: {text}" for name, text in KNOWN.items())
    return (
        f"An attacker searched: {goals}, with {' and '.join(settings.constraints)}, "
        f"{settings.over} of the instances. It met {defense_text(settings)}. {known}.{third}"
    )


def defense_text(settings: Tune) -> str:
    """Return the form of the defenses that the attacker met, in words."""
    if settings.against == "own":
        return "defenses as the sweep file has them"
    return (
        f"defenses whose decision answers each candidate at its best: the highest TPR within an "
        f"FPR of {settings.budget:g}, by the labels of the very poison, which no defender has"
    )


def shown_metrics(tuned: Tuned) -> list[MetricName]:
    """Return the metrics of the tables: objectives and bounds, and others that some row has."""
    wanted = tuned.settings.named_metrics
    others = [
        name for name in ("tpr", "fpr", *ATTACKED)
        if any(_value(row, name) == _value(row, name) for row in tuned.rows)
    ]  # fmt: skip
    return list(dict.fromkeys((*wanted, *others)))


def _value(row: TunedRow, metric: MetricName) -> float:
    compared = row.metrics.get(metric)
    return math.nan if compared is None else compared.tuned


def with_interval(row: TunedRow, metric: MetricName) -> str:
    """Return a metric of a row as text, with its interval where there is one."""
    compared = row.metrics.get(metric)
    if compared is None:
        return "–"
    low, high = compared.interval or (math.nan, math.nan)
    value = written(metric, compared.tuned)
    return value if math.isnan(low) else f"{value} [{written(metric, low)}–{written(metric, high)}]"


def kept(row: TunedRow, settings: Tune) -> str:
    """Return `kept`, or the constraints that a row breaks where it is measured."""
    metrics = {name: one.tuned for name, one in row.metrics.items()}
    broken = [
        text for text, bound in zip(settings.constraints, settings.bounds, strict=True)
        if bound.metric in metrics and bound.excess(metrics) > 0
    ]  # fmt: skip
    return f"broken: {', '.join(broken)}" if broken else "kept" if metrics else "–"


def cases(tuned: Tuned) -> dict[tuple[str, str], dict[Knowledge, TunedRow]]:
    """Return attack and defense → what the attacker knew → the first row of it."""
    found: dict[tuple[str, str], dict[Knowledge, TunedRow]] = {}
    for row in tuned.rows:
        if row.attacker is not None and row.point == 0:
            found.setdefault((row.attacker.attack, row.defense), {})[row.labels] = row
    return found


def worst(by: Mapping[Knowledge, TunedRow], settings: Tune) -> Knowledge | None:
    """Return the knowledge by which a defense fares worst, of rows that keep all constraints."""
    objective = settings.metric[0]
    sign = 1 if objective.goal == "maximize" else -1
    known = {
        name: sign * _value(row, objective.name) for name, row in by.items()
        if kept(row, settings) == "kept" and not math.isnan(_value(row, objective.name))
    }  # fmt: skip
    ranked = sorted(known, key=lambda name: -known[name])  # of equals the first that is known
    return ranked[0] if ranked else None


def sheets(tuned: Tuned) -> list[Sheet]:
    """Return the worst case of each defense beside its default case, and everything found."""
    return [_worst_cases(tuned), _found(tuned)]


def _worst_cases(tuned: Tuned) -> Sheet:
    settings, every = tuned.settings, cases(tuned)
    metric = settings.metric[0].name
    ends = [worst(by, settings) for by in every.values()]
    columns = [
        Column(title="defense", values=[defense for _, defense in every]),
        Column(title="attack", values=[attack for attack, _ in every]),
        *(
            Column(
                title=f"{named(metric)}, {name}",
                values=[with_interval(by[name], metric) if name in by else "–"
                        for by in every.values()],
            )
            for name in KNOWN
        ),
        Column(
            title=f"{named(metric)}, worst",
            values=["–" if end is None else written(metric, _value(by[end], metric))
                    for end, by in zip(ends, every.values(), strict=True)],
        ),
        Column(title="worst by", values=["–" if end is None else end for end in ends],
               shown="badges"),
    ]  # fmt: skip
    return Sheet(title="The worst case of each defense", columns=columns, note=NOTE)


def _found(tuned: Tuned) -> Sheet:
    rows, settings = [row for row in tuned.rows if row.attacker is not None], tuned.settings
    comments = [
        f"{parameters_text(row.parameters)} ({row.note})"
        if row.note
        else parameters_text(row.parameters)
        for row in rows
    ]
    tellers = [row.attacker for row in rows if row.attacker is not None]
    columns = [
        Column(title="defense", values=[row.defense for row in rows]),
        Column(title="attack", values=[one.attack for one in tellers]),
        Column(title="badges", values=[row.labels for row in rows], shown="badges"),
        Column(title="parameters", values=comments),
        *(
            Column(title=named(metric), values=[with_interval(row, metric) for row in rows])
            for metric in shown_metrics(tuned)
        ),
        Column(title="constraints", values=[kept(row, settings) for row in rows]),
        Column(title="the search has seen", values=[
            "nothing" if row.labels == "default" else one.seen
            for row, one in zip(rows, tellers, strict=True)
        ]),
        Column(title="measured on", values=[one.measured for one in tellers]),
        Column(title="tried", values=[row.tried for row in rows], shown="number"),
        Column(title="stages", values=[one.stages for one in tellers], shown="number"),
        Column(title="seconds spent", values=[row.seconds for row in rows], shown="seconds"),
        Column(title="GPU seconds spent", values=[row.gpu_seconds for row in rows],
               shown="seconds"),
    ]  # fmt: skip
    return Sheet(title="What the attacker found, and what it cost", columns=columns)


def drawings(tuned: Tuned) -> list[Drawing]:
    """Return the figures of worst cases, and of the searches as those of defenses have them."""
    return [*_bars(tuned), *fronts(tuned), *histories(tuned), *importances(tuned)]


def _bars(tuned: Tuned) -> list[Drawing]:
    """Return the objective of each defense by what the attacker knew, a figure an attack."""
    metric, every = tuned.settings.metric[0].name, cases(tuned)
    found = []
    for attack in dict.fromkeys(attack for attack, _ in every):
        by = {defense: rows for (own, defense), rows in every.items() if own == attack}
        lines = [_line(name, by, metric) for name in KNOWN]
        title = f"{attack}: {named(metric)} behind each defense, by what the attacker knew"
        found.append(Drawing(title=title, x_title="", y_title=axis(metric), lines=lines))
    return found


def _line(
    name: Knowledge, by: Mapping[str, Mapping[Knowledge, TunedRow]], metric: MetricName
) -> Line:
    values: Sequence[float] = [
        drawn(metric, _value(rows[name], metric)) if name in rows else math.nan
        for rows in by.values()
    ]
    return Line(name=name, x=list(by), y=np.array(values), shape="bars")
