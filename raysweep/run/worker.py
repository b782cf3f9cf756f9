"""A worker process of a cluster: its batches, its turn among the others, its leaving."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Iterator
from typing import NoReturn

from ray.experimental import internal_kv

from raysweep.run.batch import Batch
from raysweep.stages.stage import Result
from raysweep.store import Store

_STORES: dict[str, Store] = {}


def perform(batch: Batch) -> Iterator[Result]:
    """Run the stages of a batch, as long as this process can; an error is a result of each left."""
    left = list(batch.stages)
    try:
        from raysweep.stages import perform
        from raysweep.training import device

        store = _STORES.setdefault(batch.store, Store(batch.store))
        while left:
            yield perform.perform(left[0], store, batch.provenance, batch.gpus)
            del left[0]
            if device.broken():
                return  # What is left of the batch goes to another process.
    except Exception as error:  # noqa: BLE001  it is this host's, not the process's death
        for stage in left:
            yield Result(
                key=stage.key, status="failed", host=socket.gethostname(), lasting=False,
                error=f"{type(error).__name__}: {error}"[:2000], trace=traceback.format_exc(),
            )  # fmt: skip


def leave(ticket: str) -> NoReturn:
    """End this process before it begins a batch, so that its stages go to a fresh one."""
    internal_kv._internal_kv_put(ticket, b"1", overwrite=True)
    os._exit(1)


def ended_early(ticket: str) -> bool:
    """Return whether a worker ended before it began its batch; asked once per ticket."""
    return bool(internal_kv._internal_kv_del(ticket))
