"""Publishing to W&B: seconds and memory per trial, a kill halfway, and what it costs a sweep.

The server is that of the tests, on loopback. Synthetic finished trials, with a manifest for every
stage, are published by `raysweep sync`, which is killed halfway and started again; every run must
be there in the end, and none may have been sent twice. Then a small sweep is launched with and
without publishing, in turns.

    python -m benchmarks.tracking [--trials 5000] [--rounds 2] [--sweep-seeds 10]
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from raysweep.store import Store
from raysweep.sweep.spec import Track
from tests.finished import finished_sweep
from tests.wandb_server import State, serving

ONLINE = Track(wandb="online", project="benchmark")
SWEEP = """
name: small
dataset: digits
model: tiny_cnn
recipe: {{epochs: 2}}
attacks: [badnets: {{rate: 0.05}}, blend: {{rate: 0.05}}]
defenses: [none, strip, spectral_signatures]
seeds: {seeds}
track: {{wandb: {mode}, project: benchmark}}
"""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What processes that have ended took: seconds, CPU seconds, and MB of the largest one.

    `page` is the number of seconds until a launch had written its records and its page.
    """

    seconds: float
    cpu: float
    memory: float
    page: float = 0.0


class Watch:
    """Measures the processes that are started and waited for inside."""

    def __enter__(self) -> Watch:
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._began = time.monotonic()
        return self

    def __exit__(self, *ended: object) -> None:
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = now.ru_utime + now.ru_stime - self._before.ru_utime - self._before.ru_stime
        seconds = time.monotonic() - self._began
        self.spent = Spent(seconds=seconds, cpu=cpu, memory=now.ru_maxrss / 1024)


def arrived(state: State) -> int:
    """Return how often the end of a run was told."""
    return sum(run.completed for run in list(state.runs.values()))


def start(store: Store, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raysweep", "sync", "finished", "--storage", store.uri]
    return subprocess.Popen([*command, *words], start_new_session=True)


def requests(state: State) -> str:
    counts = Counter[str]()
    for label, count in state.requests.items():
        counts[label if label.startswith("graphql") else label.partition(" ")[0]] += count
    return ", ".join(f"{count} {label}" for label, count in counts.most_common())


def publish(state: State, folder: Path, trials: int) -> None:
    """Publish synthetic trials, with a kill halfway, and check what arrived."""
    store = Store(str(folder))
    finished_sweep(store, trials // 2, ONLINE)
    with Watch() as first:
        process = start(store)
        while arrived(state) < trials // 2:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = arrived(state)
    with Watch() as second:
        code = start(store).wait()
    total, twice = len(state.runs), arrived(state) - len(state.runs)
    whole = sum(run.state == "finished" and "ca" in run.summary for run in state.runs.values())
    rest = trials - before
    print(f"{trials} trials; killed when {before} had arrived, after {first.spent.seconds:.1f} s")
    print(f"the other {rest}: {second.spent.seconds:.1f} s, "
          f"{1000 * second.spent.seconds / rest:.1f} ms and "
          f"{1000 * second.spent.cpu / rest:.1f} ms of CPU a trial, "
          f"at most {second.spent.memory:.0f} MB in a process")  # fmt: skip
    print(f"exit {code}; {total} runs are there, {whole} whole, {twice} were sent twice")
    print(f"requests: {requests(state)}")
    assert (code, total, whole, twice) == (0, trials, trials, 0)
    with Watch() as third:
        start(store).wait()
    print(f"again, with nothing to send: {third.spent.seconds:.1f} s")
    with Watch() as offline:
        start(store, "--offline").wait()
    print(f"offline: {offline.spent.seconds:.1f} s, "
          f"{1000 * offline.spent.cpu / trials:.1f} ms of CPU a trial")  # fmt: skip


def slow_down(state: State, folder: Path, rounds: int, seeds: int) -> None:
    """Launch a sweep with and without publishing, in turns."""
    found: dict[str, list[Spent]] = {"disabled": [], "online": []}
    for number in range(rounds):
        for mode, spent in found.items():
            state.clear()
            file = folder / f"{mode}.yaml"
            file.write_text(SWEEP.format(mode=mode, seeds=seeds))
            command = [sys.executable, "-m", "raysweep", "launch", str(file), "--inline"]
            with Watch() as watch:
                subprocess.run(
                    [*command, "--storage", str(folder / f"{mode}-{number}")], check=True,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            page = folder / f"{mode}-{number}/sweeps/small/report.html"
            written = watch.spent.seconds - (time.time() - page.stat().st_mtime)
            spent.append(replace(watch.spent, page=written))
    for mode, spent in found.items():
        for one in spent:
            print(f"{mode:9} page after {one.page:.1f} s, end after {one.seconds:.1f} s, "
                  f"{one.cpu:.1f} s of CPU")  # fmt: skip
    pairs = list(zip(found["online"], found["disabled"], strict=True))
    page = statistics.median(one.page / other.page for one, other in pairs)
    cpu = statistics.median(one.cpu / other.cpu for one, other in pairs)
    print(f"with publishing: {page:.2f} times the seconds until the page, {cpu:.2f} times the CPU; "
          f"{len(state.runs)} runs are there at the end")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sweep-seeds", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving() as state:
        os.environ |= {"WANDB_BASE_URL": state.url, "WANDB_API_KEY": "0" * 40, "HOME": folder}
        if given.trials:
            publish(state, Path(folder) / "finished", given.trials)
        if given.rounds:
            slow_down(state, Path(folder), given.rounds, given.sweep_seeds)


if __name__ == "__main__":
    main()
