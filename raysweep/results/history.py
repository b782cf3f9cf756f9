"""The records of a sweep's name: the newest, and earlier versions beside them.

    sweeps/<name>/sweep.json, records.parquet, stages.parquet, report.html   the newest
    sweeps/<name>/versions/<n>/…                                             earlier ones, from 1
    sweeps/<name>/tune/sweep.json, ledger/, …                                of the name's tuning

A launch of another sweep under a name keeps what was there as a version, and so does one whose
rows would replace rows that succeeded by others. What is damaged here is left aside: rows are
derived from manifests, and the next launch writes everything anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raysweep.errors import StoreError
from raysweep.results.columns import KEYS
from raysweep.results.description import (
    Description,
    described,
    write_description,
)
from raysweep.results.table import read_table, write_tables
from raysweep.store import Store
from raysweep.store.sweepfolder import (
    DESCRIPTION,
    RECORDS,
    REPORT,
    STAGES,
    SweepFolder,
    names,
    storage_uri,
)
from raysweep.sweep.differences import deciding, differences
from raysweep.sweep.spec import Sweep

if TYPE_CHECKING:
    import pandas as pd

_EVALUATED = KEYS.of("evaluate")


def damage(store: Store, place: str) -> list[str]:
    """Return a line for each file of a sweep's records that is there and cannot be read."""
    lines = []
    known = {
        DESCRIPTION: described(store, place) != Description(),
        RECORDS: read_table(store, place, "records") is not None,
        STAGES: read_table(store, place, "stages") is not None,
    }
    for file, readable in known.items():
        path = SweepFolder(store, place).path(file)
        if not readable and store.read(path) is not None:
            lines.append(f"{store.where(path)} is damaged; the next launch writes it anew")
    return lines


def damage_notes(keys: Sequence[str]) -> list[str]:
    """Return the line that says which stored stages are damaged; none if none is."""
    if not keys:
        return []
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return [f"damaged, and counted as missing until the next launch: {min(keys)}{more}"]


# Versions


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a name's records.

    Attributes:
        number: from 1; the newest has the highest.
        launched: when, in seconds since 1970; 0 if that is not known.
        rows, ok: how many rows its records have, and how many of them succeeded; none if there
            are no records.
    """

    number: int
    launched: float
    rows: int | None
    ok: int | None


def versions(store: Store, name: str) -> list[Version]:
    """Return all versions of a name's records, the newest last."""
    folder = SweepFolder(store, name)
    earlier = folder.versions()
    places = [(n, folder.version(n).name) for n in earlier]
    found = []
    for number, place in [*places, (max(earlier, default=0) + 1, name)]:
        frame = read_table(store, place, "records")
        found.append(
            Version(
                number=number, launched=float(described(store, place).created_at or 0),
                rows=None if frame is None else len(frame),
                ok=None if frame is None else int((frame["status"] == "ok").sum()),
            )
        )  # fmt: skip
    return found


def folder_of(store: Store, name: str, version: int | None = None) -> str:
    """Return the folder of a sweep's records, below `sweeps/`.

    A sweep that was tuned and never launched is where its tuning is.

    Raises:
        StoreError: if there is no such sweep or version; the message lists those that there are.
    """
    folder = SweepFolder(store, name)
    paths = [] if "/" in name else store.list(folder.path())
    if not paths:
        known = ", ".join(names(store)) or "none"
        file = "/" in name or name.endswith((".yaml", ".yml", ".py"))
        hint = "; give the name that the sweep file sets, not the file" if file else ""
        raise StoreError(
            f"no sweep {name!r} in {store.where()}; there are: {known}{hint}; "
            f"another place is named with --storage or RAYSWEEP_STORAGE"
        )
    earlier = folder.versions()
    newest = max(earlier, default=0) + 1
    if version is not None and version in earlier:
        return folder.version(version).name
    if version not in (None, newest):
        known = ", ".join(map(str, [*earlier, newest]))
        raise StoreError(f"sweep {name!r} has no version {version}; there are: {known}")
    own = {folder.description, folder.records}
    tuned = folder.tuning.description in paths
    return folder.tuning.name if tuned and own.isdisjoint(paths) else name


