"""Steps 8 and 9: whole sweeps under Ray: fractions of a GPU, and a row of a paper."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from device_steps.bench import Bench

FRACTIONS = (0.25, 1.0, 0.5)
SMI = ("nvidia-smi", "--format=csv,noheader,nounits")


class Watch:
    """Samples of the GPU while a block runs: its utilization, and who holds contexts."""

    def __init__(self, bench: Bench) -> None:
        self.on = bench.cuda and shutil.which(SMI[0]) is not None
        self.busy: list[tuple[float, float]] = []  # time, per cent
        self.contexts: list[Counter[str]] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=f) for f in (self._busy, self._contexts)]

    def __enter__(self) -> Watch:
        if self.on:
            for thread in self.threads:
                thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        if self.on:
            for thread in self.threads:
                thread.join()

    def _busy(self) -> None:
        asked = [*SMI, "--query-gpu=utilization.gpu", "-lms", "200"]
        with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip().isdigit():
                    self.busy.append((time.time(), float(line)))
                if self.over.is_set():
                    process.kill()
                    return

    def _contexts(self) -> None:
        asked = [*SMI, "--query-compute-apps=pid,used_memory"]
        while not self.over.wait(0.5):
            said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
            pids = [line.partition(",")[0].strip() for line in said.stdout.splitlines()]
            self.contexts.append(Counter(_title(pid) for pid in pids if pid.isdigit()))


def _title(pid: str) -> str:
    """Return the name of a process; a worker of Ray is named by what it does."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split()
    except OSError:
        return "gone"
    return words[0].rpartition("/")[2] if words else "gone"


class CandidateEnd:
    """Notes each stage of the gpu class, and each trial's ASR and CA, as soon as it is stored."""

    def __init__(self, bench: Bench, row: str) -> None:
        self.bench, self.row = bench, row
        self.known: set[str] = set()

    def __call__(self, run: Any) -> None:
        """Note what is new of a run; called after every change of it."""
        for key in [key for key in run.schedule.ran if key not in self.known]:
            self.known.add(key)
            stage = run.planner.stages[key]
            manifest = run.store.manifest(key)
            if manifest is None:
                continue
            if stage.kind == "evaluate":
                found = run.store.outcome(key)
                text = ", ".join(
                    f"{n} {found[n]:.4f}" for n in ("asr", "ca") if found.get(n) is not None
                )
                trial = ", ".join(sorted(role for role in stage.inputs if role != "data"))
                self.bench.note(f"{self.row}, evaluated", f"[{trial}]", text)
            elif stage.resource == "gpu":
                what = f"{stage.kind} {stage.params.get('part', '')}".strip()
                seconds, device = manifest.info["seconds"], manifest.info["device"]
                self.bench.note(f"{self.row}, stages", what, seconds, f"s on {device}")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Start Ray once for several sweeps: on a fresh machine its start takes longer than they do."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # nobody but us is on the machine
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    asked = ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}/ray"]
    with (folder / "ray.log").open("w") as log:
        ray = subprocess.Popen([*command, *asked], stdout=log, stderr=log, start_new_session=True)
    said = folder / "ray" / "ray_current_cluster"
    try:
        while "runtime started" not in (folder / "ray.log").read_text() and ray.poll() is None:
            time.sleep(0.2)
        yield said.read_text().strip()
    finally:
        os.killpg(ray.pid, signal.SIGKILL)
        ray.wait()


def run_sweep(
    bench: Bench,
    values: dict[str, Any],
    folder: Path,
    told: Callable[[Any], None],
    address: str | None = None,
) -> tuple[Any, Watch, float]:
    """Launch a sweep under Ray; return its conclusion, samples and wall seconds."""
    from raysweep.jobs.launch import launch
    from raysweep.sweep.loading import load_sweep

    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    file = folder / f"{values['name']}.yaml"
    file.write_text(yaml.safe_dump({**values, "track": {"wandb": "disabled"}}))
    start = time.perf_counter()
    # A sweep that takes too long is interrupted, as by Ctrl-C: what finished is still told.
    stop = threading.Timer(max(bench.left - 20, 1), os.kill, (os.getpid(), signal.SIGINT))
    stop.start()
    try:
        with Watch(bench) as watch:
            sweep, store = load_sweep(file), str(folder / "store")
            done = launch(sweep, file.read_text(), store, address=address, watch=told)
    finally:
        stop.cancel()
    return done, watch, time.perf_counter() - start


