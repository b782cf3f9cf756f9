"""A worker process of a cluster: its batches, its turn among the others, its leaving."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import traceback
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import NoReturn

import ray
from ray.experimental import internal_kv

from raysweep.run.cluster.batch import Batch
from raysweep.run.cluster.output import Output, remove_left, with_output
from raysweep.run.cluster.watch import Watch
from raysweep.stages.stage import Result
from raysweep.store import Store

_STORES: dict[str, Store] = {}
_exit = os._exit


def prepare() -> Watch:
    """Return the watch over this process, from now on also over how it ends.

    A method that ends the process (`os._exit`), a crash of C code, and SIGTERM are then told as
    what they are.
    """
    watch = Watch()

    def ended(code: int) -> NoReturn:
        if watch.at_work:
            error = f"SystemExit: the method ended its process with exit code {code} (os._exit)"
            watch.end(code, error, lasting=True)
        _exit(code)

    def stopped(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        name = signal.Signals(number).name
        watch.end(128 + number, f"its process was told to end ({name})", lasting=False)

    os._exit = ended  # type: ignore[assignment]
    signal.signal(signal.SIGTERM, stopped)
    faulthandler.enable(file=2)
    remove_left()
    return watch


def refuse_gpus(batch: Batch) -> None:
    """Let this host be given no more GPU work if a batch holds a GPU and CUDA cannot be used."""
    from raysweep.training import device

    if reason := device.refusal(batch.gpus):
        node = ray.get_runtime_context().get_node_id()
        name = f"{batch.refusing}{batch.resource}/{node}"
        internal_kv._internal_kv_put(name, reason.encode(), overwrite=True)
        leave(batch.ticket)


def perform(batch: Batch, watch: Watch) -> Iterator[Result]:
    """Run the stages of a batch, as long as this process can; an error is a result of each left."""
    left = list(batch.stages)
    try:
        from raysweep.stages import perform
        from raysweep.training import device

        store = _STORES.setdefault(batch.store, Store(batch.store))
        with watch.over(batch) as output:
            while left:
                with output.taking(left[0].key):
                    result = perform.perform(left[0], store, batch.provenance, batch.gpus)
                yield _told(result, output)
                del left[0]
                if device.broken():
                    return  # What is left of the batch goes to another process.
    except Exception as error:  # noqa: BLE001  it is this host's, not the process's death
        for stage in left:
            yield Result(
                key=stage.key, status="failed", host=socket.gethostname(), lasting=False,
                error=f"{type(error).__name__}: {error}"[:2000], trace=traceback.format_exc(),
            )  # fmt: skip


def _told(result: Result, output: Output) -> Result:
    """Return a result; a failed one with what the stage wrote."""
    if result.status != "failed":
        return result
    return replace(result, trace=with_output(result.trace, output.last()))


def leave(ticket: str) -> NoReturn:
    """End this process before it begins a batch, so that its stages go to a fresh one."""
    internal_kv._internal_kv_put(ticket, b"1", overwrite=True)
    _exit(1)


def ended_early(ticket: str) -> bool:
    """Return whether a worker ended before it began its batch; asked once per ticket."""
    return bool(internal_kv._internal_kv_del(ticket))
