"""Signals for real: what a scheduler, a lost terminal and an impatient user leave of a run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raysweep.jobs.launch import launch
from raysweep.jobs.tune import tune
from raysweep.results import history, records
from raysweep.run import interruption
from raysweep.run.interruption import Interrupted, catching_signals, check, end_ray, take_again
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep
from tests.test_execute import ROOT, assert_same

SWEEP = """
name: stopped
dataset: {digits: {size: 200}}
model: {tiny_cnn: {width: 4}}
recipe: {epochs: 1, batch_size: 64}
attacks: [badnets: {rate: [0.05, 0.1]}]
defenses: [none, strip: {overlays: 4}, spectral_signatures]
track: {wandb: disabled}
"""
LONG = """
name: long
dataset: {digits: {size: 1200}}
model: {tiny_cnn: {width: 64}}
recipe: {epochs: 1, batch_size: 64}
attacks: [badnets: {rate: 0.05}]
defenses: [none, fine_tuning: {epochs: [999, 1000]}]
track: {wandb: disabled}
"""


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Handlers as a process has them that was started from a terminal, whatever came before."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def written(folder: Path, text: str = SWEEP) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return file


def started(file: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raysweep", "launch", str(file)]
    given = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **environment}
    return subprocess.Popen(
        [*command, "--storage", str(file.parent / "store"), *words], text=True, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **given},
        start_new_session=True,
    )  # fmt: skip


def wait_until(true: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


def after(stages: int, number: int) -> Callable[[Run], None]:
    """Return a watcher that signals this process when so many stages are stored, once."""
    left = [number]

    def watch(run: Run) -> None:
        if len(run.schedule.done) >= stages and left:
            signal.raise_signal(left.pop())

    return watch


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A store with the whole sweep, and its rows."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = written(folder)
    rows = launch(load_sweep(file), file.read_text(), str(folder / "store"), inline=True).rows
    return folder / "store", rows


@pytest.mark.further
@pytest.mark.slow
def test_a_lost_terminal_under_nohup_stops_nothing_but_sigterm_does(
    tmp_path: Path, undisturbed: tuple[Path, pd.DataFrame]
) -> None:
    file, store = written(tmp_path), Store(str(tmp_path / "store"))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = started(file, "--inline")
    signal.signal(signal.SIGHUP, ignored)
    wait_until(lambda: len(store.done()) >= 2, process)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(store.done()) >= 4, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "go on with: raysweep launch" in output and "Traceback" not in output
    rows = records.load("stopped", store.uri)
    assert len(rows) == 6 and "pending" in set(rows["status"])
    again = launch(load_sweep(file), file.read_text(), store.uri, inline=True)
    assert (again.rows["status"] == "ok").all() and again.cached >= 4 and again.ran
    assert_same(again.rows, undisturbed[1])


def processes_with(word: bytes) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found


@pytest.mark.long
@pytest.mark.ray
def test_a_signal_to_every_process_of_a_step_waits_for_no_stage(tmp_path: Path) -> None:
    """Slurm and a closed terminal signal Ray's processes too; some send theirs twice."""
    file, store = written(tmp_path, LONG), Store(str(tmp_path / "store"))
    process = started(file, RAYSWEEP_TEST=str(tmp_path))
    wait_until(lambda: any(key.startswith("features") for key in store.done()), process)
    began = time.time()
    os.killpg(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 129, output
    rows = records.load("long", store.uri)
    assert list(rows["status"])[1:] == ["pending", "pending"]
    stamp = (tmp_path / "store" / "sweeps" / "long" / "records.parquet").stat().st_mtime
    assert stamp - began < 15
    assert processes_with(f"RAYSWEEP_TEST={tmp_path}".encode()) == []


@pytest.mark.further
@pytest.mark.slow
def test_a_second_ctrl_c_ends_while_wandb_hangs_and_the_records_are_whole(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = written(tmp_path, SWEEP.replace("disabled", "online"))
        process = started(
            file, "--inline", WANDB_API_KEY="0" * 40,
            WANDB_BASE_URL=f"http://127.0.0.1:{silent.getsockname()[1]}",
        )  # fmt: skip
        page = tmp_path / "store" / "sweeps" / "stopped" / "report.html"
        store = Store(str(tmp_path / "store"))
        wait_until(lambda: any(key.startswith("evaluate") for key in store.done()), process)
        process.send_signal(signal.SIGINT)
        wait_until(page.exists, process)
        time.sleep(interruption.ECHO_SECONDS)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "report:" not in output, output
    assert "ok" in set(records.load("stopped", store.uri)["status"])


@pytest.mark.further
def test_a_signal_during_tuning_stops_it(tmp_path: Path) -> None:
    file = written(tmp_path, SWEEP.replace("0.1]}", "0.1]}, blend").replace("none, strip", "strip"))
    given = load_sweep(file), file.read_text(), str(tmp_path / "store")
    stopped = tune(*given, inline=True, watch=after(4, signal.SIGTERM))
    assert stopped.interrupted == signal.SIGTERM and stopped.ran < 8 and stopped.tuned is None
    whole = tune(*given, inline=True)
    assert not whole.interrupted and whole.tuned and whole.cached >= stopped.ran


def test_a_signal_that_a_library_swallows_stops_the_run_before_its_next_stage(
    tmp_path: Path, undisturbed: tuple[Path, pd.DataFrame]
) -> None:
    file = written(tmp_path)
    signalled = after(4, signal.SIGTERM)

    def watch(run: Run) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signalled(run)

    given = load_sweep(file), file.read_text(), str(tmp_path / "store")
    stopped = launch(*given, inline=True, watch=watch)
    assert stopped.interrupted == signal.SIGTERM
    assert 4 <= stopped.ran < len(Store(str(undisturbed[0])).done())
    assert "pending" in set(stopped.rows["status"])


def test_a_signal_while_planning_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "check", lambda store: signal.raise_signal(signal.SIGHUP))
    file = written(tmp_path)
    with pytest.raises(Interrupted) as stopped:
        launch(load_sweep(file), file.read_text(), str(tmp_path / "store"), inline=True)
    assert stopped.value.number == signal.SIGHUP
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "and the handlers are given back"


def test_a_signal_while_records_are_written_waits_for_them(
    tmp_path: Path, undisturbed: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, (store, _) = history.write_tables, undisturbed

    def write(store: Store, name: str, rows: pd.DataFrame, stages: pd.DataFrame) -> None:
        signal.raise_signal(signal.SIGTERM)
        real(store, name, rows, stages)

    monkeypatch.setattr(history, "write_tables", write)
    (store / "sweeps" / "stopped" / "records.parquet").unlink()
    file = written(tmp_path)
    done = launch(load_sweep(file), file.read_text(), str(store), inline=True)
    assert done.interrupted == signal.SIGTERM and done.ran == 0
    assert set(records.load("stopped", str(store))["status"]) == {"ok"}


def test_a_signal_that_a_library_swallows_is_raised_again() -> None:
    with catching_signals() as signals:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted), catching_signals() as inner:
            assert inner is signals and inner.number == signal.SIGTERM
            check()


def test_libraries_take_no_signal_that_stops_a_run_and_every_other() -> None:
    taken = []
    with catching_signals():
        signal.signal(signal.SIGTERM, lambda *_: taken.append("library"))
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        before = signal.signal(signal.SIGUSR1, lambda *_: taken.append("other"))
        signal.raise_signal(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, before)
    assert taken == ["other"]


def test_outside_the_main_thread_nothing_is_taken() -> None:
    handlers = []

    def listen() -> None:
        with catching_signals() as signals:
            take_again()
            check()
            handlers.append((signals.number, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert handlers == [(0, signal.SIG_DFL)]


ENDING = """
import signal, sys
from raysweep.run import interruption
interruption.ECHO_SECONDS = float(sys.argv[1])
with interruption.catching_signals() as signals:
    signals.hold()
    signal.raise_signal(signal.SIGTERM)
    print("held")
    signal.raise_signal(signal.SIGINT)
    print("the same")
"""


@pytest.mark.parametrize(
    ("echo", "code", "said"), [("0", 143, ["held"]), ("60", 0, ["held", "the same"])]
)
def test_a_second_signal_ends_at_once_but_an_echo_does_not(
    echo: str, code: int, said: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-u", "-c", ENDING, echo], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == code and done.stdout.split("\n")[:-1] == said, done.stderr


def test_records_do_not_wait_for_a_ray_whose_processes_are_gone() -> None:
    gone, began = threading.Event(), time.monotonic()
    end_ray(lambda: (gone.wait(30), None)[1], 0.05)
    assert time.monotonic() - began < 20
    gone.set()
