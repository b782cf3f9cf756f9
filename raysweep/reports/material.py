"""The material of a report."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from raysweep.arrays import Array, Arrays
from raysweep.defenses import Curve
from raysweep.errors import StoreError
from raysweep.metrics.curves import Curves, Losses, Roc, Scored
from raysweep.results import history
from raysweep.results.columns import KEYS
from raysweep.results.description import Description
from raysweep.results.records import Records, describe, read, storage_uri
from raysweep.results.tuned import Tuned
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder

SHOWN = ("evaluate", "defend", "tested")  # the roles of artifacts that are looked at
CURVES_AT_MOST = 2000
Pictures = tuple[Array, Array]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that a report shows.

    Attributes:
        sweep: its description: name, question, text of the sweep file, versions, commit.
        rows: one row per trial; metrics are fractions, NaN where undefined.
        stages: one row per stage: key, kind, status, seconds, gpu_seconds, trials.
        curves: (trial id, what was scored) → ROC curve.
        pictures: attack label → (clean, triggered), uint8 (P, C, H, W).
        triggers: trial id → estimated trigger per class, (K, C, H, W) floats in [0, 1].
        losses: trial id → how far apart losses of poison and of the rest lie after each step.
        measured: trial id → {name: a curve that its defense drew of its own run}.
        tuned: what a tuning of the sweep left, if it was tuned.
        notes: what is to be said about all of it, a line each.
    """

    sweep: Description
    rows: pd.DataFrame
    stages: pd.DataFrame
    curves: dict[tuple[str, Scored], Roc] = field(default_factory=dict)
    pictures: dict[str, Pictures] = field(default_factory=dict)
    triggers: dict[str, np.ndarray] = field(default_factory=dict)
    losses: dict[str, Losses] = field(default_factory=dict)
    measured: dict[str, dict[str, Curve]] = field(default_factory=dict)
    tuned: Tuned | None = None
    notes: list[str] = field(default_factory=list)


def gather(name: str, storage: str | None = None) -> Material:
    """Return everything that a report shows: rows, stages, curves, pictures, triggers."""
    store = Store(storage_uri(storage))
    folder = history.folder_of(store, name)
    tuned, notes = _tuned(store, name)
    if tuned and folder != name:  # tuned, and never launched as a whole
        nothing = pd.DataFrame({"status": []})
        records = Records(rows=nothing, stages=pd.DataFrame(), sweep=describe(store, name))
    else:
        records = read(store, name)
    material = Material(
        sweep=records.sweep,
        rows=records.rows,
        stages=records.stages,
        tuned=tuned,
        notes=[*records.notes, *notes],
    )
    finished = records.rows[records.rows["status"] == "ok"]
    shown = finished.head(CURVES_AT_MOST).to_dict("records")
    keys = [{role: row[at] for role, at in KEYS.within(row).items()} for row in shown]
    store.done()  # so that manifests come from the index
    named = {one.get(role) for one in keys for role in SHOWN}
    store.manifests([key for key in named if isinstance(key, str)])
    for row, own in zip(shown, keys, strict=True):
        _add(material, store, row, own)
    return material


def _add(
    material: Material, store: Store, row: Mapping[Hashable, object], keys: Mapping[str, object]
) -> None:
    """Add what the artifacts of one finished trial hold."""
    trial, attack = str(row["trial"]), str(row["attack"])
    curves = Curves.unpack(_arrays(store, keys.get("evaluate")))
    for scored, roc in curves.rocs().items():
        material.curves[trial, scored] = roc
    if curves.losses is not None:
        material.losses[trial] = curves.losses
    if drawn := _drawn(store, keys.get("defend")):
        material.measured[trial] = drawn
    if attack not in material.pictures:
        shown = _arrays(store, keys.get("tested"), "pictures_clean", "pictures_triggered")
        if shown and len(shown["pictures_clean"]):
            material.pictures[attack] = (shown["pictures_clean"], shown["pictures_triggered"])
    if "inspector" in str(row["kind"]):
        estimated = _arrays(store, keys.get("defend"), "trigger")
        if estimated:
            material.triggers[trial] = estimated["trigger"]


def _tuned(store: Store, name: str) -> tuple[Tuned | None, list[str]]:
    """Return the content of a sweep's `tuned.json`, or a line that says that it is damaged."""
    path = SweepFolder(store, name).tuned
    raw = store.read(path)
    if raw is None:
        return None, []
    try:
        return Tuned.unpack(raw, store.where(path)), []
    except StoreError as error:
        return None, [str(error)]


def _drawn(store: Store, key: object) -> dict[str, Curve]:
    """Return the curves that a defense drew of its own run, or nothing where they are gone."""
    if not isinstance(key, str):
        return {}
    try:
        found = store.manifest_as_asked(key)
        titles = found.outcome.get("curves", {}) if found else {}
    except StoreError:
        return {}
    arrays = _arrays(store, key, *(f"curve.{name}" for name in titles)) if titles else {}
    return {
        name: Curve(x=arrays[at][0], y=arrays[at][1], x_title=x_title, y_title=y_title)
        for name, (x_title, y_title) in titles.items()
        if (at := f"curve.{name}") in arrays
    }


def _arrays(store: Store, key: object, *names: str) -> Arrays:
    """Return arrays of an artifact, or nothing where they are gone: a report shows what is left."""
    if not isinstance(key, str):
        return {}
    try:
        return store.arrays(key, names or None)
    except (StoreError, KeyError):
        return {}
