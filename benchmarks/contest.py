"""Contests: runs compared round by round on a machine that others may use too.

Each contestant lives in a process of its own, which waits while another one runs. A round runs all
of them once, every other round in reverse, so that a drift or an order harms none. What is compared
are ratios within a round, by wall-clock and by CPU time; a contest knows how many CPUs others kept
busy meanwhile, goes on until enough rounds were quiet, and says so where they were not.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

BUSY = 0.1  # CPUs in use by others, from which on wall-clock times are not to be quoted
ROUNDS = 2  # at most so many times the rounds asked for, while the machine is busy
Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one run took: seconds, CPU seconds of its processes, CPUs that others kept busy."""

    wall: float
    cpu: float
    others: float


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The median over the rounds, and the least and the greatest."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}–{self.greatest:.2f})"


class Rounds:
    """What every contestant spent in every round."""

    def __init__(self, first: Mapping[str, Spent], rounds: list[dict[str, Spent]]) -> None:
        self.first = first
        quiet = [one for one in rounds if self._others([one]) < BUSY]
        self.rounds = quiet if len(quiet) >= min(3, len(rounds)) else rounds

    @staticmethod
    def _others(rounds: list[dict[str, Spent]]) -> float:
        return max(spent.others for one in rounds for spent in one.values())

    @property
    def others(self) -> float:
        """The most CPUs that others kept busy during one of the runs that count."""
        return self._others(self.rounds)

    @property
    def is_busy(self) -> bool:
        """Return whether wall-clock times of these rounds say little."""
        return self.others >= BUSY

    def seconds(self, name: str, clock: str = "wall") -> float:
        """Return the median seconds of a contestant, by the clock `wall` or `cpu`."""
        median: float = statistics.median(getattr(one[name], clock) for one in self.rounds)
        return median

    def times(self, name: str, *others: str, clock: str = "wall") -> Ratio:
        """Return how many times as fast as the best of `others` a contestant is."""
        best = min(others, key=lambda other: self.seconds(other, clock))
        found = [getattr(one[best], clock) / getattr(one[name], clock) for one in self.rounds]
        return Ratio(median=statistics.median(found), least=min(found), greatest=max(found))


class Apart:
    """A run in a process of its own, which sleeps except while it is asked to run."""

    def __init__(
        self, threads: int, environment: Mapping[str, str], make: Callable[..., Run], *given: Any
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads, make, given))
        with patch.dict(os.environ, environment):  # libraries read it while they are loaded
            self.process.start()
        theirs.close()  # The end of the process is then an error here, not silence.

    def __call__(self) -> Spent:
        """Run once."""
        before, start = busy_seconds(), time.perf_counter()
        self.pipe.send(True)
        wall, cpu = self.pipe.recv()
        whole, after = time.perf_counter() - start, busy_seconds()
        return Spent(wall=wall, cpu=cpu, others=max(0.0, after - before - cpu) / whole)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):  # it may have failed
            self.pipe.send(False)
        self.process.join()


def _serve(pipe: Any, threads: int, make: Callable[..., Run], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    run = make(*given)
    while pipe.recv():
        cpu, start = _cpu_seconds(), time.perf_counter()
        run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        pipe.send((time.perf_counter() - start, _cpu_seconds() - cpu))


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the living processes that it started."""
    return time.process_time() + sum(
        time.clock_gettime((~child.pid << 3) | 2)  # as clock_getcpuclockid(3) makes it
        for child in multiprocessing.active_children()
        if child.pid is not None
    )


def busy_seconds(facts: str | None = None) -> float:
    """Return the CPU seconds since boot in which this machine worked, or its host kept it waiting.

    `facts` is the text of /proc/stat, by default the system's; without one the answer is 0.
    """
    if facts is None:
        path = Path("/proc/stat")
        facts = path.read_text() if path.exists() else "cpu 0 0 0 0 0 0 0 0"
    user, nice, system, _idle, _waiting, *interrupts = map(int, facts.split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def contest(
    runs: Mapping[str, tuple[Any, ...]],
    repetitions: int,
    threads: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> Rounds:
    """Run every contestant once per round, until so many rounds were quiet, or twice as many ran.

    Args:
        runs: name → what makes a run, and its arguments.
        repetitions: rounds, after a first one that counts for nothing.
        threads: of each contestant.
        environments: name → variables of the environment that are set for one contestant.
    """
    apart: dict[str, Apart] = {}
    try:
        first = {}
        for name, run in runs.items():
            apart[name] = Apart(threads, (environments or {}).get(name, {}), *run)
            first[name] = apart[name]()
        rounds: list[dict[str, Spent]] = []
        quiet = 0
        while quiet < repetitions and len(rounds) < ROUNDS * repetitions:
            order = list(apart) if len(rounds) % 2 == 0 else list(apart)[::-1]
            rounds.append({name: apart[name]() for name in order})
            quiet += max(spent.others for spent in rounds[-1].values()) < BUSY
    finally:
        for one in apart.values():
            one.close()
    return Rounds(first, rounds)


def machine() -> dict[str, Any]:
    """Return what timings depend on: processor, CPUs, kernels, torch."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line.partition(":") for line in text.splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = facts.get("flags", "").split()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processor": facts.get("model name", "unknown"),
        "CPUs": len(os.sched_getaffinity(0)),
        "AMX": "amx_bf16" in flags,
        "AVX-512": "avx512f" in flags,
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
    }
