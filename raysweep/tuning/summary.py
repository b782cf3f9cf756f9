"""The end of a tuning run: held-out instances are opened, and what tuning gained is worked out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd

from raysweep.attacks import Attack
from raysweep.errors import PlanError
from raysweep.identity import canonical, digest
from raysweep.methods import Method
from raysweep.metrics.intervals import NONE
from raysweep.metrics.names import cases
from raysweep.results.account import NOTHING, CurvePoint, DecisionCurve, SearchAccount
from raysweep.results.cells import estimate
from raysweep.results.tuned import Attacker, Tuned, TunedMetric, TunedRow
from raysweep.sweep.ranges import Parameters
from raysweep.sweep.spec import Sweep
from raysweep.sweep.trials import Trial
from raysweep.sweep.tuning import ATTACKED, UNBOUNDED, MetricName, Metrics, Tune
from raysweep.tuning.costs import Spent, spent
from raysweep.tuning.measurements import Measurements
from raysweep.tuning.notes import note
from raysweep.tuning.ranking import Evaluated, best, joined
from raysweep.tuning.search import Search, attack_title
from raysweep.tuning.space import allowed, points, with_parameters
from raysweep.tuning.stored import StoredFindings

SUFFIX = "-tuned"
DIGITS = 4  # of a fraction that a sweep file is given
MOST_CHARACTERS = 64  # of a sweep's name
CURVE_POINTS = 80


def summary(searches: Sequence[Search], measurements: Measurements) -> Tuned:
    """Return all that a tuning run leaves, once all its stages have run."""
    rows = tuned_rows(searches, measurements)
    return Tuned(
        settings=measurements.tune,
        rows=tuple(rows),
        means=() if measurements.tune.who == "attack" else tuple(means(rows, measurements.tune)),
        searches=tuple(_account(search, measurements) for search in searches),
    )


def tuned_rows(searches: Sequence[Search], measurements: Measurements) -> list[TunedRow]:
    """Return one row per search and point of its Pareto front, measured on the held-out settings.

    An interval stands beside the metrics with the parameters that the search chose.
    """
    return [row for search in searches for row in _rows(search, searches, measurements)]


def _rows(
    search: Search, searches: Sequence[Search], measurements: Measurements
) -> Iterable[TunedRow]:
    own, about = search.own(), _about(search)
    try:
        default = _held_out(search, own, measurements)
    except PlanError as error:
        why = search.failures[0] if search.failures else str(error)
        yield replace(about, note=why, kept_own=True)
        return
    chosen = search.chosen(measurements)
    oracle = _oracle(search, searches, measurements)

    def compared(parameters: Parameters) -> dict[MetricName, TunedMetric]:
        instances = _instances(search, parameters, measurements)
        tuned = _held_out(search, parameters, measurements)
        means = [joined(every, search.tune) for every in (tuned, default, oracle)]
        return {
            name: TunedMetric(
                tuned=means[0][name], default=means[1][name], oracle=means[2][name],
                interval=_interval([one[name] for one in tuned], name, search, instances),
            )
            for name in _shown(search.tune)
        }  # fmt: skip

    if search.knows == "adaptive":
        yield replace(about, labels="default", metrics=compared(own))
    cost = spent(search, measurements)
    about = _with_cost(
        replace(
            about, note=note(search, chosen, measurements), kept_own=not chosen,
            tried=0 if search.knows == "clean_only" else len(search.evaluated(measurements)),
        ),
        cost,
    )  # fmt: skip
    for point, parameters in enumerate(chosen or [own]):
        yield replace(about, point=point, parameters=parameters, metrics=compared(parameters))


def _about(search: Search) -> TunedRow:
    """Return the row of a search before anything is known of it."""
    attacker, defense = None, search.subject.label
    if isinstance(search.subject, Attack):
        defense, seeds = search.part, _seeds(search.held_out)
        met = ", ".join(dict.fromkeys(one.defense.label for one in search.settings))
        attacker = Attacker(
            attack=attack_title(search.subject), seen=f"{met}; {_seeds(search.settings)}",
            measured=f"{seeds}; n = {len(search.held_out)}", stages=0,
        )  # fmt: skip
    return TunedRow(
        defense=defense, labels=search.knows, held_out=_held_out_name(search), point=0,
        parameters=search.own(), tried=0, seconds=0.0, gpu_seconds=0.0, note="", attacker=attacker,
    )  # fmt: skip


def _seeds(settings: Sequence[Trial]) -> str:
    seeds = dict.fromkeys(str(one.seed) for one in settings)
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def _held_out_name(search: Search) -> str:
    return NOTHING if search.knows == "adaptive" else search.part or NOTHING


def _with_cost(row: TunedRow, cost: Spent) -> TunedRow:
    attacker = replace(row.attacker, stages=cost.stages) if row.attacker else None
    return replace(row, seconds=cost.seconds, gpu_seconds=cost.gpu_seconds, attacker=attacker)


def failed_searches(searches: Sequence[Search], measurements: Measurements) -> list[str]:
    """Return the subject and the held-out part of each search whose candidates all failed."""
    return [
        search.title for search in searches if search.failures and not search.chosen(measurements)
    ]


def means(rows: Sequence[TunedRow], tune: Tune) -> list[TunedRow]:
    """Return one row per defense: means over its held-out parts, and how often constraints hold.

    Of a Pareto front, its first point; searches without metrics there are left out.
    """
    averaged = []
    for defense in dict.fromkeys(row.defense for row in rows):
        held_out = [
            row for row in rows
            if row.defense == defense and row.held_out != NOTHING and row.point == 0 and row.metrics
        ]  # fmt: skip
        if len(held_out) < 2:
            continue
        kept = [_keeps({n: one.tuned for n, one in row.metrics.items()}, tune) for row in held_out]
        own = [_keeps({n: one.default for n, one in row.metrics.items()}, tune) for row in held_out]
        metrics = {
            name: TunedMetric(
                tuned=_mean(row.metrics[name].tuned for row in held_out),
                default=_mean(row.metrics[name].default for row in held_out),
                oracle=_mean(row.metrics[name].oracle for row in held_out),
            )
            for name in _shown(tune)
        }
        averaged.append(
            TunedRow(
                defense=defense, labels=tune.labels, held_out=f"mean of {len(held_out)}", point=0,
                parameters={}, tried=sum(row.tried for row in held_out),
                seconds=math.fsum(row.seconds for row in held_out),
                gpu_seconds=math.fsum(row.gpu_seconds for row in held_out),
                note=f"constraints hold: tuned {sum(kept)}, own {sum(own)}", metrics=metrics,
            )
        )  # fmt: skip
    return averaged


def _keeps(metrics: Metrics, tune: Tune) -> bool:
    return all(bound.excess(metrics) <= 0 for bound in tune.bounds)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _shown(tune: Tune) -> tuple[MetricName, ...]:
    """Return the metrics of a table: all that are wanted, and always TPR and FPR."""
    attacked = ATTACKED if tune.who == "attack" else ()
    return tuple(dict.fromkeys((*tune.named_metrics, "tpr", "fpr", *attacked)))


def _instances(
    search: Search, parameters: Parameters, measurements: Measurements
) -> list[StoredFindings]:
    """Return the held-out instances, open, of the subject with these outer parameters."""
    return [measurements.stored(search.trial_in(one, parameters)) for one in search.held_out]


def _held_out(search: Search, parameters: Parameters, measurements: Measurements) -> list[Metrics]:
    """Return the metrics of the subject with some parameters, on each held-out setting."""
    subject = with_parameters(search.subject, parameters)
    instances = _instances(search, parameters, measurements)
    return [measurements.measured(subject, instance) for instance in instances]


def _oracle(
    search: Search, searches: Sequence[Search], measurements: Measurements
) -> list[Metrics]:
    """Return the metrics of the best on the held-out instances of all that was tried anywhere."""
    tune = search.tune
    union = {canonical(search.own()): search.own()}
    for other in searches:
        if other.subject == search.subject:
            every = other.chosen(measurements)
            if search.knows != "clean_only":
                every = [*every, *(one.parameters for one in other.evaluated(measurements))]
            union |= {canonical(one): one for one in every}
    evaluated: list[tuple[Evaluated, list[Metrics]]] = []
    for parameters in union.values():
        try:
            held_out = _held_out(search, parameters, measurements)
        except PlanError:  # never run where this search is reported on
            continue
        merged = joined(held_out, tune)
        evaluated.append((Evaluated(parameters=parameters, metrics=merged), held_out))
    ideal = best([one for one, _ in evaluated], tune)
    return next(held_out for one, held_out in evaluated if one is ideal)


def _interval(
    values: list[float], metric: MetricName, search: Search, instances: Sequence[StoredFindings]
) -> tuple[float, float]:
    """Return the 95 % interval of a mean over held-out settings; NaN where none is honest.

    Of settings in one arena, as `estimate` has it; the worst of several and costs have none.
    """
    held_out = search.held_out
    several = len({(one.dataset, one.model, one.recipe) for one in held_out}) > 1
    if metric in UNBOUNDED or several or (search.tune.over == "worst" and len(held_out) > 1):
        return NONE
    rows = pd.DataFrame({
        "attack": [one.attack.label for one in held_out],
        "attack_name": [one.attack.name for one in held_out],
        "rate": [one.attack.rate for one in held_out], metric: values,
    })  # fmt: skip
    if metric in ("tpr", "fpr"):
        place = 0 if metric == "tpr" else 1
        rows[cases(metric)] = [one.cases[place] for one in instances]
    # Youden's index lies within [-1, 1], every other metric within [0, 1].
    index = metric == "youden"
    rows[metric] = (rows[metric] + 1) / 2 if index else rows[metric]
    found = estimate(rows, metric)
    return (2 * found.low - 1, 2 * found.high - 1) if index else (found.low, found.high)


def _account(search: Search, measurements: Measurements) -> SearchAccount:
    """Return the account of a search: candidates, importances, and the threshold's curve."""
    try:
        curve = _curve(search, measurements)
    except PlanError:
        curve = None
    study, about = search.study, _about(search)
    return SearchAccount(
        defense=about.defense, held_out=about.held_out, curve=curve,
        attack=about.attacker.attack if about.attacker else "",
        history=None if study is None else tuple(study.history()),
        importance=None if study is None else study.importance(),
    )  # fmt: skip


