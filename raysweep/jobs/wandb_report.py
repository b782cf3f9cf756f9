"""Write a W&B Report of sweeps from their records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from raysweep.errors import SpecError
from raysweep.results.records import read
from raysweep.results.tuned import Tuned
from raysweep.results.wandb_reports.report import write
from raysweep.results.wandb_reports.subject import Subject
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Track


@dataclass(frozen=True, kw_only=True)
class WandbReport:
    """A W&B Report and its saved view, by their URLs, and what is to be said about them."""

    report: str
    view: str
    notes: list[str] = field(default_factory=list)


def report_to_wandb(names: Sequence[str], storage: str) -> WandbReport:
    """Create or update the W&B Report of a sweep, or of several that are compared.

    Args:
        names: of the sweeps.
        storage: where their records are.

    Raises:
        StoreError: if there is no sweep of a name.
        SpecError: if a sweep tells W&B nothing.
        RaysweepError: if W&B does not take the report.
    """
    store = Store(storage)
    subjects = [_subject(store, name) for name in names]
    written = write(subjects)
    offline = [one.name for one in subjects if one.track.wandb == "offline"]
    notes = [
        f"the runs of {name} are kept offline: the report shows them once they are uploaded"
        for name in offline
    ]
    return WandbReport(report=written.report, view=written.view, notes=notes)


def _subject(store: Store, name: str) -> Subject:
    records = read(store, name)
    plan = records.sweep.sweep or {}
    track = Track.model_validate_json(json.dumps(plan.get("track") or {}))
    if track.wandb == "disabled":
        raise SpecError(
            f"sweep {name} was launched with track.wandb: disabled, so that W&B holds nothing of "
            f"it; set it to online and launch again: nothing is computed anew"
        )
    return Subject(
        name=name, track=track, about=records.sweep, rows=records.rows, stages=records.stages,
        tuned=_tuned(store, name),
    )  # fmt: skip


def _tuned(store: Store, name: str) -> Tuned | None:
    path = SweepFolder(store, name).tuned
    raw = store.read(path)
    return None if raw is None else Tuned.unpack(raw, store.where(path))
