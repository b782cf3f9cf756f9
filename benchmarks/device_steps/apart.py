"""Jobs in processes of their own: each may fail, hang, or spoil its CUDA context alone."""

from __future__ import annotations

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from device_steps.bench import last_line

Job = Callable[[], object]
FORK = multiprocessing.get_context("fork")  # CUDA may start in the child if it has not here.


@dataclass(frozen=True)
class Failure:
    """Why a job gave nothing."""

    reason: str


@dataclass
class _Running:
    name: str
    process: BaseProcess
    until: float


def spread(
    jobs: Mapping[str, Job], slots: int, limit: float, until: float
) -> Iterator[tuple[str, object]]:
    """Yield (name, what the job returned, or a Failure) of each job, as they end.

    Args:
        jobs: by name, begun in this order.
        slots: at most so many at once.
        limit: seconds of one job; then it is killed.
        until: the monotonic time at which all that still run are killed.
    """
    waiting = list(jobs.items())[::-1]
    running: dict[Connection, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < slots and time.monotonic() < until:
                name, job = waiting.pop()
                ours, theirs = FORK.Pipe(duplex=False)
                process = FORK.Process(target=_do, args=(job, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = _Running(name, process, min(time.monotonic() + limit, until))
            if not running:
                yield from ((name, Failure("not begun: out of time")) for name, _ in waiting)
                return
            for ours in wait(list(running), timeout=0.2):
                assert isinstance(ours, Connection)
                done = running.pop(ours)
                yield done.name, _received(ours)
                done.process.join(1)
                done.process.kill()
            for ours, late in list(running.items()):
                if time.monotonic() > late.until:
                    late.process.kill()
                    del running[ours]
                    yield late.name, Failure(f"killed after its {limit:.0f} s")
    finally:
        for left in running.values():
            left.process.kill()


def _received(ours: Connection) -> object:
    try:
        return pickle.loads(ours.recv_bytes())
    except EOFError:
        return Failure("the process died")


def _do(job: Job, theirs: Connection) -> None:
    torch.set_num_threads(1)
    try:
        found: object = job()
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        found = Failure(last_line(error))
    theirs.send_bytes(pickle.dumps(found))  # by value: shared memory would end with the process
