"""Run one stage where it stands: read its inputs, do its work, store what it leaves.

A failure is a result, never an exception: it costs the rows of its own trials, not the sweep.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Mapping

import torch

from raysweep import provenance, rng
from raysweep.environment import explained
from raysweep.errors import DamagedArtifact, FilesError, StoreError
from raysweep.identity import Json, kind_of
from raysweep.methods import Context, by_content
from raysweep.stages.checkpoints import checkpoint
from raysweep.stages.current import CurrentStage, performing
from raysweep.stages.inputs import Inputs
from raysweep.stages.memory import Peak
from raysweep.stages.stage import Packed, Result, Work
from raysweep.store import Store
from raysweep.training import device, global_seed, resident

_OF_THE_HOST = (FilesError, StoreError, OSError, MemoryError)


def context(
    stage: Packed, work: Work, store: Store, now: CurrentStage, read: Mapping[str, str]
) -> Context:
    """Return the context of a stage's method: streams of its own, a device, checkpoints."""
    seed = rng.derive(int(str(stage.params.get("seed", 0))), kind_of(stage.key), work.method)
    return Context(
        seed=rng.derive(seed, str(stage.params.get("part", ""))),
        device=now.device,
        progress=now.progress,
        kept=checkpoint(stage, work, store, now.device, read),
    )


def perform(stage: Packed, store: Store, run: Mapping[str, Json], gpus: float) -> Result:
    """Run a stage and store what it gives.

    Whatever the method raises is a failed result, also what would end the process: it costs the
    rows of this stage. A caller that waits for a signal asks whether one has come.

    Args:
        stage: the stage; all that it needs is stored.
        store: where artifacts are.
        run: recorded with the artifact beside what is known of this host, never hashed.
        gpus: what the stage holds; above 0 it computes on CUDA.
    """
    with performing(stage.key) as now:
        try:
            return _performed(stage, store, run, gpus, now)
        except DamagedArtifact as error:
            host = socket.gethostname()
            return Result(key=stage.key, status="damaged", host=host, damaged=error.key)
        except BaseException as error:  # noqa: BLE001  it costs its own rows, not the sweep
            return _failed(stage.key, now.seconds, error)
        finally:
            resident.forget()


def _performed(
    stage: Packed, store: Store, run: Mapping[str, Json], gpus: float, now: CurrentStage
) -> Result:
    """Return the result of a stage whose work went well, stored."""
    start, host, peak = time.perf_counter(), socket.gethostname(), Peak()
    work = stage.unpacked()
    torch.set_num_threads(work.threads)
    now.device = where = device.claim(gpus)
    peak.begin(where)
    with global_seed(0):
        keys = {**stage.inputs, **stage.reads}
        # Before anything is read: what is replaced meanwhile is then found to have changed.
        read = {k: m.content for k, m in store.manifests(keys.values())[0].items()}
        product = work.perform(Inputs(keys, store, context(stage, work, store, now, read)))
    seconds = time.perf_counter() - start
    info = {
        **product.info,
        **run,
        **provenance.of_host(where),
        "seconds": round(seconds, 4),
        "gpu_seconds": round(seconds * gpus, 4),
        "peak_memory_bytes": peak.host_bytes,
        "peak_gpu_memory_bytes": peak.gpu_bytes,
        "device": where,
        "host": host,
        "finished_at": time.time(),
        "identity": [work.VERSION, by_content(stage.params), stage.inputs],
        "read": read,
    }
    store.put(stage.key, arrays=product.arrays, outcome=product.outcome, info=info)
    if work.LONG:
        with contextlib.suppress(StoreError):  # it is stored; what is left is litter
            store.drop_checkpoint(stage.key)
    return Result(key=stage.key, status="done", host=host, seconds=seconds, pid=os.getpid())


def _failed(key: str, seconds: float, error: BaseException) -> Result:
    hosts = isinstance(error, _OF_THE_HOST)
    return Result(
        key=key,
        status="failed",
        host=socket.gethostname(),
        seconds=seconds,
        error=f"{type(error).__name__}: {explained(error) if hosts else error}"[:2000],
        trace="".join(traceback.format_exception(error, limit=30))[-8000:],
        lasting=not (hosts or device.passing(error)),
    )