def _stages(run: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Return the stages that this run did, with what their manifests say."""
    found = []
    for key in run.schedule.ran:
        stage = run.planner.stages[key]
        manifest = run.store.manifest(key)
        if manifest is not None:
            found.append((stage, dict(manifest.info)))
    return found


def fractions(bench: Bench) -> None:
    """Run the same small sweep at three shares of the GPU, on one Ray."""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as name:
        folder, start = Path(name), time.perf_counter()
        with cluster(folder) as address:
            bench.note("Ray", "starts in", time.perf_counter() - start, "s")
            for at, share in enumerate(bench.pick(FRACTIONS, (0.0,))):
                row = f"sweep at gpu {share:g}"

                def sweep(r: str = row, s: float = share, a: int = at) -> None:
                    _sweep(bench, r, s, a, folder, address)

                bench.attempt(row, sweep, 15)


def _dataset() -> str:
    folder = Path(os.environ.get("RAYSWEEP_DATA", "/nowhere"))
    return "cifar10" if (folder / "cifar10-train.parquet").exists() else "digits"


def _sweep(bench: Bench, row: str, share: float, at: int, folder: Path, address: str) -> None:
    # Another learning rate, so that no victim of an earlier share is stored already.
    recipe = {"epochs": bench.pick(10, 1), "batch_size": 128, "learning_rate": 0.05 + 0.01 * at}
    values = {
        "name": f"fraction{at}", "dataset": bench.pick(_dataset(), "digits"), "model": "tiny_cnn",
        "recipe": recipe | {"augment": ["crop", "flip"]},
        "attacks": [{"badnets": {"rate": bench.pick([0.05, 0.1], 0.1)}}], "defenses": ["none"],
        "seeds": bench.pick(6, 1), "resources": {"gpu": {"cpu": 1, "gpu": share}},
    }  # fmt: skip
    runs: list[Any] = []
    done, watch, took = run_sweep(bench, values, folder, runs.append, address)
    if not runs:
        raise TimeoutError("the sweep was interrupted before its first stage")
    run, stages = runs[0], _stages(runs[0])
    bench.note(row, "wall", took, "s")
    statuses = dict(done.rows["status"].value_counts())
    bench.note(row, "trials", ", ".join(f"{n} {status}" for status, n in statuses.items()))
    held = [info for stage, info in stages if stage.resource == "gpu"]
    devices = Counter(info["device"] for info in held)
    bench.note(row, "gpu stages on", ", ".join(f"{d}: {n}" for d, n in devices.items()))
    for error in list(run.schedule.failed.values())[:1]:
        bench.note(f"{row}, failed", "first", str(error.error)[:150])
    began = time.time() - took
    for stage, info in stages:
        seconds, ended = info["seconds"], info["finished_at"] - began
        text = f"{ended - seconds:.2f} to {ended:.2f}"
        bench.note(f"{row}, when", stage.kind, text, "s", shown=False)
    trained = [info for stage, info in stages if stage.kind == "train"]
    if trained:
        seconds = [info["seconds"] for info in trained]
        first = min(info["finished_at"] - info["seconds"] for info in trained)
        last = max(info["finished_at"] for info in trained)
        bench.note(row, "victims", len(trained))
        bench.note(row, "each", statistics.median(seconds), "s")
        bench.note(row, "all", last - first, "s")
        busy = [per_cent for when, per_cent in watch.busy if first <= when <= last]
        if busy:
            bench.note(row, "GPU busy", statistics.mean(busy), "%")
    if watch.contexts:
        most = max(watch.contexts, key=lambda counted: counted.total())
        text = ", ".join(f"{n} {title}" for title, n in most.items()) or "nobody"
        bench.note(row, "contexts at most", text)


def paper_row(bench: Bench) -> None:
    """Note ASR and CA of ABL beside the published 3.04 and 86.11."""
    cifar = _dataset() == "cifar10"
    if bench.cuda and not cifar:
        raise RuntimeError("RAYSWEEP_DATA names no folder with cifar10-train.parquet")
    recipe: Any = "abl" if bench.cuda else {"base": "abl", "epochs": 1}
    lengths = {"isolation_epochs": bench.pick(20, 1), "tuning_epochs": bench.pick(60, 1)}
    values = {
        "name": "paper", "dataset": bench.pick("cifar10", "digits"),
        "model": bench.pick("wrn_16_1", "tiny_cnn"), "recipe": recipe,
        "attacks": [{"badnets": {"rate": 0.1}}], "defenses": ["none", {"abl": lengths}],
        "seeds": 1, "resources": {"gpu": {"cpu": 2, "gpu": bench.pick(0.5, 0.0)}},
    }  # fmt: skip
    if not bench.cuda:
        values["resources"] = {"gpu": {"cpu": 1}}
    bench.note("paper row", "published for ABL", "ASR 3.04, CA 86.11")
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as name:
        done, watch, took = run_sweep(bench, values, Path(name), CandidateEnd(bench, "paper"))
        for number, (_, one) in enumerate(done.rows.iterrows()):
            facts = [f"{n} {one[n]:.4f}" for n in ("asr", "ca") if n in one and one[n] is not None]
            label = next((str(one[n]) for n in ("defense", "defense_label") if n in one), number)
            bench.note("paper row", str(label), f"{one['status']} {', '.join(facts)}")
        bench.note("paper row", "wall", took, "s")
        if watch.busy:
            busy = statistics.mean(per_cent for _, per_cent in watch.busy)
            bench.note("paper row", "GPU busy", busy, "%")
