"""The logs of failed stages, for the trials that wait for them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from raysweep.errors import StoreError
from raysweep.reports.tables import words
from raysweep.results import history
from raysweep.results.grouping import trial_names
from raysweep.results.records import read
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder

NEAREST = 3


@dataclass(frozen=True, kw_only=True)
class FailureLog:
    """The log of a failed stage.

    Attributes:
        stage: its key.
        error: in one line.
        trials: names of the trials that do not finish because of it; none of a tuning's stage.
        where: path or URI of the log.
        text: the log, with the traceback; none if none is stored.
    """

    stage: str
    error: str
    trials: tuple[str, ...]
    where: str
    text: str | None


def failure_logs(store: Store, name: str, trial: str | None = None) -> list[FailureLog]:
    """Return the logs of the stages that failed in the last launch of a sweep and in its tuning.

    Args:
        store: where they are.
        name: of the sweep.
        trial: part of the name or the beginning of the id of trials, to which the stages are
            limited; a tuning's stages are left out then.

    Raises:
        StoreError: if there is no such sweep, or no such trial; the message lists the nearest.
    """
    folder = SweepFolder(store, name)
    logs = []
    if history.folder_of(store, name) == name:
        rows = read(store, name).rows
        logs = _of_trials(folder, rows if trial is None else _named(rows, name, trial))
        logs += [] if trial is not None else _others(folder, logs)
    elif trial is not None:
        raise StoreError(f"sweep {name!r} was tuned and never launched: it has no trials")
    return logs + (_others(folder.tuning, logs) if trial is None else [])


def _of_trials(folder: SweepFolder, rows: pd.DataFrame) -> list[FailureLog]:
    bad = rows[(rows["status"] != "ok") & rows["error_stage"].map(words).astype(bool)]
    names = trial_names(bad)
    return [
        _log(folder, str(stage), words(part["error"].iloc[0]), names[part.index])
        for stage, part in bad.groupby("error_stage", sort=False)
    ]


def _others(folder: SweepFolder, logs: Iterable[FailureLog]) -> list[FailureLog]:
    """Return the logs of stages that the ledger holds to have failed, and no row names."""
    known = {log.stage for log in logs}
    failed = ledger.standing(folder).failed
    return [_log(folder, key, error) for key, error in failed.items() if key not in known]


def _log(folder: SweepFolder, stage: str, error: str, trials: Iterable[str] = ()) -> FailureLog:
    path = folder.log(stage)
    raw = folder.store.read(path)
    return FailureLog(
        stage=stage, error=error, trials=tuple(trials), where=folder.store.where(path),
        text=None if raw is None else raw.decode(errors="replace"),
    )  # fmt: skip


def _named(rows: pd.DataFrame, sweep: str, trial: str) -> pd.DataFrame:
    """Return the rows of the trials that a user means."""
    names = trial_names(rows)
    meant = rows["trial"].str.startswith(trial) | names.str.contains(trial, regex=False)
    if not meant.any():
        near = difflib.get_close_matches(trial, [*names, *rows["trial"]], n=NEAREST, cutoff=0.0)
        raise StoreError(
            f"sweep {sweep!r} has no trial {trial!r}; a trial is named by its id or by a part of "
            f"'attack · defense · seed N'; the nearest: {'; '.join(near)}"
        )
    return rows[meant]
