"""Rows and stages of a sweep, made from the manifests of its stages at any time.

Seconds are recorded per stage; `own` seconds are those of stages that only this trial uses,
`shared` its even part of the others, `standalone` the sum over everything that it needs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pandas as pd

from raysweep.identity import canonical, digest
from raysweep.methods import by_content, path_fields
from raysweep.plan.planner import Planner
from raysweep.plan.route import Route, followed
from raysweep.store import Manifest, Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import AXES, Trial


class Collector:
    """Makes the rows of a sweep from what is stored."""

    def __init__(
        self,
        planner: Planner,
        store: Store,
        failed: Mapping[str, str],
        upstream: Mapping[str, str],
    ) -> None:
        """Read all manifests once; what is damaged counts as missing.

        Args:
            planner: of the sweep.
            store: where its artifacts are.
            failed: stage key → error.
            upstream: stage key → key of the failed stage that it waits for.

        `damaged` holds the keys of damaged manifests that were met.
        """
        self.planner = planner
        self.store = store
        self.failed = failed
        self.upstream = upstream
        self.done = store.done()
        self.damaged: list[str] = []
        self.manifests: dict[str, Manifest] = {}
        for trial in () if planner.stages else planner.trials:
            planner.route(trial, {})  # what is known before any outcome is read at once
        self._read(key for key in planner.stages if key in self.done)
        self.routes = [self._route(trial) for trial in planner.trials]
        self.closures = [self._closure(route) for route in self.routes]
        self.users = Counter(key for closure in self.closures for key in closure)

    def manifest(self, key: str) -> Manifest | None:
        """Return a stored stage's manifest; each is read once."""
        if key in self.done and key not in self.manifests:
            self._read([key])
        return self.manifests.get(key)

    def _read(self, keys: Iterable[str]) -> None:
        asked = list(keys)
        found, damaged = self.store.manifests(asked)
        self.manifests |= found
        self.damaged += damaged
        self.done.difference_update(key for key in asked if key not in found)

    def _route(self, trial: Trial) -> Route:
        def outcome_of(key: str) -> Mapping[str, Any] | None:
            manifest = self.manifest(key)
            return manifest.outcome if manifest else None

        return followed(partial(self.planner.route, trial), outcome_of)

    def _closure(self, route: Route) -> set[str]:
        found: set[str] = set()
        stack = list(route.keys)
        while stack:
            key = stack.pop()
            if key not in found:
                found.add(key)
                stack.extend(self.planner.stages[key].needs)
        return found

    def _seconds(self, key: str, name: str = "seconds") -> float:
        manifest = self.manifest(key)
        return float(manifest.info.get(name, 0.0)) if manifest else 0.0

    def row(self, number: int, sweep: str) -> dict[str, Any]:
        """Return the row of one trial."""
        trial, route = self.planner.trials[number], self.routes[number]
        closure = self.closures[number]
        row = _who(trial, sweep, self.planner)
        row |= self._status(route, closure, sweep)
        evaluated = self.manifest(route.evaluate) if route.evaluate else None
        if evaluated is not None:
            row |= evaluated.outcome
            row["host"] = evaluated.info.get("host", "")
            row["git_commit"] = evaluated.info.get("commit", "")
            row["finished_at"] = evaluated.info.get("finished_at")
        found = self.manifest(route.defend or "")
        facts = found.outcome.get("facts", {}) if found is not None else {}
        row |= {f"found.{name}": value for name, value in facts.items()}
        own = sum(self._seconds(key) for key in closure if self.users[key] == 1)
        row["own_seconds"] = own
        row["shared_seconds"] = sum(
            self._seconds(key) / self.users[key] for key in closure if self.users[key] > 1
        )
        row["standalone_seconds"] = sum(self._seconds(key) for key in closure)
        row["gpu_seconds"] = sum(
            self._seconds(key, "gpu_seconds") / self.users[key] for key in closure
        )
        row |= {f"key_{role}": key for role, key in route.named.items()}
        return row

    def _status(self, route: Route, closure: set[str], sweep: str) -> dict[str, Any]:
        if route.evaluate and self.manifest(route.evaluate):
            return {"status": "ok", "error": "", "error_stage": "", "log": ""}
        missing = [key for key in closure if self.manifest(key) is None]
        causes = [key for key in missing if key in self.failed]
        causes += [self.upstream[key] for key in missing if key in self.upstream]
        if not causes:
            return {"status": "pending", "error": "", "error_stage": "", "log": ""}
        cause = min(causes)
        return {
            "status": "failed" if self.users[cause] == 1 else "upstream_failed",
            "error": self.failed.get(cause, ""),
            "error_stage": cause,
            "log": self.store.where(SweepFolder(self.store, sweep).log(cause)),
        }

    def rows(self, sweep: str) -> pd.DataFrame:
        """Return one row per trial, in the order of the sweep."""
        return pd.DataFrame([self.row(number, sweep) for number in range(len(self.routes))])

    def stages(self, fresh: Iterable[str]) -> pd.DataFrame:
        """Return one row per stage; `fresh` are the keys that this run computed."""
        ran = set(fresh)
        table = []
        for key, trials in sorted(self.users.items()):
            manifest = self.manifest(key)
            stage = self.planner.stages[key]
            status = "pending"
            if manifest is not None:
                status = "done" if key in ran else "cached"
            elif key in self.failed:
                status = "failed"
            elif key in self.upstream:
                status = "upstream_failed"
            table.append(
                {
                    "key": key,
                    "kind": stage.kind,
                    "method": stage.method,
                    "status": status,
                    "seconds": self._seconds(key),
                    "gpu_seconds": self._seconds(key, "gpu_seconds"),
                    "trials": trials,
                    "host": str(manifest.info.get("host", "")) if manifest else "",
                    "error": self.failed.get(key, ""),
                    "log": "",
                }
            )
        return pd.DataFrame(table)


def trial_id(trial: Trial, planner: Planner) -> str:
    """Return a stable id of a trial: a hash of everything that the user chose."""
    recipe = planner.resolved(trial.recipe).model_dump(mode="json")
    chosen = {axis: getattr(trial, axis).identity() for axis in AXES if axis != "recipe"}
    told = [*by_content(chosen).values(), recipe, trial.seed]
    if path_fields(type(trial.dataset)):
        told.append(planner.facts(trial.dataset).digest)
    return digest(canonical(told))[:16]


def _who(trial: Trial, sweep: str, planner: Planner) -> dict[str, Any]:
    attack, defense = trial.attack, trial.defense
    row: dict[str, Any] = {
        "sweep": sweep,
        "trial": trial_id(trial, planner),
        "dataset": trial.dataset.label,
        "model": trial.model.label,
        "attack": attack.label,
        "attack_name": attack.name,
        "rate": attack.rate,
        "evades": attack.EVADES,
        "target": attack.target,
        "defense": defense.label,
        "defense_name": defense.name,
        "kind": defense.kind,
        "badges": ", ".join((*attack.badges(), *defense.badges())),
        "seed": trial.seed,
    }
    parts = {
        "dataset": trial.dataset.params(),
        "model": trial.model.params(),
        "attack": attack.params(),
        "defense": defense.params(),
        "recipe": planner.resolved(trial.recipe).model_dump(mode="json"),
    }
    for part, params in parts.items():
        for name, value in params.items():
            plain = value if isinstance(value, int | float | str | None) else json.dumps(value)
            row[f"{part}.{name}"] = plain
    return row
