"""Records: one row per trial, with its parameters, metrics, cost and provenance.

Rows are derived from the manifests of a sweep's stages, so that they can be made again at any
time, and kept as Parquet. Seconds are recorded per stage; `own` seconds are those of stages that
only this trial uses, `shared` its even part of the others, `standalone` the sum over everything
that it needs.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from raysweep import ledger
from raysweep.defenses import Curve
from raysweep.errors import StoreError
from raysweep.graph import Route, followed
from raysweep.methods import by_content, path_fields
from raysweep.plan import Planner
from raysweep.report.material import Material
from raysweep.spec import AXES, Trial
from raysweep.store import Manifest, Store

DEFAULT_STORAGE = "raysweep-store"
CURVES_AT_MOST = 2000


def storage_uri(chosen: str | None = None) -> str:
    """Return where artifacts and records are: the choice, RAYSWEEP_STORAGE, or ./raysweep-store."""
    return chosen or os.environ.get("RAYSWEEP_STORAGE") or DEFAULT_STORAGE


def load(name: str, storage: str | None = None) -> pd.DataFrame:
    """Return the records of a sweep, one row per trial.

    `attrs["sweep"]` of the frame describes the sweep: question, text, versions.

    Raises:
        StoreError: if there are no records of that name; the message lists those that there are.
    """
    store = Store(storage_uri(storage))
    frame = _frame(store, name, "records")
    frame.attrs["sweep"] = describe(store, name)
    return frame


def describe(store: Store, name: str) -> dict[str, Any]:
    """Return what is written down about a sweep: question, text, versions."""
    raw = store.read(f"sweeps/{name}/sweep.json")
    if raw is None:
        names = sorted({path.split("/")[1] for path in store.list("sweeps") if "/" in path})
        raise StoreError(
            f"no sweep {name!r} in {store.where()}; there are: {', '.join(names) or 'none'}; "
            f"another place is named with --storage or RAYSWEEP_STORAGE"
        )
    described: dict[str, Any] = json.loads(raw)
    return described


def _frame(store: Store, name: str, table: str) -> pd.DataFrame:
    describe(store, name)
    raw = store.read(f"sweeps/{name}/{table}.parquet")
    if raw is None:
        raise StoreError(
            f"sweep {name!r} has no {table} yet; launch it again, or ask `raysweep status {name}`"
        )
    return pd.read_parquet(io.BytesIO(raw))


class Collector:
    """Makes the rows of a sweep from what is stored."""

    def __init__(
        self,
        planner: Planner,
        store: Store,
        failed: Mapping[str, str],
        upstream: Mapping[str, str],
    ) -> None:
        """Read all manifests once.

        Args:
            planner: of the sweep.
            store: where its artifacts are.
            failed: stage key → error.
            upstream: stage key → key of the failed stage that it waits for.
        """
        self.planner = planner
        self.store = store
        self.failed = failed
        self.upstream = upstream
        self.done = set(store.done())
        self.manifests: dict[str, Manifest] = {}
        self.routes = [self._route(trial) for trial in planner.trials]
        self.closures = [self._closure(route) for route in self.routes]
        self.users = Counter(key for closure in self.closures for key in closure)

    def manifest(self, key: str) -> Manifest | None:
        """Return a stored stage's manifest; each is read once."""
        if key in self.done and key not in self.manifests:
            found = self.store.manifest(key.partition("-")[0], key)
            if found is None:
                self.done.discard(key)
            else:
                self.manifests[key] = found
        return self.manifests.get(key)

    def _route(self, trial: Trial) -> Route:
        def outcome_of(key: str) -> Mapping[str, Any] | None:
            manifest = self.manifest(key)
            return manifest.outcome if manifest else None

        return followed(partial(self.planner.route, trial), outcome_of)

    def _closure(self, route: Route) -> set[str]:
        found: set[str] = set()
        stack = list(route.roles.values())
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
        found = self.manifest(route.roles.get("defend", ""))
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
        row |= {f"key_{role}": key for role, key in route.roles.items() if " " not in role}
        return row

    def _status(self, route: Route, closure: set[str], sweep: str) -> dict[str, Any]:
        if route.evaluate and route.evaluate in self.done:
            return {"status": "ok", "error": "", "error_stage": "", "log": ""}
        causes = [key for key in closure if key in self.failed]
        causes += [self.upstream[key] for key in closure if key in self.upstream]
        if not causes:
            return {"status": "pending", "error": "", "error_stage": "", "log": ""}
        cause = min(causes)
        return {
            "status": "failed" if self.users[cause] == 1 else "upstream_failed",
            "error": self.failed.get(cause, ""),
            "error_stage": cause,
            "log": ledger.local_log(self.store, sweep, cause),
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
    from raysweep.identity import canonical, digest

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


def write(store: Store, name: str, rows: pd.DataFrame, stages: pd.DataFrame) -> None:
    """Store the records of a sweep as Parquet; its rows last: where they are, all is."""
    for table, frame in (("stages", stages), ("records", rows)):
        buffer = io.BytesIO()
        _storable(frame).to_parquet(buffer, index=False)
        store.write(f"sweeps/{name}/{table}.parquet", buffer.getvalue())


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with columns of mixed kinds (a parameter of several methods) as text."""
    fixed = frame.copy()
    for column in fixed.select_dtypes(object).columns:
        present = fixed[column].dropna()
        kinds = {type(value) for value in present}
        if kinds <= {int, float}:
            fixed[column] = pd.to_numeric(fixed[column])
        elif len(kinds) > 1:
            fixed[column] = present.map(str).reindex(fixed.index)
    return fixed


def gather(name: str, storage: str | None = None) -> Material:
    """Return everything that a report shows: rows, stages, curves, pictures, triggers."""
    store = Store(storage_uri(storage))
    tuning = json.loads(store.read(f"sweeps/{name}/tuned.json") or b"{}")
    # A sweep may have been tuned without having been launched as a whole.
    launched = not tuning or store.read(f"sweeps/{name}/records.parquet") is not None
    rows = load(name, storage) if launched else pd.DataFrame({"status": []})
    curves: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    pictures: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    triggers: dict[str, np.ndarray] = {}
    losses: dict[str, dict[str, np.ndarray]] = {}
    measured: dict[str, dict[str, Curve]] = {}
    finished = rows[rows["status"] == "ok"]
    for row in finished.head(CURVES_AT_MOST).to_dict("records"):
        evaluated = _arrays(store, row.get("key_evaluate"))
        for what in ("train", "input"):
            if f"{what}_roc_fpr" in evaluated:
                curve = (evaluated[f"{what}_roc_fpr"], evaluated[f"{what}_roc_tpr"])
                curves[(str(row["trial"]), what)] = curve
        if "losses_rest" in evaluated:
            losses[str(row["trial"])] = {
                name.removeprefix("losses_"): quartiles
                for name, quartiles in evaluated.items()
                if name.startswith("losses_")
            }
        if drawn := _drawn(store, row.get("key_defend")):
            measured[str(row["trial"])] = drawn
        if row["attack"] not in pictures:
            shown = _arrays(store, row.get("key_tested"), "pictures_clean", "pictures_triggered")
            if shown and len(shown["pictures_clean"]):
                pictures[str(row["attack"])] = tuple(shown.values())  # type: ignore[assignment]
        if "inspector" in str(row["kind"]):
            found = _arrays(store, row.get("key_defend"), "trigger")
            triggers |= {str(row["trial"]): found["trigger"]} if found else {}
    return Material(
        sweep=describe(store, name),
        rows=rows,
        stages=_frame(store, name, "stages") if launched else pd.DataFrame(),
        curves=curves,
        pictures=pictures,
        triggers=triggers,
        losses=losses,
        measured=measured,
        tuning=tuning,
    )


def _drawn(store: Store, key: Any) -> dict[str, Curve]:
    """Return the curves that a defense drew of its own run, or nothing where they are gone."""
    if not isinstance(key, str):
        return {}
    try:
        titles = (store.outcome(key) or {}).get("curves", {})
    except StoreError:
        return {}
    found = _arrays(store, key, *(f"curve.{name}" for name in titles)) if titles else {}
    return {
        name: Curve(x=found[at][0], y=found[at][1], x_title=x_title, y_title=y_title)
        for name, (x_title, y_title) in titles.items()
        if (at := f"curve.{name}") in found
    }


def _arrays(store: Store, key: Any, *names: str) -> dict[str, np.ndarray]:
    """Return arrays of an artifact, or nothing where they are gone: a report shows what is left."""
    if not isinstance(key, str):
        return {}
    try:
        return store.arrays(key.partition("-")[0], key, names or None)
    except (StoreError, KeyError):
        return {}
