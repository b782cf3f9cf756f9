"""What a report is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from raysweep.defenses import Curve
from raysweep.goals import Tune

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
