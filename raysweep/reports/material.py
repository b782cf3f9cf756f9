"""The material of a report."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from raysweep.arrays import Array, Arrays
from raysweep.defenses import Curve
from raysweep.errors import StoreError
from raysweep.metrics.curves import Curves, Losses, Roc, Scored
from raysweep.reports.drawings import thinned_roc
from raysweep.results import history, targets
from raysweep.results.columns import KEYS
from raysweep.results.description import Description
from raysweep.results.grouping import ARENA
from raysweep.results.records import Records, describe, read, storage_uri
from raysweep.results.tuned import Tuned
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder

SHOWN = ("evaluate", "defend", "tested")  # the roles of artifacts that are looked at
READERS = 8  # threads; a store may be far away
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
        unread: the finished trials whose artifacts were not looked at, for want of time.
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
    unread: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)


def gather(name: str, storage: str | None = None, within: float = math.inf) -> Material:
    """Return everything that a report shows: rows, stages, curves, pictures, triggers.

    Args:
        name: of the sweep.
        storage: where it is stored.
        within: seconds after which no more artifacts are read. The first seeds of all attacks and
            defenses are read first; what was not read is said.
    """
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
        notes=[*records.notes, *targets.stored_sentences(records.rows, store), *notes],
    )
    store.done()  # so that manifests come from the index
    return _with_artifacts(material, store, within)


def _with_artifacts(material: Material, store: Store, within: float) -> Material:
    """Return the material with what the artifacts of finished trials hold."""
    ends = time.monotonic() + within
    finished = _fairly(material.rows[material.rows["status"] == "ok"]).to_dict("records")
    keys = [{role: row[at] for role, at in KEYS.within(row).items()} for row in finished]
    named = {one.get(role) for one in keys for role in SHOWN}
    store.manifests([key for key in named if isinstance(key, str)])
    reader = _Reader(store, material)
    many = 4 * READERS
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(finished), many):
            if time.monotonic() > ends:
                late = frozenset(str(row["trial"]) for row in finished[start:])
                return replace(material, unread=late)
            some = slice(start, start + many)
            read = pool.map(reader.curves, (one.get("evaluate") for one in keys[some]))
            for row, own, curves in zip(finished[some], keys[some], list(read), strict=True):
                reader.add(row, own, curves)
    return material


def _fairly(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows, the first of every attack, rate and defense first, then the second of each."""
    if rows.empty:
        return rows
    by = [name for name in (*ARENA, "attack", "rate", "defense") if name in rows]
    turn = rows.groupby(by, sort=False, dropna=False).cumcount()
    return rows.loc[turn.sort_values(kind="stable").index]


class _Reader:
    """Reads what trials left; an artifact that several share is read once."""

    def __init__(self, store: Store, material: Material) -> None:
        self._store, self._material = store, material
        self._drawn: dict[object, dict[str, Curve]] = {}
        self._triggers: dict[object, Arrays] = {}
        self._tested = set[object]()

    def curves(self, key: object) -> Curves:
        """Return the curves of an evaluation, with as many points as a screen shows."""
        every = Curves.unpack(_arrays(self._store, key))
        return replace(every, train=_thinned(every.train), input=_thinned(every.input))

    def add(self, row: Mapping[Hashable, object], keys: Mapping[str, object], own: Curves) -> None:
        """Add what the artifacts of one finished trial hold."""
        material, store = self._material, self._store
        trial, attack, defend = str(row["trial"]), str(row["attack"]), keys.get("defend")
        for scored, roc in own.rocs().items():
            material.curves[trial, scored] = roc
        if own.losses is not None:
            material.losses[trial] = own.losses
        if defend not in self._drawn:
            self._drawn[defend] = _drawn(store, defend)
        if drawn := self._drawn[defend]:
            material.measured[trial] = drawn
        tested = keys.get("tested")
        if attack not in material.pictures and tested not in self._tested:
            self._tested.add(tested)
            shown = _arrays(store, tested, "pictures_clean", "pictures_triggered")
            if shown and len(shown["pictures_clean"]):
                material.pictures[attack] = (shown["pictures_clean"], shown["pictures_triggered"])
        if "inspector" in str(row["kind"]):
            if defend not in self._triggers:
                self._triggers[defend] = _arrays(store, defend, "trigger")
            if estimated := self._triggers[defend]:
                material.triggers[trial] = estimated["trigger"]


def _thinned(curve: Roc | None) -> Roc | None:
    if curve is None:
        return None
    fpr, tpr = thinned_roc(curve.fpr, curve.tpr)
    return Roc(fpr=fpr, tpr=tpr)


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
