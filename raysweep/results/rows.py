"""Rows and stages of a sweep, made from the manifests of its stages at any time.

Seconds are recorded per stage; `own` seconds are those of stages that only this trial uses,
`shared` its even part of the others, `standalone` the sum over everything that it needs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from math import fsum, nan

import pandas as pd

from raysweep.identity import canonical, digest
from raysweep.methods import by_content, path_fields
from raysweep.plan.planner import Planner
from raysweep.plan.race import value_in
from raysweep.plan.route import Route, followed
from raysweep.results.columns import (
    Cell,
    Costs,
    Origin,
    StageRow,
    StageStatus,
    Status,
    TrialRow,
    Who,
)
from raysweep.stages.stage import Result, kinds
from raysweep.store import Manifest, Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import AXES
from raysweep.sweep.trials import Trial

# The types of these columns, whether anything is known of some stages or of none.
_NULLABLE = {
    "peak_memory_bytes": "Int64", "peak_gpu_memory_bytes": "Int64", "queue_seconds": "float64",
}  # fmt: skip


class Collector:
    """Makes the rows of a sweep from what is stored."""

    def __init__(
        self,
        planner: Planner,
        store: Store,
        failed: Mapping[str, str],
        upstream: Mapping[str, str],
        failed_anew: Collection[str] = (),
        trials: Sequence[Trial] | None = None,
    ) -> None:
        """Read all manifests once; what is damaged counts as missing.

        Args:
            planner: of the sweep.
            store: where its artifacts are.
            failed: stage key → error.
            upstream: stage key → key of the failed stage that it waits for.
            failed_anew: keys of stored stages that were to be done again, and failed.
            trials: those of the planner that rows are made of; by default all. Costs that trials
                share are right only in rows of all.

        `damaged` holds the keys of damaged manifests that were met.
        """
        self.planner = planner
        self.store = store
        self.failed = failed
        self.upstream = upstream
        self.done = store.done()
        self.damaged: list[str] = []
        self.manifests: dict[str, Manifest] = {}
        if trials is None:
            for trial in () if planner.stages else planner.trials:
                planner.route(trial, {})  # what is known before any outcome is read at once
            self._read(key for key in planner.stages if key in self.done)
            self._take_in_more()
        self.trials = planner.listed() if trials is None else trials
        self.routes = [self._route(trial) for trial in self.trials]
        self.closures = [self._closure(route) for route in self.routes]
        self.users = Counter(key for closure in self.closures for key in closure)
        self._read(key for key in self.users if key in self.done and key not in self.manifests)
        self._superseded = set(failed_anew) | set(filter(self._is_outdated, self.users))

    def manifest(self, key: str) -> Manifest | None:
        """Return a stored stage's manifest; each is read once."""
        if key in self.done and key not in self.manifests:
            self._read([key])
        return self.manifests.get(key)

    def _read(self, keys: Iterable[str]) -> None:
        asked = list(keys)
        whole, damaged = self.store.manifests(asked)
        self.manifests |= whole
        self.damaged += damaged
        self.done.difference_update(key for key in asked if key not in whole)

    def _take_in_more(self) -> None:
        """Let the planner take in the trials that depend on what others came to."""
        known = len(self.planner.trials)
        while self.planner.grow(self._value):
            for trial in self.planner.trials[known:]:
                self.planner.route(trial, {})
            known = len(self.planner.trials)
            self._read(k for k in self.planner.stages if k in self.done and k not in self.manifests)

    def _value(self, trial: Trial) -> float | None:
        """Return the metric of a trial that a race is about; None if it is not known yet."""
        route = self._route(trial)
        last = route.waiting or route.evaluate or ""
        if route.evaluate and (evaluated := self.manifest(last)):
            return value_in(evaluated.outcome, self.planner.sweep.race)
        causes = self._closure(route) & (self.failed.keys() | self.upstream.keys())
        return nan if causes else None

    def _route(self, trial: Trial) -> Route:
        return followed(
            partial(self.planner.route, trial),
            lambda key: stored.outcome if (stored := self.manifest(key)) else None,
        )

    def _closure(self, route: Route) -> set[str]:
        reached: set[str] = set()
        stack = list(route.keys)
        while stack:
            key = stack.pop()
            if key not in reached:
                reached.add(key)
                stack.extend(self.planner.stages[key].needs)
        return reached

    def _is_outdated(self, key: str) -> bool:
        """Return whether a stage is stored, and something that it read was replaced since."""
        read = manifest.read if (manifest := self.manifest(key)) else {}
        return any((now := self.manifest(k)) and now.content != was for k, was in read.items())

    def _seconds(self, key: str, name: str = "seconds") -> float:
        manifest = self.manifest(key)
        return float(manifest.info.get(name, 0.0)) if manifest else 0.0

    def row(self, number: int, sweep: str) -> TrialRow:
        """Return the row of one trial."""
        trial, route = self.trials[number], self.routes[number]
        closure = self.closures[number]
        status = self._status(route, closure, sweep)
        evaluated = self.manifest(route.evaluate or "") if status.status == "ok" else None
        tested = self.planner.stages[route.tested].inputs if route.tested else {}
        measuring = (tested.get("artifact"), route.defend, route.decide)
        measured = [self.manifest(key or "") for key in measuring]
        return TrialRow(
            who=_who(trial, sweep, self.planner),
            parameters=_parameters(trial, self.planner),
            status=status,
            metrics=evaluated.outcome if evaluated else {},
            origin=_origin(evaluated) if evaluated else None,
            found={
                fact: value
                for one in measured
                if one
                for fact, value in one.outcome.get("facts", {}).items()
            },
            costs=self._costs(closure),
            keys=route.named,
        )

    def _costs(self, closure: set[str]) -> Costs:
        """Return the costs of a trial; exact sums, the same in any order of the set."""
        alone = [key for key in closure if self.users[key] == 1]
        shared = [key for key in closure if self.users[key] > 1]
        on_gpus = {key: self._seconds(key, "gpu_seconds") for key in closure}
        return Costs(
            own_seconds=fsum(self._seconds(key) for key in alone),
            shared_seconds=fsum(self._seconds(key) / self.users[key] for key in shared),
            standalone_seconds=fsum(self._seconds(key) for key in closure),
            gpu_seconds=fsum(gpu / self.users[key] for key, gpu in on_gpus.items()),
        )

    def _status(self, route: Route, closure: set[str], sweep: str) -> Status:
        stands = self._superseded.isdisjoint(closure)
        if stands and route.evaluate and self.manifest(route.evaluate):
            return Status(status="ok")
        missing = [k for k in closure if k in self._superseded or self.manifest(k) is None]
        causes = [key for key in missing if key in self.failed]
        causes += [self.upstream[key] for key in missing if key in self.upstream]
        if not causes:
            return Status(status="pending")
        cause = min(causes)
        return Status(
            status="failed" if self.users[cause] == 1 else "upstream_failed",
            error=self.failed.get(cause, ""),
            error_stage=cause,
            log=self.store.where(SweepFolder(self.store, sweep).log(cause)),
        )

    def rows(self, sweep: str) -> pd.DataFrame:
        """Return one row per trial, in the order of the sweep."""
        return pd.DataFrame([self.row(n, sweep).pack() for n in range(len(self.routes))])

    def stages(self, ran: Mapping[str, Result]) -> pd.DataFrame:
        """Return one row per stage; `ran` holds the results of those that this run computed."""
        rows = pd.DataFrame([asdict(self._stage(key, ran)) for key in sorted(self.users)])
        return rows.astype(_NULLABLE) if len(rows) else rows

    def _stage(self, key: str, ran: Mapping[str, Result]) -> StageRow:
        manifest, stage = self.manifest(key), self.planner.stages[key]
        info = manifest.info if manifest else {}
        status: StageStatus = "pending"
        if manifest is not None and key not in self._superseded:
            status = "done" if key in ran else "cached"
        elif key in self.failed:
            status = "failed"
        elif key in self.upstream:
            status = "upstream_failed"
        return StageRow(
            key=key, kind=stage.kind, method=stage.method, status=status,
            seconds=self._seconds(key), gpu_seconds=self._seconds(key, "gpu_seconds"),
            trials=self.users[key],
            host=str(info.get("host", "")),
            error=self.failed.get(key, ""),
            device_name=str(info.get("device_name") or ""),
            peak_memory_bytes=info.get("peak_memory_bytes"),
            peak_gpu_memory_bytes=info.get("peak_gpu_memory_bytes"),
            queue_seconds=ran[key].queue_seconds if status == "done" else None,
        )  # fmt: skip


