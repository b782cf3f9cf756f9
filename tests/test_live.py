"""The page of a sweep that still runs, written by a process beside the driver."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raysweep.jobs import live
from raysweep.jobs.launch import launch
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse

TEXT = """
name: first
dataset: digits
model: linear
attacks: [badnets: {rate: 0.1}, blend: {rate: 0.1}]
defenses: [none]
recipe: {epochs: 1}
track: {wandb: disabled}
"""


@pytest.mark.further
def test_a_running_sweep_has_a_page_of_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PAGE_SECONDS", 0.0)
    # The machine may be busy with other tests, and the page would wait for them.
    monkeypatch.setattr(live.beside, "started", partial(live.beside.started, waits=False))
    store = Store(str(tmp_path))
    path = SweepFolder(store, "first").report
    seen: list[bytes] = []

    def watch(run: Run) -> None:
        evaluated = [key for key in run.schedule.ran if key.startswith("evaluate-")]
        limit = time.monotonic() + 60
        while evaluated and not seen and time.monotonic() < limit:
            time.sleep(0.1)
            seen.extend(filter(None, [store.read(path)]))

    conclusion = launch(from_text(parse("first.yaml", TEXT)), TEXT, store.uri, inline=True,
                        watch=watch)  # fmt: skip
    assert seen and b"derived from what is stored" in seen[0] and len(conclusion.rows) == 2
    last = store.read(path)
    assert last is not None and b"derived from what is stored" not in last
    time.sleep(0.5)
    assert store.read(path) == last  # nothing is being written any more


def test_pages_are_rare_and_a_failing_one_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[str] = []

    class Process:
        ended: int | None = None

        def poll(self) -> int | None:
            return self.ended

    def write(words: list[str], storage: str) -> Any:
        started.append(words[1])
        if len(started) == 2:
            raise OSError("no more processes")
        return Process()

    now = [0.0]
    monkeypatch.setattr(live.beside, "started", write)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run: Any = SimpleNamespace(
        sweep=SimpleNamespace(name="first"), store=Store(str(tmp_path)),
        schedule=SimpleNamespace(ran={}),
    )  # fmt: skip
    page = live.LivePage(lambda run: None, 100.0)
    now[0] = 150.0
    page(run)
    assert not started  # nothing has run yet
    run.schedule.ran = {"a": 1}
    page(run)
    page(run)
    assert started == ["first"]
    now[0], Process.ended = 160.0, 0  # ten seconds: the next not before 500 more
    page(run)
    now[0] = 659.0
    page(run)
    assert len(started) == 1
    now[0] = 661.0
    page(run)
    page(run)
    assert len(started) == 2


def test_a_page_that_is_being_written_is_ended_before_the_last_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def write(words: list[str], storage: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(live.beside, "started", write)
    run: Any = SimpleNamespace(
        sweep=SimpleNamespace(name="first"), store=Store(str(tmp_path)),
        schedule=SimpleNamespace(ran={"a": 1}),
    )  # fmt: skip
    page = live.LivePage(lambda run: None, 0.0)
    page(run)
    (process,) = started
    assert process.poll() is None
    threading.Timer(10, lambda: process.stdin and process.stdin.close()).start()
    page.close()
    assert process.returncode == -signal.SIGKILL
