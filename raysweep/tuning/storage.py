"""The place of Optuna's studies: a database, or a journal file that survives what tears it."""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna

HEARTBEAT_SECONDS = 30


@functools.cache
def open_storage(where: str | Path) -> optuna.storages.BaseStorage:
    """Return the storage at a database's URL or a journal's path.

    A torn last line of a journal, left by a process that died while writing, is cut: Optuna could
    never read on after it. A journal that is damaged elsewhere is left aside as `….damaged`.
    """
    if isinstance(where, str):
        return optuna.storages.RDBStorage(
            where,
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=3 * HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
    where.parent.mkdir(parents=True, exist_ok=True)
    if where.exists():
        text = where.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            where.write_bytes(whole)
    try:
        for line in where.read_bytes().splitlines() if where.exists() else ():
            json.loads(line)  # Optuna would stumble over a last line only when it writes the next
        return _journal(where)
    except Exception:  # noqa: BLE001  whatever Optuna thinks of damaged lines
        # Left aside: the ledger remembers what was told.
        where.replace(where.with_name(f"{where.name}.damaged"))
        return _journal(where)


def _journal(where: Path) -> optuna.storages.BaseStorage:
    backend = optuna.storages.journal.JournalFileBackend(str(where))
    return optuna.storages.JournalStorage(backend)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's notices about experimental parts from the user of a sweep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        yield
