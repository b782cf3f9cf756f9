"""A sweep that runs elsewhere: who runs it, how far it is, how it is followed and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from raysweep.cli.app import app
from raysweep.cli.progress import Progress
from raysweep.jobs.launch import launch
from raysweep.results import drivers as drivers_module
from raysweep.results.drivers import drivers
from raysweep.results.status import all_sweeps, status
from raysweep.store import Store, heartbeat, liveness
from raysweep.store.events import End
from raysweep.store.heartbeat import Heartbeat, KindCount, RunningStage, path_of, stop_path_of
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse

BEAT = 0.05
RUNNING = RunningStage(
    key="train-abc", host="gpu-7", pid=4, device="cuda", seconds=75.0, fraction=0.4,
    doing="epoch 4 of 10",
)  # fmt: skip
SAID = Heartbeat(
    run="r1", folder="first", host="head-1", pid=17, count=1, state="running", started=1e9,
    held=("train-abc",), running=(RUNNING,), left_seconds=200.0,
    kinds={"train": KindCount(wanted=5, stored=2, failed=1, out=2, ran=2, seconds=60.0)},
)  # fmt: skip
TEXT = """
name: first
dataset: digits
model: linear
attacks: [badnets: {rate: 0.1}]
defenses: [none]
recipe: {epochs: 1}
track: {wandb: disabled}
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a sweep that has ended."""
    folder = tmp_path_factory.mktemp("ended") / "store"
    launch(from_text(parse("first.yaml", TEXT)), TEXT, str(folder), inline=True)
    return folder


@pytest.fixture
def store(ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy of that store, in which heartbeats are quick."""
    for module in (heartbeat, drivers_module):
        monkeypatch.setattr(module, "BEAT_SECONDS", BEAT)
    return Store(str(shutil.copytree(ended, tmp_path / "store")))


