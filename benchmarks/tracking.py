"""Publishing to W&B: seconds and memory per trial, a kill halfway, and what it costs a sweep.

The server is that of the tests, on loopback. Synthetic finished trials, with a manifest for every
stage, are published by `raysweep sync`, which is killed halfway and started again; every run must
be there in the end, and none may have been sent twice. Each trial has a victim of its own, which is
a run, too: the limit of runs in a project is lifted.

Then a sweep is launched on Ray, on two slots that its stages keep busy, with and without
publishing, in turns. From its ledger: seconds from the first stage to the last one stored, seconds
from the first stage until records and page are written, and seconds from the last stage until all
is published. Runs stay offline, as they do by default; with `--online`, the server takes part of
the same processors.

    python -m benchmarks.tracking [--trials 5000] [--rounds 3] [--sweep-seeds 10]
        [--busy] [--online]

`--busy` launches the sweep of `benchmarks.busy` instead: `--sweep-seeds 20` are 1,920 trials.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.busy import TEXT
from raysweep.results.published import COMPLETE
from raysweep.store import Store
from raysweep.store.events import Dispatch, Done
from raysweep.store.ledger import read
from raysweep.store.sweepfolder import SweepFolder
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
    """What processes that have ended took: seconds, CPU seconds, and MB of the largest one."""

    seconds: float
    cpu: float
    memory: float


@dataclass(frozen=True, kw_only=True)
class Launched:
    """The seconds of a launch.

    Attributes:
        stages: from its first stage to the last one stored.
        page: from its first stage until records and page were written.
        published: from its last stage until all was published; infinite if something was left.
        end: from its last stage until its process had ended.
        runs: how many runs there are.
    """

    stages: float
    page: float
    published: float
    end: float
    runs: int


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
    code = (
        "from raysweep.results import wandb; wandb.MOST_RUNS = 10**6; "
        "from raysweep.cli.app import main; main()"
    )
    command = [sys.executable, "-c", code, "sync", "finished", "--storage", store.uri]
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
        while arrived(state) < trials:  # half of the runs: of each trial, and of each victim
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = arrived(state)
    with Watch() as second:
        code = start(store).wait()
    runs = list(state.runs.values())
    told = [run for run in runs if "trial" in run.config]
    whole = sum(run.state == "finished" and "ca" in run.summary for run in told)
    rest, twice = len(runs) - before, arrived(state) - len(runs)
    print(f"{trials} trials, {len(runs)} runs; killed when {before} had arrived, "
          f"after {first.spent.seconds:.1f} s")  # fmt: skip
    print(f"the other {rest}: {second.spent.seconds:.1f} s, "
          f"{1000 * second.spent.seconds / rest:.1f} ms and "
          f"{1000 * second.spent.cpu / rest:.1f} ms of CPU a run, "
          f"at most {second.spent.memory:.0f} MB in a process")  # fmt: skip
    print(f"exit {code}; {len(told)} trials are there, {whole} whole, {twice} runs were sent twice")
    print(f"requests: {requests(state)}")
    assert (code, len(told), whole, twice) == (0, trials, trials, 0)
    with Watch() as third:
        start(store).wait()
    print(f"again, with nothing to send: {third.spent.seconds:.1f} s")
    with Watch() as offline:
        start(store, "--offline").wait()
    print(f"offline: {offline.spent.seconds:.1f} s, "
          f"{1000 * offline.spent.cpu / len(runs):.1f} ms of CPU a run")  # fmt: skip


def launched(text: str, name: str, storage: Path) -> Launched:
    """Launch a sweep on two slots in a process of its own, and read what it took."""
    file = storage.with_suffix(".yaml")
    file.write_text(text)
    subprocess.run(
        [sys.executable, "-m", "raysweep", "launch", str(file), "--storage", str(storage),
         "--max-concurrent", "2"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    ended = time.time()
    folder = SweepFolder(Store(str(storage)), name)
    events = list(read(folder))
    first = min(event.t for event in events if isinstance(event, Dispatch))
    last = max(event.t for event in events if isinstance(event, Done))
    own = storage / "sweeps" / name
    complete = own / "wandb" / COMPLETE
    return Launched(
        stages=last - first,
        page=(own / "report.html").stat().st_mtime - first,
        published=complete.stat().st_mtime - last if complete.exists() else math.inf,
        end=ended - last,
        runs=len(list(own.glob("wandb/wandb/offline-run-*"))),
    )


def slow_down(state: State, folder: Path, rounds: int, seeds: int, mode: str, busy: bool) -> None:
    """Launch a sweep with and without publishing, in turns."""
    found: dict[str, list[Launched]] = {"disabled": [], mode: []}
    for number in range(rounds):
        for one, spent in found.items():
            state.clear()
            text = SWEEP.format(mode=one, seeds=seeds)
            if busy:
                text = TEXT.format(seeds=seeds).replace("wandb: disabled", f"wandb: {one}")
            name = "busy" if busy else "small"
            spent.append(launched(text, name, folder / f"{one}-{number}"))
            told = spent[-1]
            print(f"{one:9} {told.stages:.1f} s of stages, page after {told.page:.1f} s; after "
                  f"the last stage: all published {told.published:.1f} s, end {told.end:.1f} s; "
                  f"{max(told.runs, len(state.runs))} runs", flush=True)  # fmt: skip
    pairs = list(zip(found[mode], found["disabled"], strict=True))
    stages = statistics.median(one.stages / other.stages for one, other in pairs)
    page = statistics.median(one.page / other.page for one, other in pairs)
    published = statistics.median(one.published for one in found[mode])
    print(f"with publishing: {stages:.3f} times the seconds from the first stage to the last, "
          f"{page:.3f} times until records and page are written; all is published "
          f"{published:.1f} s after the last stage")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sweep-seeds", type=int, default=10)
    parser.add_argument("--online", action="store_true")
    parser.add_argument("--busy", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving() as state:
        os.environ |= {"WANDB_BASE_URL": state.url, "WANDB_API_KEY": "0" * 40, "HOME": folder}
        if given.trials:
            publish(state, Path(folder) / "finished", given.trials)
        if given.rounds:
            mode = "online" if given.online else "offline"
            slow_down(state, Path(folder), given.rounds, given.sweep_seeds, mode, given.busy)


if __name__ == "__main__":
    main()