def _curve(search: Search, measurements: Measurements) -> DecisionCurve | None:
    """Return TPR and FPR against the searched decision parameter, on the held-out settings."""
    spans = [name for name, values in search.inner.items() if values.listed is None]
    chosen = search.chosen(measurements)
    if len(search.inner) != 1 or len(spans) != 1 or not chosen:
        return None
    (name,) = spans
    instances = _instances(search, chosen[0], measurements)
    every = points(search.inner, search.known) or []
    curve = []
    for decision in every[:: max(1, len(every) // CURVE_POINTS)]:
        subject = with_parameters(search.subject, {**chosen[0], **decision})
        mean = measurements.joined(subject, instances)
        value = decision[name]
        assert isinstance(value, int | float), "values of a span are numbers"
        curve.append(CurvePoint(value=value, tpr=mean["tpr"], fpr=mean["fpr"]))
    return DecisionCurve(parameter=name, chosen=chosen[0][name], points=tuple(curve))


def tuned_sweep(sweep: Sweep, rows: Sequence[TunedRow]) -> Sweep:
    """Return the sweep with the parameters that were tuned on everything, and without `tune`.

    It is named `<name>-tuned`: under the old name it would take the place of the sweep's records.
    Of a Pareto front, the point that is best by the first objective. Fractions are rounded to
    `DIGITS` significant digits, where the defense allows the rounded value.
    """
    final = _final(rows)
    defenses = tuple(
        with_parameters(defense, rounded(defense, final[defense.label]))
        if defense.label in final else defense
        for defense in sweep.defenses
    )  # fmt: skip
    named = tuned_name(sweep.name)
    return sweep.model_copy(update={"name": named, "defenses": defenses, "tune": None})


def _final(rows: Sequence[TunedRow]) -> dict[str, Parameters]:
    """Return the label of each defense → the parameters to use."""
    return {
        row.defense: row.parameters for row in rows
        if row.held_out == NOTHING and row.point == 0 and not row.kept_own
    }  # fmt: skip


def rounded(method: Method, parameters: Parameters) -> Parameters:
    """Return parameters with fractions rounded; as they are if the method refuses that."""
    shorter = {
        name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for name, value in parameters.items()
    }
    return parameters if allowed(method, shorter) is None else shorter


def tuned_name(name: str) -> str:
    """Return `<name>-tuned`; a name that would be longer than names may be is cut, with a digest.

    Two long names that begin alike still have two tuned ones.
    """
    if len(name) + len(SUFFIX) > MOST_CHARACTERS:
        mark = f"-{digest(name)[:8]}"
        name = name[: MOST_CHARACTERS - len(mark) - len(SUFFIX)] + mark
    return name + SUFFIX