@contextlib.contextmanager
def beating(
    store: Store, said: Heartbeat = SAID, *, obeys: bool = True
) -> Iterator[threading.Event]:
    """A driver that gives signs of life, and stops when it is asked to or told from here."""
    ended = threading.Event()

    def beat() -> None:
        count, state = 1, said.state
        while not ended.wait(BEAT / 2):
            if obeys and store.read(stop_path_of(said.run)):
                if state == "stopping":
                    end = f"sweeps/{said.folder}/ledger/{said.run}.jsonl"
                    store.write(end, End(t=1.5, complete=False).pack() + b"\n")
                    break
                state = "stopping"
            count += 1
            store.write(path_of(said.run), replace(said, count=count, state=state).pack())
        store.delete(path_of(said.run))
        store.delete(stop_path_of(said.run))

    store.write(path_of(said.run), said.pack())
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield ended
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def said(store: Store, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            result = app([*words, "--storage", store.uri], standalone_mode=False)
            code = result if isinstance(result, int) else 0
        except typer.Exit as exit_:
            code = exit_.exit_code
        out, err = capsys.readouterr()
        return code, out, err

    return command


def test_a_heartbeat_is_what_was_packed_and_damage_is_none() -> None:
    raw = SAID.pack()
    assert heartbeat.unpack(raw) == SAID
    for bad in (b"", b"{}", b"[1]", raw[:-5], raw.replace(b'"running"', b'"resting"', 1)):
        assert heartbeat.unpack(bad) is None


def test_a_driver_of_this_host_is_dead_as_soon_as_its_process_is_gone(store: Store) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = replace(SAID, host=os.uname().nodename, machine=liveness.machine(), pid=ended.pid)
    store.write(path_of("r1"), here.pack())
    assert [one.state for one in drivers(store, "first")] == ["dead"]
    store.write(path_of("r1"), replace(here, pid=os.getpid()).pack())
    assert [one.state for one in drivers(store, "first")] == ["running"]  # at once, in one look


def test_status_tells_who_runs_a_sweep_and_how_far(
    store: Store, said: Callable[..., tuple[int, str, str]]
) -> None:
    with beating(store):
        now = status(store, "first").launch
        assert now is not None and now.state == "running"
        code, out, _ = said("status", "first")
        told = json.loads(said("status", "first", "--json")[1])["launch"]["drivers"][0]
        listed = {one.name: one.state for one in all_sweeps(store)}
    assert code == 0 and "driver r1: running on head-1, process 17, since " in out
    row = next(line.split() for line in out.splitlines() if line.strip().startswith("train "))
    assert row == ["train", "2", "5", "1", "1", "1", "30", "s"]  # stored, of, running, queued, …
    assert "train-abc on gpu-7 (cuda), 75 s: 40% epoch 4 of 10" in out
    assert "about 3 min left" in out and "again to run" not in out
    assert told["beat"]["kinds"]["train"]["wanted"] == 5 and told["state"] == "running"
    assert listed == {"first": "complete"}  # its records hold the end of an earlier launch


def test_status_says_of_a_driver_on_another_host_that_it_is_dead(
    store: Store, said: Callable[..., tuple[int, str, str]]
) -> None:
    store.write(path_of("r1"), SAID.pack())
    code, out, err = said("status", "first")
    assert code == 0 and "driver r1: dead on head-1" in out and "no sign of life" in out
    assert err.count("waiting for a sign of the driver on head-1") == 1


def test_attach_follows_to_the_end(
    store: Store,
    said: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with beating(store) as ended:
        show = Progress.show

        def shown(self: Progress, beat: Heartbeat) -> None:
            show(self, beat)
            ended.set()

        monkeypatch.setattr(Progress, "show", shown)
        code, out, err = said("attach", "first")
    assert code == 0 and "first: 3 of 5 stages; 2 train; 3 min left" in err
    assert "badnets" in out and "more: raysweep status first --storage" in out
    code, out, _ = said("attach", "first")  # nobody runs it any more: at once
    assert code == 0 and "badnets" in out


def test_ctrl_c_detaches_and_says_how_to_come_back(
    store: Store,
    said: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*given: Any) -> Iterator[Heartbeat]:
        yield SAID
        raise KeyboardInterrupt

    monkeypatch.setattr(drivers_module, "follow", interrupted)
    with beating(store):
        code, _, err = said("attach", "first")
        assert store.read(stop_path_of("r1")) is None
    assert code == 130 and f"come back with: raysweep attach first --storage {store.uri}" in err


def test_stop_asks_every_driver_of_the_sweep(
    store: Store, said: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers_module, "BEAT_SECONDS", 0.5)  # none is dead for a slow thread
    tuning = replace(SAID, run="r2", folder="first/tune")
    other = replace(SAID, run="r3", folder="firstborn")
    with beating(store), beating(store, tuning), beating(store, other, obeys=False):
        code, out, _ = said("stop", "first")
        assert store.read(stop_path_of("r3")) is None
    assert code == 0 and "asked driver r1 on head-1" in out
    assert re.search("driver r2 (stops|has ended)", out) and "died" not in out


def test_stop_says_of_a_driver_that_dies_meanwhile_that_it_has_died(
    store: Store, said: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = drivers_module.ask_to_stop

    with beating(store, obeys=False) as ended:

        def dies(where: Store, run: str) -> None:
            asked(where, run)
            ended.set()

        monkeypatch.setattr(drivers_module, "ask_to_stop", dies)
        code, out, _ = said("stop", "first")
    assert code == 0 and "stops" not in out
    assert "driver r1 on head-1 died before it could stop" in out
    assert f"see: raysweep status first --storage {store.uri}" in out


def test_stop_without_a_driver_says_so(
    store: Store, said: Callable[..., tuple[int, str, str]]
) -> None:
    from raysweep.errors import StoreError

    with pytest.raises(StoreError, match="no driver of sweep 'first' is at work"):
        said("stop", "first")
    with pytest.raises(StoreError, match="no sweep 'other'"):
        said("attach", "other")