def keep_earlier(store: Store, sweep: Sweep) -> list[str]:
    """Keep what another sweep left under a name as a version, before it is launched anew.

    Returns what to tell the user: which version it is, and how the two sweeps differ.
    """
    before = described(store, sweep.name)
    told = differences(before.sweep, sweep) if before.sweep is not None else []
    if not told:
        return []
    number = _keep(store, sweep.name, before)
    for file in (RECORDS, STAGES, REPORT):
        store.delete(SweepFolder(store, sweep.name).path(file))
    return [f"{_said(store, sweep.name, number)}; this sweep differs from theirs:", *told]


def _said(store: Store, name: str, number: int) -> str:
    """Return the note on how to load a version; it names the storage unless it is the default."""
    default = store.uri == Store(storage_uri()).uri
    place = "" if default else f", storage={store.where()!r}"
    return f"the records of {name} so far are kept: load({name!r}, version={number}{place})"


def _keep(store: Store, name: str, description: Description) -> int:
    """Copy the newest records into a version, unless one holds them already; return its number."""
    frame, plan = read_table(store, name, "records"), description.sweep or {}
    folder = SweepFolder(store, name)
    earlier = folder.versions()
    for number in earlier:
        place = folder.version(number).name
        alike = deciding(described(store, place).sweep or {}) == deciding(plan)
        if alike and succeeded(frame) <= succeeded(read_table(store, place, "records")):
            return number
    number = max(earlier, default=0) + 1
    for file in (STAGES, REPORT, RECORDS):
        if (data := store.read(folder.path(file))) is not None:
            store.write(folder.version(number).path(file), data)
    write_description(store, folder.version(number).name, description)
    return number


# Rows that succeeded


def succeeded(frame: pd.DataFrame | None) -> set[tuple[str, str]]:
    """Return trial and evaluation of every row that succeeded."""
    if frame is None or _EVALUATED not in frame:
        return set()
    done = frame[frame["status"] == "ok"]
    return set(zip(done["trial"], done[_EVALUATED], strict=True))


def with_succeeded(rows: pd.DataFrame, *earlier: pd.DataFrame | None) -> tuple[pd.DataFrame, int]:
    """Return rows in which a trial that did not succeed keeps its row that did; and how many.

    An earlier row is of the same trial if every key that the new one names is its own, too: on
    other data, or by other code, it would be another result.
    """
    kept: dict[int, dict[Hashable, object]] = {}
    lacking = rows[rows["status"] != "ok"]
    keys = list(KEYS.within(rows.columns).values())
    for frame in earlier:
        if frame is None or lacking.empty:
            continue
        done = frame[frame["status"] == "ok"].drop_duplicates("trial").set_index("trial")
        for number, row in lacking.iterrows():
            if number in kept or row["trial"] not in done.index:
                continue
            other = done.loc[row["trial"]].dropna()
            if all(row[key] == other.get(key) for key in keys if isinstance(row[key], str)):
                kept[int(number)] = {"trial": row["trial"], **other.to_dict()}  # type: ignore[call-overload]
    if not kept:
        return rows, 0
    import pandas as pd

    merged = [kept.get(n, row) for n, row in enumerate(rows.to_dict("records"))]
    frame = pd.DataFrame(merged)
    return frame[[*rows.columns, *(c for c in frame.columns if c not in rows.columns)]], len(kept)


def store_records(
    store: Store,
    name: str,
    rows: pd.DataFrame,
    stages: pd.DataFrame,
    before: Description,
) -> tuple[pd.DataFrame, list[str]]:
    """Store the records of a launch; return them, and what to tell the user.

    Args:
        store: where the records are kept.
        name: of the sweep.
        rows: one row per trial.
        stages: one row per stage.
        before: the description of the records that were there when the launch began.
    """
    previous, notes = read_table(store, name, "records"), []
    rows, kept = with_succeeded(rows, previous, *_latest(store, name))
    if kept:
        notes.append(f"{kept} trials did not succeed this time and keep the rows of an earlier one")
    if not succeeded(previous) <= succeeded(rows):
        number = _keep(store, name, before)
        notes.append(f"{_said(store, name, number)}; other data or code made them")
    write_tables(store, name, rows, stages)
    write_description(store, name, replace(described(store, name), concluded=True))
    return rows, notes


def _latest(store: Store, name: str) -> Iterator[pd.DataFrame | None]:
    folder = SweepFolder(store, name)
    for number in folder.versions()[-1:]:
        yield read_table(store, folder.version(number).name, "records")