def in_order_of_work(stages: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of stages in the order of work, as the columns of `kind` tell it."""
    order = {kind: place for place, kind in enumerate(kinds())}
    return stages.sort_values(
        "kind", key=lambda own: own.map(order).fillna(len(order)), kind="stable"
    )


def trial_id(trial: Trial, planner: Planner) -> str:
    """Return a stable id of a trial: a hash of everything that the user chose."""
    recipe = planner.resolved(trial.recipe).model_dump(mode="json")
    chosen = {axis: getattr(trial, axis).identity() for axis in AXES if axis != "recipe"}
    hashed = [*by_content(chosen).values(), recipe, trial.seed]
    if path_fields(type(trial.dataset)):
        hashed.append(planner.facts(trial.dataset).digest)
    return digest(canonical(hashed))[:16]


def _who(trial: Trial, sweep: str, planner: Planner) -> Who:
    attack, defense = trial.attack, trial.defense
    return Who(
        sweep=sweep,
        trial=trial_id(trial, planner),
        dataset=trial.dataset.label,
        model=trial.model.label,
        attack=attack.label,
        attack_name=attack.name,
        rate=attack.rate,
        evades=attack.EVADES,
        target=attack.target,
        defense=defense.label,
        defense_name=defense.name,
        kind=defense.kind,
        badges=", ".join((*attack.badges(), *defense.badges())),
        seed=trial.seed,
    )


def _parameters(trial: Trial, planner: Planner) -> dict[str, dict[str, Cell]]:
    """Return part → parameter → value; lists and mappings as JSON."""
    parts = {
        "dataset": trial.dataset.params(),
        "model": trial.model.params(),
        "attack": trial.attack.params(),
        "defense": trial.defense.params(),
        "recipe": planner.resolved(trial.recipe).model_dump(mode="json"),
    }
    return {
        part: {
            name: value if isinstance(value, int | float | str | None) else json.dumps(value)
            for name, value in params.items()
        }
        for part, params in parts.items()
    }


def _origin(evaluated: Manifest) -> Origin:
    info = evaluated.info
    return Origin(
        host=info.get("host", ""), git_commit=info.get("commit", ""),
        finished_at=info.get("finished_at"),
    )  # fmt: skip
