"""Tuning of decisions: parameters that stored scores answer for, without training anything.

What a search may see is its `labels`: `clean_only` the reserved clean set, `transfer` the labels of
other attacks (datasets, rates, seeds) than the one it is reported on, `oracle` everything. A space
of one number is swept exactly; larger ones are searched by Optuna, whose study is kept in a
journal, tied to the evidence it was evaluated on.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from pydantic import ValidationError

from raysweep.defenses import Defense
from raysweep.errors import SpecError
from raysweep.identity import canonical, digest
from raysweep.methods import decision_fields, search_ranges
from raysweep.plan import Planner
from raysweep.replay import Instance, false_alarms, instances, measure
from raysweep.spec import Constraint, Sweep, Trial, Tune
from raysweep.store import Store

POINTS = 400  # of an exact sweep over one number
SAMPLERS: Mapping[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
}
Values = dict[str, Any]
NOTHING = "(nothing)"


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """One row of the result: a defense, what was held out, and what its best parameters do there.

    `tuned`, `default` and `oracle` are metrics on the held-out instances: with the parameters that
    the search chose, with the method's own, and with those that the held-out labels would choose.
    """

    defense: str
    labels: str
    held_out: str
    parameters: Values
    evaluations: int
    tuned: dict[str, float]
    default: dict[str, float]
    oracle: dict[str, float]
    note: str = ""

    def row(self) -> Values:
        """Return the row of a table, flat."""
        flat: Values = {
            "defense": self.defense, "labels": self.labels, "held_out": self.held_out,
            "parameters": self.parameters, "evaluations": self.evaluations, "note": self.note,
        }  # fmt: skip
        for name in ("tuned", "default", "oracle"):
            flat |= {f"{name}_{metric}": value for metric, value in getattr(self, name).items()}
        return flat


@dataclass(kw_only=True)
class Search:
    """One search of one defense's decision space over open instances."""

    defense: Defense
    space: Mapping[str, Mapping[str, Any]]
    settings: Tune
    constraints: list[Constraint]
    journal: Path | None = None
    evaluations: int = 0
    _seen: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)

    def metrics(self, parameters: Values, over: Sequence[Instance]) -> dict[str, float]:
        """Return mean (or worst) metrics of parameters over instances; reads their truth."""
        rows = []
        for instance in over:
            instance.truth()  # a sealed instance must fail even where a value is remembered
            memo = (canonical(parameters), instance.key)
            if memo not in self._seen:
                self.evaluations += 1
                self._seen[memo] = measure(with_parameters(self.defense, parameters), instance)
            rows.append(self._seen[memo])
        return {name: self._joined(name, [row[name] for row in rows]) for name in rows[0]}

    def _joined(self, metric: str, values: list[float]) -> float:
        known = np.array([v for v in values if not np.isnan(v)])
        if not len(known):
            return float("nan")
        if self.settings.over == "worst":
            return float(known.max() if metric == "fpr" else known.min())
        return float(known.mean())

    def merit(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Return (constraint excess, minus the objective): smaller is better."""
        excess = sum(max(c.excess(metrics), 0.0) for c in self.constraints)
        value = metrics[self.settings.metric]
        sign = -1.0 if self.settings.goal == "maximize" else 1.0
        return excess, sign * (0.0 if np.isnan(value) else value)

    def best(self, over: Sequence[Instance]) -> Values:
        """Return the best parameters over open instances."""
        candidates = points(self.space)
        if candidates is None:
            return self._searched(over)
        return min(candidates, key=lambda values: self.merit(self.metrics(values, over)))

    def _searched(self, over: Sequence[Instance]) -> Values:
        """Search by asking and telling an Optuna study; a journal makes it go on after a kill."""
        keys = canonical(
            [sorted(i.key for i in over), dict(self.space), self.settings.model_dump()]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            study = optuna.create_study(
                study_name=f"{self.defense.name}-{digest(keys)}", load_if_exists=True,
                storage=_storage(self.journal), sampler=SAMPLERS[self.settings.sampler](
                    self.settings.seed
                ),
            )  # fmt: skip
            space = {name: distribution(rule) for name, rule in self.space.items()}
            own = {name: getattr(self.defense, name) for name in space}
            if not study.trials and all(value is not None for value in own.values()):
                study.enqueue_trial(own)  # the method's own values are the first to beat
            done = sum(t.state.is_finished() for t in study.trials)
            for _ in range(self.settings.trials - done):
                trial = study.ask(space)
                excess, value = self.merit(self.metrics(dict(trial.params), over))
                # A broken constraint outweighs any objective, which lies in [-1, 1].
                study.tell(trial, value + (10.0 + excess if excess > 0 else 0.0))
        return dict(study.best_params)

    def blind(self, over: Sequence[Instance], budget: float) -> Values | None:
        """Return the parameters that use the most of a budget of clean false alarms.

        Reads the reserved clean set alone; none if the defense scores no clean samples.
        """
        candidates = points(self.space)
        if candidates is None:
            return None
        rates = []
        for values in candidates:
            chosen = with_parameters(self.defense, values)
            rates.append(float(np.mean([false_alarms(chosen, instance) for instance in over])))
            self.evaluations += len(over)
        if np.isnan(rates).any():
            return None
        allowed = [i for i, rate in enumerate(rates) if rate <= budget]
        return candidates[max(allowed, key=lambda i: rates[i])] if allowed else None


def _storage(journal: Path | None) -> optuna.storages.BaseStorage | None:
    if journal is None:
        return None
    journal.parent.mkdir(parents=True, exist_ok=True)
    if journal.exists():  # a process that died while writing leaves half a line
        text = journal.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            journal.write_bytes(whole)
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    return optuna.storages.JournalStorage(backend)


def distribution(rule: Mapping[str, Any]) -> optuna.distributions.BaseDistribution:
    """Return Optuna's form of a parameter as W&B's sweep files write it.

    Raises:
        SpecError: if it is none.
    """
    if "values" in rule:
        return optuna.distributions.CategoricalDistribution(tuple(rule["values"]))
    if not {"min", "max"} <= set(rule) or not rule["min"] < rule["max"]:
        raise SpecError(
            f"tune.parameters: a range needs min below max, or values, got {dict(rule)}"
        )
    log = rule.get("distribution", "uniform").startswith("log")
    low, high = rule["min"], rule["max"]
    if isinstance(low, int) and isinstance(high, int) and not log:
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(float(low), float(high), log=log)


def points(space: Mapping[str, Mapping[str, Any]]) -> list[Values] | None:
    """Return all candidates of a space of one number, or of listed values; else none."""
    ranges = [name for name, rule in space.items() if "values" not in rule]
    if len(ranges) > 1:
        return None
    axes: list[list[Any]] = []
    for rule in space.values():
        spread = distribution(rule)
        if isinstance(spread, optuna.distributions.CategoricalDistribution):
            axes.append(list(spread.choices))
        elif isinstance(spread, optuna.distributions.IntDistribution):
            axes.append(list(range(spread.low, spread.high + 1)))
        else:
            assert isinstance(spread, optuna.distributions.FloatDistribution)
            cut = np.geomspace if spread.log else np.linspace
            axes.append([float(v) for v in cut(spread.low, spread.high, POINTS)])
    every = [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*axes)]
    return every if len(every) <= 100 * POINTS else None


def with_parameters(defense: Defense, values: Values) -> Defense:
    """Return the defense with other decision parameters, validated."""
    return type(defense).model_validate({**defense.model_dump(), **values})


def space_of(defense: Defense, given: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the space to search: the sweep file's, else the method's own suggestion.

    Raises:
        SpecError: if a parameter is none of the defense's decisions, or a bound breaks its rules.
    """
    own = decision_fields(type(defense))
    space = dict(given.get(defense.name, search_ranges(type(defense))))
    for name, rule in space.items():
        if name not in own:
            raise SpecError(
                f"tune.parameters.{defense.name}: {name!r} is no decision parameter and would need "
                f"new stages; one of: {', '.join(sorted(own)) or 'none'}"
            )
        for bound in (rule.get("min"), rule.get("max"), *rule.get("values", ())):
            try:
                if bound is not None:
                    with_parameters(defense, {name: bound})
            except ValidationError as error:
                raise SpecError(
                    f"tune.parameters.{defense.name}.{name}: {bound} is not allowed: "
                    f"{error.errors()[0]['msg']}"
                ) from None
    return space


def tune(sweep: Sweep, store: Store) -> pd.DataFrame:
    """Tune every defense of a sweep that decides something; one row per held-out part.

    Raises:
        SpecError: if the settings are wrong.
        PlanError: if the sweep has not been launched.
    """
    settings = sweep.tune or Tune()
    planner = Planner(sweep)
    tuned: list[Tuned] = []
    for defense in sweep.defenses:
        space = space_of(defense, settings.parameters)
        if not space or not defense.gives() & {"train_scores", "input_scores"}:
            continue
        mine = [t for t in planner.trials if t.defense == defense and _attacked(t)]
        if not mine:
            continue
        found = instances(planner, store, mine)
        local = store.local(f"sweeps/{sweep.name}/tune")
        search = Search(
            defense=defense, space=space, settings=settings,
            constraints=[Constraint.parse(text) for text in settings.constraints],
            journal=local / "journal.log" if local else None,
        )  # fmt: skip
        tuned += _studied(search, found)
    if not tuned:
        raise SpecError(
            "nothing to tune: no defense of this sweep has decision parameters to search; give "
            "tune.parameters"
        )
    return pd.DataFrame([one.row() for one in tuned])


def _attacked(trial: Trial) -> bool:
    return trial.attack.rate > 0


def _studied(search: Search, found: list[Instance]) -> Iterable[Tuned]:
    """Yield one result per held-out part; truth of that part is opened after its search."""
    settings = search.settings
    parts = sorted({str(instance.where[settings.hold_out]) for instance in found})
    if settings.labels == "transfer" and len(parts) < 2:
        raise SpecError(
            f"tune.labels: transfer needs at least two values of {settings.hold_out} to leave one "
            f"out, got {parts}; add some, or set tune.hold_out"
        )
    budgets = [c.bound for c in search.constraints if (c.metric, c.sign) == ("fpr", "<=")]
    own = {name: getattr(search.defense, name) for name in search.space}
    for part in (*parts, ""):
        # The last one holds out nothing: its parameters are those to use on new attacks.
        held = [i.closed() for i in found if part in ("", str(i.where[settings.hold_out]))]
        rest = [i for i in found if not part or str(i.where[settings.hold_out]) != part]
        before, note = search.evaluations, ""
        chosen: Values | None
        if settings.labels == "clean_only":
            chosen = search.blind(held, budgets[0] if budgets else 0.05)
            note = "" if chosen else "scores no clean samples: the method's own parameters"
        elif settings.labels == "transfer":
            chosen = search.best(rest)
        else:
            chosen = search.best([i.opened() for i in held])
        spent = search.evaluations - before
        opened = [i.opened() for i in held]
        ideal = search.best(opened)
        yield Tuned(
            defense=search.defense.label, labels=settings.labels, held_out=part or NOTHING,
            parameters=chosen or own, evaluations=spent, note=note,
            tuned=search.metrics(chosen or own, opened),
            default=search.metrics(own, opened), oracle=search.metrics(ideal, opened),
        )  # fmt: skip


def tuned_sweep(sweep: Sweep, table: pd.DataFrame) -> Sweep:
    """Return the sweep with the parameters that were tuned on everything, and without `tune`."""
    final = table[table["held_out"] == NOTHING].set_index("defense")["parameters"]
    defenses = tuple(
        with_parameters(defense, final[defense.label]) if defense.label in final.index else defense
        for defense in sweep.defenses
    )
    return sweep.model_copy(update={"defenses": defenses, "tune": None})
