"""What a report is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from raysweep.defenses import Curve
from raysweep.errors import StoreError
from raysweep.results import history
from raysweep.results.records import Found, describe, look, storage_uri
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.tuning import Tune

CURVES_AT_MOST = 2000
Roc = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that a report shows.

    Attributes:
        sweep: name, question, text of the sweep file, versions, commit.
        rows: one row per trial; metrics are fractions, NaN where undefined.
        stages: one row per stage: key, kind, status, seconds, gpu_seconds, trials.
        curves: (trial id, `train` or `input`) → (fpr, tpr).
        pictures: attack label → (clean, triggered), uint8 (P, C, H, W).
        triggers: trial id → estimated trigger per class, (K, C, H, W) floats in [0, 1].
        losses: trial id → {`poison`, `rest`: quartiles of the loss after each step, (3, T);
            `auroc` of a low loss after each step, (T,)}.
        measured: trial id → {name: a curve that its defense drew of its own run}.
        tuning: what a tuning of the sweep left: `settings`, `rows`, `searches`; empty if none.
        notes: what is to be said about all of it, a line each.
    """

    sweep: dict[str, Any]
    rows: pd.DataFrame
    stages: pd.DataFrame
    curves: dict[tuple[str, str], Roc] = field(default_factory=dict)
    pictures: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    triggers: dict[str, np.ndarray] = field(default_factory=dict)
    losses: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    measured: dict[str, dict[str, Curve]] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


_READ = ("metric", "constraints", "labels", "over")  # of the settings
_TUNED = {
    "defense": str, "labels": str, "held_out": str, "point": int, "parameters": dict,
    "tried": int, "seconds": (int, float), "gpu_seconds": (int, float), "note": str,
}  # fmt: skip
_CANDIDATE = {"number": int, "state": str, "parameters": dict, "metrics": dict}
_CURVE = {"parameter": str, "chosen": object, "points": list}
_POINT = {"value": (int, float), "tpr": (int, float), "fpr": (int, float)}


def is_tuning(value: Any) -> bool:
    """Return whether a value is what a tuning leaves, down to every number that is drawn."""
    if not isinstance(value, dict) or not isinstance(value.get("settings"), dict):
        return False
    try:
        settings = Tune.model_validate_json(json.dumps(value["settings"])).model_dump(mode="json")
    except ValueError:
        return False
    if any(value["settings"].get(name) != settings[name] for name in _READ):
        return False
    searches = value.get("searches")
    return (
        _all(value.get("rows"), _TUNED)
        and _all(value.get("means", []), _TUNED)
        and _all(searches, {"defense": str, "held_out": str})
        and all(map(_is_account, searches or ()))
    )


def _is_account(search: dict[str, Any]) -> bool:
    importance = search.get("importance", {})
    if not _all(search.get("history", []), _CANDIDATE) or not isinstance(importance, dict):
        return False
    curve = search.get("curve")
    return curve is None or (_all([curve], _CURVE) and _all(curve["points"], _POINT))


def _all(values: Any, fields: Mapping[str, Any]) -> bool:
    """Return whether a value is a list of mappings that hold these fields, of these types."""
    return isinstance(values, list) and all(
        isinstance(one, dict)
        and all(name in one and isinstance(one[name], kind) for name, kind in fields.items())
        for one in values
    )


def gather(name: str, storage: str | None = None) -> Material:
    """Return everything that a report shows: rows, stages, curves, pictures, triggers."""
    store = Store(storage_uri(storage))
    tuning, notes = _tuning(store, name)
    if tuning and history.place_of(store, name) != name:  # tuned, and never launched as a whole
        nothing = pd.DataFrame({"status": []})
        found = Found(rows=nothing, stages=pd.DataFrame(), sweep=describe(store, name))
    else:
        found = look(store, name)
    rows = found.rows
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
            estimated = _arrays(store, row.get("key_defend"), "trigger")
            triggers |= {str(row["trial"]): estimated["trigger"]} if estimated else {}
    return Material(
        sweep=found.sweep,
        rows=rows,
        stages=found.stages,
        curves=curves,
        pictures=pictures,
        triggers=triggers,
        losses=losses,
        measured=measured,
        tuning=tuning,
        notes=[*found.notes, *notes],
    )


def _tuning(store: Store, name: str) -> tuple[dict[str, Any], list[str]]:
    """Return what a tuning of a sweep left, or a line that says that it is damaged."""
    path = SweepFolder(store, name).tuned
    raw = store.read(path)
    try:
        tuning = None if raw is None else json.loads(raw)
    except (ValueError, RecursionError):
        tuning = {}
    if tuning is None:
        return {}, []
    if not is_tuning(tuning):
        return {}, [f"{store.where(path)} is damaged; tune the sweep again to write it anew"]
    return tuning, []


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
        return store.arrays(key, names or None)
    except (StoreError, KeyError):
        return {}
