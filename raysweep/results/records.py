"""The records of a sweep as a user reads them: one row per trial, and what a report shows.

Once a launch has concluded, its records are read as they were written. Until then (while it runs,
after a kill, where they are damaged) rows are derived from the manifests of what is stored, by
planning the sweep as it was written down: finished trials are `ok`, others `pending`, or failed as
the ledger says.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pandas as pd

from raysweep.errors import RaysweepError, StoreError
from raysweep.plan.race import planner_of
from raysweep.results import history
from raysweep.results.description import Description, as_launched, described
from raysweep.results.rows import Collector
from raysweep.results.table import read_table
from raysweep.results.trials import Trials
from raysweep.results.tuned import Tuned
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder
from raysweep.store.sweepfolder import storage_uri as storage_uri
from raysweep.sweep.spec import restored


def opened(name: str, storage: str | None = None) -> SweepFolder:
    """Return the folder of a sweep that is stored.

    Raises:
        StoreError: if there is no sweep of that name; the message lists those that there are.
    """
    store = Store(storage_uri(storage))
    history.folder_of(store, name)
    return SweepFolder(store, name)


def load(name: str, storage: str | None = None, version: int | None = None) -> Trials:
    """Return the records of a sweep, one row per trial, in the columns and types of the schema.

        rows = raysweep.load("first")
        rows.query("rate == 0.05").pivot("asr", index="defense", columns="attack")
        rows.scores(rows["trial"].iloc[0])

    The columns are the same whatever failed; what is undefined is missing (`pandas.NA`). Beside
    what every DataFrame can do, `pivot` takes means over seeds, and `scores`, `curves` and `images`
    return what a trial has stored. `attrs["sweep"]` describes the sweep: question, text, versions.
    `attrs["notes"]` lists what is to be said about the rows: that they are derived, or that a file
    is damaged.

    Args:
        name: of the sweep.
        storage: where its records are, a folder or a URI; by default RAYSWEEP_STORAGE, else
            `./raysweep-store`.
        version: of the records, as `raysweep status` lists them; by default the newest.

    Raises:
        StoreError: if there is no sweep or version of that name, the message lists those that
            there are; or if there are no records and none can be derived.
    """
    store = Store(storage_uri(storage))
    records = read(store, name, version)
    rows = Trials.of(records.rows, store, history.folder_of(store, name, version))
    rows.attrs |= {"sweep": records.sweep.pack(), "notes": records.notes}
    return rows


def describe(store: Store, name: str) -> Description:
    """Return the stored description of a sweep: question, text, versions; its name at least.

    Raises:
        StoreError: if there is no sweep of that name; the message lists those that there are.
    """
    return _named(described(store, history.folder_of(store, name)), name)


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records of a sweep.

    Attributes:
        rows: one row per trial.
        stages: one row per stage.
        sweep: its description.
        notes: what is to be said about them, a line each.
    """

    rows: pd.DataFrame
    stages: pd.DataFrame
    sweep: Description
    notes: list[str] = field(default_factory=list)


def read(store: Store, name: str, version: int | None = None) -> Records:
    """Return rows and stages of a sweep as written, or as derived from manifests.

    Raises:
        StoreError: as `load` does.
    """
    place = history.folder_of(store, name, version)
    about = described(store, place)
    notes = history.damage(store, place)
    rows, stages = read_table(store, place, "records"), read_table(store, place, "stages")
    sweep = _named(about, name)
    if rows is not None and about.concluded is not False:
        return Records(rows=rows, stages=_or_none(stages), sweep=sweep, notes=notes)
    try:
        collector = collector_of(store, place, about)
    except (RaysweepError, OSError) as error:
        if rows is None:
            raise StoreError(
                f"sweep {name!r} has no records that can be read, and none can be derived from "
                f"what is stored ({error}); launch its file again"
            ) from None
        notes.append(
            f"records of an earlier launch; the last has none that can be derived: {error}"
        )
        return Records(rows=rows, stages=_or_none(stages), sweep=sweep, notes=notes)
    derived, _ = history.with_succeeded(collector.rows(name), rows)
    done = int((derived["status"] == "ok").sum())
    notes.append(f"derived from what is stored: {done} of {len(derived)} trials are finished")
    notes += history.damage_notes(collector.damaged)
    return Records(rows=derived, stages=collector.stages({}), sweep=sweep, notes=notes)


def _named(about: Description, name: str) -> Description:
    return replace(about, name=about.name or name)


def _or_none(stages: pd.DataFrame | None) -> pd.DataFrame:
    return pd.DataFrame() if stages is None else stages


def collector_of(store: Store, place: str, about: Description) -> Collector:
    """Return the collector of a sweep that was written down, planned as it was launched.

    Raises:
        RaysweepError, OSError: if it cannot be planned here.
    """
    if about.sweep is None:
        raise StoreError(f"{store.where(SweepFolder(store, place).description)} is damaged")
    standing = ledger.standing(SweepFolder(store, place))
    planner = planner_of(as_launched(restored(about.sweep), about), launched=True)
    return Collector(planner, store, standing.failed, standing.upstream)


def load_tuned(name: str, storage: str | None = None) -> pd.DataFrame:
    """Return the tuning of a sweep, one row per search and point of its Pareto front.

        raysweep.load_tuned("first").query("defense == 'strip'")

    Args:
        name: of the sweep.
        storage: where its records are, a folder or a URI; by default RAYSWEEP_STORAGE, else
            `./raysweep-store`.

    Columns: the attributes of `TunedRow`, where `parameters` holds mappings; for each metric m,
    tuned_m, default_m (the method's own parameters) and oracle_m as `TunedMetric` has them, and
    the interval tuned_m_low, tuned_m_high. `attrs["tune"]` holds the settings as JSON values.

    Raises:
        StoreError: if there is no sweep of that name, it was not tuned, or its table is damaged.
    """
    folder = opened(name, storage)
    raw = folder.store.read(folder.tuned)
    if raw is None:
        raise StoreError(
            f"sweep {name!r} has no tuned parameters in {folder.store.where()}; tune it first: "
            f"raysweep tune FILE"
        )
    tuned = Tuned.unpack(raw, folder.store.where(folder.tuned))
    frame = pd.DataFrame([row.pack() for row in tuned.rows])
    frame.attrs["tune"] = tuned.settings.model_dump(mode="json")
    return frame
