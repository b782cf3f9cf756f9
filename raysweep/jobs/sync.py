"""Publishing to Weights & Biases: what is missing of a sweep, and what finishes meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from raysweep.errors import RaysweepError, StoreError
from raysweep.results import entries, records
from raysweep.results.arrivals import Arrivals
from raysweep.results.columns import Cell
from raysweep.results.entries import Entry
from raysweep.results.published import Completion
from raysweep.results.tuned import Tuned
from raysweep.results.wandb import BATCH, Published, Publisher
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Track, restored

LOOK_SECONDS = 5.0  # between two looks for trials that have finished
AWAY_SECONDS = 60.0  # until a server that was away is tried again
WHOLE_SECONDS = 60.0  # between two looks at the whole sweep
SHARE = 0.05  # of a processor, at most, that goes into looks which find less than a batch
WHOLE_SHARE = 0.01  # of a processor, at most, that goes into looks at the whole sweep
TOLD = ("ok", "failed", "upstream_failed")  # status of the trials that have a run


def sync(
    folder: SweepFolder,
    *,
    online: bool = True,
    ended: Callable[[float], bool] = lambda seconds: True,
    tell: Callable[[Published], None] = lambda published: None,
) -> Published:
    """Publish every trial of a stored sweep that is not published, and its tuning.

    Failed trials are published with the rest, once the launch is over: until then a failure may
    still be mended.

    Args:
        folder: of the sweep.
        online: whether runs are sent to W&B, or written below the folder.
        ended: waits for at most so many seconds, and returns whether the launch is over; until then
            trials are published as they finish.
        tell: called with the numbers after every batch.

    Returns:
        the numbers of runs, and what to tell the user.

    Raises:
        StoreError: if there is no such sweep, or nothing of it can be read.
    """
    about = records.describe(folder.store, folder.name)
    sweep = restored(about.sweep) if about.sweep is not None else None
    seed, track = (sweep.seeds[0], sweep.track) if sweep else (0, Track())
    track = track.model_copy(update={"wandb": "online" if online else "offline"})
    completion = Completion(folder, online=online)
    completion.begin()
    with Publisher(folder, track) as publisher:
        if not ended(0):
            _follow(publisher, folder, track, seed, ended, tell)
        state = completion.state()
        rows, raw = _rows(folder), folder.store.read(folder.tuned)
        publisher.begin(len(rows) + (raw is not None))
        for published in publisher.publish(_everything(rows, raw, folder, track, seed)):
            tell(published)
        result = publisher.result()
    if not result.left and not result.warning:
        completion.end(state, result.note)
    return result


def _follow(
    publisher: Publisher,
    folder: SweepFolder,
    track: Track,
    seed: int,
    ended: Callable[[float], bool],
    tell: Callable[[Published], None],
) -> None:
    """Publish trials as they finish, until the launch is over; what fails is left to the end.

    The run of the sweep itself is told anew now and then.
    """

    def settled(trial: str) -> bool:
        return publisher.settled(entries.run_id(folder.name, trial))

    try:
        arrivals = Arrivals(folder.store, folder.name, settled)
        publisher.begin(arrivals.total)
        pause, due, shared = 0.0, 0.0, set[str]()
        while not ended(pause):
            began = time.process_time()
            rows = arrivals.take(BATCH)
            for published in publisher.publish(_told(rows, folder, track, seed, shared)):
                tell(published)
            if time.monotonic() >= due:
                looked = time.process_time()
                for published in publisher.publish(_whole(folder, track)):
                    tell(published)
                due = time.monotonic() + max(
                    WHOLE_SECONDS, (time.process_time() - looked) / WHOLE_SHARE
                )
            # Few trials at a time cost the sweep much: they are gathered, unless many wait.
            spent = time.process_time() - began
            pause = 0.0 if len(rows) == BATCH else max(LOOK_SECONDS, spent / SHARE)
            if publisher.stopped:
                pause = AWAY_SECONDS
                publisher.begin(arrivals.total)
    except (RaysweepError, OSError):
        while not ended(AWAY_SECONDS):
            pass


def _cells(row: Mapping[Any, Cell]) -> dict[str, Cell]:
    """Return cells that say the same whether they come from a manifest or from a table.

    A column of integers in which one is missing is a column of floats in a table.
    """
    return {
        str(column): int(cell) if isinstance(cell, float) and cell.is_integer() else cell
        for column, cell in row.items()
    }


def _told(
    rows: Iterable[Mapping[Any, Cell]],
    folder: SweepFolder,
    track: Track,
    seed: int,
    shared: set[str],
) -> Iterator[Entry]:
    """Yield the entries of trials, and of the stages that they share and that were not told yet."""
    cells = (_cells(row) for row in rows)
    yield from entries.of_trials(cells, folder.name, track, folder.store, seed=seed, told=shared)


def _whole(folder: SweepFolder, track: Track) -> Iterator[Entry]:
    """Yield the entry of the sweep itself, unless nothing of it can be read."""
    with contextlib.suppress(StoreError):
        found = records.read(folder.store, folder.name)
        yield entries.whole(found.sweep, found.rows, found.stages, folder.name, track)


def _rows(folder: SweepFolder) -> pd.DataFrame:
    """Return the rows of all trials that have an end; of a sweep that was only tuned, none."""
    if folder.store.read(folder.description) is None:
        return pd.DataFrame()
    rows = records.read(folder.store, folder.name).rows
    return rows[rows["status"].isin(TOLD)]


def _everything(
    rows: pd.DataFrame, tuned: bytes | None, folder: SweepFolder, track: Track, seed: int
) -> Iterator[Entry]:
    """Yield the entries of trials, of the sweep, and of the tuning, if there is one."""
    shared: set[str] = set()
    for first in range(0, len(rows), BATCH):
        some = rows.iloc[first : first + BATCH].to_dict("records")
        yield from _told(some, folder, track, seed, shared)
    if len(rows):
        yield from _whole(folder, track)
    if tuned is not None:
        where = folder.store.where(folder.tuned)
        yield from entries.of_tuning(Tuned.unpack(tuned, where), folder.name, track)
