"""Publishing beside a driver, and `raysweep sync`: on loopback, with the processes of users."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raysweep.cli.app import app
from raysweep.jobs import beside, publishing
from raysweep.jobs import sync as syncing
from raysweep.jobs.launch import Conclusion, launch
from raysweep.results import entries, records, wandb, wandb_runs
from raysweep.results.arrivals import Arrivals
from raysweep.results.description import described, write_description
from raysweep.results.published import Completion
from raysweep.run.interruption import Signals
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import from_text
from raysweep.sweep.spec import Track
from raysweep.sweep.yaml import parse
from tests.finished import finished_sweep
from tests.s3 import S3
from tests.wandb_server import ENTITY, Arrived, State, send_to, serving

start_beside = beside.started
ONLINE = Track(wandb="online", project="p")
SWEEP = """
name: s
dataset: {digits: {size: 200}}
model: linear
recipe: {epochs: 1}
attacks: [badnets: {rate: 0.1}, blend: {rate: 0.1}]
defenses: [none]
track: {wandb: MODE, project: p}
"""


@pytest.fixture(scope="module")
def world() -> Iterator[State]:
    with serving() as state:
        yield state


@pytest.fixture
def server(world: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """Give an empty server that wandb is sent to, here and in processes that are started."""
    sending(world, tmp_path, monkeypatch)
    yield world
    world.clear()


def sending(world: State, place: Path, patch: pytest.MonkeyPatch) -> None:
    """Send wandb to a server, and have publishers begin at once; a place is its home."""
    send_to(world, patch)
    patch.setenv("HOME", str(place / "home"))
    patch.setattr(wandb_runs, "ARRIVAL_SECONDS", 0)
    patch.setattr(wandb, "PAUSES", (0.0,))
    patch.setattr(beside, "started", hasty)


def hasty(*given: Any, waits: bool, **more: Any) -> subprocess.Popen[bytes]:
    """Start a publisher that does not wait until this machine has nothing else to do."""
    return start_beside(*given, waits=False, **more)


# Two trials, their victims, poisoned sets and dataset, and the sweep itself.
ALL = 8


def trials(server: State) -> list[Arrived]:
    """Return the runs of trials that have arrived."""
    return [run for run in server.runs.values() if "trial" in run.config]


def sync_command(storage: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "raysweep", "sync", "finished", "--storage", storage, *words]


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("count", [30, pytest.param(100, marks=pytest.mark.long)])
def test_all_trials_arrive_once_though_the_publisher_is_killed(
    server: State, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    store = Store(str(tmp_path))
    finished_sweep(store, count // 2, ONLINE)
    process = subprocess.Popen(
        sync_command(str(tmp_path)), start_new_session=True, stdout=subprocess.DEVNULL
    )
    limit = time.monotonic() + 120
    some = 3 * count // 10
    while sum(run.completed for run in trials(server)) < some and time.monotonic() < limit:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert some <= sum(run.completed for run in trials(server)) < count
    app(["sync", "finished", "--storage", str(tmp_path)], standalone_mode=False)
    held = len(server.runs)
    assert capsys.readouterr().out.startswith(f"W&B: {held} of {held} runs are in ")
    assert len(trials(server)) == count and {run.state for run in trials(server)} == {"finished"}
    assert sum(run.completed for run in server.runs.values()) == held, "none twice"
    shares = {run.config["trial"]: run.summary["ca"] for run in trials(server)}
    rows = records.read(store, "finished").rows
    assert shares == dict(zip(rows["trial"], rows["ca"], strict=True))


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A sweep that was launched once while its publisher ran.

    Attributes:
        text: of the sweep file.
        storage: where the sweep is. Its description may have been changed since.
        begun: the commands of the publishers that were started.
        said: the lines on W&B that the launch ended with.
    """

    text: str
    storage: Path
    begun: Sequence[Sequence[str]]
    said: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Online(Launched):
    """A launch that sent its runs, and was met by a second launch of the same sweep at its end.

    Attributes:
        url: of the server.
        first, second: the ends of both launches.
        begun_then: how many publishers had been started when the second launch was over.
        seen: how many trials had arrived, while the others were held back and the sweep's own run
            was open.
        runs: all that the server held in the end.
    """

    url: str
    first: Conclusion
    second: Conclusion
    begun_then: int
    seen: Sequence[int]
    runs: Sequence[Arrived]


@pytest.fixture(scope="module")
def online(world: State, tmp_path_factory: pytest.TempPathFactory) -> Online:
    place, text = tmp_path_factory.mktemp("online"), SWEEP.replace("MODE", "online")
    sweep, storage = from_text(parse("s.yaml", text)), str(place / "st")
    seen, second, then = list[int](), list[Conclusion](), list[int]()

    def watch(run: Run) -> None:
        ran = [key for key in run.schedule.ran if key.startswith("evaluate-")]
        limit = time.monotonic() + 60
        while len(ran) == 1 and not seen and time.monotonic() < limit:
            time.sleep(0.05)
            done = sum(kept.state == "finished" for kept in trials(world))
            whole = [kept.state for kept in world.runs.values() if kept.job == "sweep"]
            seen.extend([done] if done and whole == ["running"] else [])
        if run.over and not second:  # the first is about to conclude
            second.append(launch(sweep, text, storage, inline=True))
            then.append(len(begun))

    with pytest.MonkeyPatch.context() as patch:
        sending(world, place, patch)
        patch.setattr(publishing, "END_SECONDS", 60.0)
        begun = publishers(patch)
        first = launch(sweep, text, storage, inline=True, watch=watch)
        runs = list(world.runs.values())
        world.clear()
    return Online(
        text=text, storage=Path(storage), begun=begun, said=first.notes[-1:], url=world.url,
        first=first, second=second[0], begun_then=then[0], seen=seen, runs=runs,
    )  # fmt: skip


@pytest.mark.slow
def test_trials_are_published_while_the_sweep_runs(online: Online) -> None:
    assert online.seen == [1] and online.first.warnings == []
    assert online.said == [f"W&B: {ALL} of {ALL} runs are in {online.url}/{ENTITY}/p"]
    completed = [run.completed for run in online.runs if "trial" in run.config]
    assert completed == [1, 1], "each is sent once"
    assert [run.state for run in online.runs if run.job == "sweep"] == ["finished"]
    assert not [word for word in os.popen("ps -eo args").read().splitlines()
                if "raysweep sync s" in word and str(online.storage) in word]  # fmt: skip


@pytest.mark.further
@pytest.mark.slow
def test_a_publisher_that_was_killed_is_started_again_at_the_end(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "END_SECONDS", 60.0)
    killed: list[int] = []

    def watch(run: Run) -> None:
        ran = [key for key in run.schedule.ran if key.startswith("evaluate-")]
        limit = time.monotonic() + 60
        while ran and not killed and time.monotonic() < limit:
            time.sleep(0.05)
            for line in Path("/proc").glob("[0-9]*/cmdline") if server.requests else ():
                with contextlib.suppress(OSError):
                    if b"sync\0killed\0--follow" in line.read_bytes():
                        killed.append(int(line.parent.name))
                        os.kill(killed[0], signal.SIGKILL)

    text = SWEEP.replace("MODE", "online").replace("name: s", "name: killed")
    done = launch(from_text(parse("s.yaml", text)), text, str(tmp_path), inline=True, watch=watch)
    assert killed and done.notes[-1].startswith(f"W&B: {ALL} of {ALL} runs are in ")


def publishers(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Return the commands of all publishers that are started from now on."""
    begun, whole = list[Sequence[str]](), subprocess.Popen

    def popen(words: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
        begun.extend([words] if "sync" in words else [])
        return whole(words, **more)

    monkeypatch.setattr(beside.subprocess, "Popen", popen)
    return begun


def launched(place: Path, mode: str) -> Launched:
    """Launch by the command line in this process."""
    file, storage, out = place / "s.yaml", place / "store", io.StringIO()
    file.write_text(SWEEP.replace("MODE", mode))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(publishing, "END_SECONDS", 60.0)
        begun = publishers(patch)
        app(["launch", str(file), "--inline", "--storage", str(storage)], standalone_mode=False)
    said = [line for line in out.getvalue().splitlines() if "W&B" in line]
    return Launched(text=file.read_text(), storage=storage, begun=begun, said=said)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return launched(tmp_path_factory.mktemp("offline"), "offline")


@pytest.mark.further
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_a_launch_says_where_the_runs_are(
    request: pytest.FixtureRequest, mode: str, tmp_path: Path
) -> None:
    offline = mode == "offline"
    own: Launched = request.getfixturevalue(mode) if offline else launched(tmp_path, mode)
    store = own.storage
    told = f"W&B: {ALL} runs are offline; send them with: raysweep sync s --storage {store}"
    assert own.said == ([told] if offline else [])
    assert len(list(store.glob("sweeps/s/wandb/wandb/offline-run-*"))) == ALL * len(own.said)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param("online", marks=pytest.mark.further), "offline"])
def test_a_launch_that_brings_nothing_new_starts_no_publisher(
    request: pytest.FixtureRequest, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: Launched = request.getfixturevalue(mode)
    storage, begun = str(first.storage), publishers(monkeypatch)
    again = launch(from_text(parse("s.yaml", first.text)), first.text, storage, inline=True)
    assert len(first.begun) == 1 and not begun
    assert again.ran == 0 and again.notes[-1] == first.said[-1]
    assert again.notes[-1].startswith(f"W&B: {ALL} ")

    folder = SweepFolder(Store(storage), "s")
    completion = Completion(folder, online=mode == "online")
    about = described(folder.store, "s")
    assert completion.note() is not None
    for other in (replace(about, question="Another?"), replace(about, concluded=False)):
        write_description(folder.store, "s", other)
        assert completion.note() is None, "there is something new to tell"
    write_description(folder.store, "s", replace(about, created_at=1.0))
    assert completion.note() is not None
    completion.begin()  # as a publisher does that is killed then
    assert completion.note() is None


@pytest.mark.further
@pytest.mark.slow
def test_of_two_drivers_of_a_sweep_one_publishes(online: Online) -> None:
    first, second, store = online.first, online.second, Store(str(online.storage))
    assert online.begun_then == 1 and second.unfinished == 0
    again = f"raysweep sync s --storage {online.storage}"
    other = "W&B: another driver of this sweep publishes it"
    assert second.notes[-1] == f"{other}; what it leaves is sent by: {again}" and not second.ran
    assert first.notes[-1].startswith(f"W&B: {ALL} of {ALL} runs are in ")
    assert len(online.begun) == 1 and not store.list("leases")
    assert [run.completed for run in online.runs if "trial" in run.config] == [1, 1]


@pytest.mark.further
@pytest.mark.slow
def test_a_server_that_hangs_holds_up_neither_records_nor_the_end(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "START_SECONDS", 1.0)
    monkeypatch.setattr(publishing, "END_SECONDS", 0.5)
    whole, written = publishing.Publishing.finish, list[bool]()
    files = [tmp_path / "sweeps/s" / name for name in ("report.html", "records.parquet")]

    def finish(own: publishing.Publishing, run: Run, signals: Signals) -> publishing.Tracked:
        written.extend(file.exists() for file in files)
        return whole(own, run, signals)

    monkeypatch.setattr(publishing.Publishing, "finish", finish)
    server.order("", "hang")
    text = SWEEP.replace("MODE", "online")
    done = launch(from_text(parse("s.yaml", text)), text, str(tmp_path), inline=True)
    again = f"publish the rest with: raysweep sync s --storage {tmp_path}"
    assert done.notes[-1] == f"W&B: no run was yet published; {again}"
    assert list(done.rows["status"]) == ["ok", "ok"] and Path(done.report).exists()
    assert written == [True, True], "nothing of them waits for W&B"
    server.clear()
    told = syncing.sync(SweepFolder(Store(str(tmp_path)), "s"))
    assert (told.held, told.total, told.warning) == (ALL, ALL, "")


@pytest.mark.further
@pytest.mark.slow
def test_a_signal_ends_the_publishing_and_the_rest_is_named(server: State, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(SWEEP.replace("MODE", "online"))
    server.order("", "hang")
    process = subprocess.Popen(
        [sys.executable, "-m", "raysweep", "launch", str(file), "--inline", "--storage",
         str(tmp_path / "st")], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not server.requests and time.monotonic() < limit:
        time.sleep(0.05)
    page = tmp_path / "st/sweeps/s/report.html"
    while not page.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert "when a signal came; publish the rest with: raysweep sync s --storage" in out
    assert process.returncode == 130


@pytest.mark.further
@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the system has no such policy")
def test_a_publisher_takes_what_the_stages_leave_until_they_have_ended(tmp_path: Path) -> None:
    finished_sweep(Store(str(tmp_path)), 1, Track(wandb="offline"))
    words = ["sync", "finished", "--follow", "--offline"]
    process = start_beside(words, str(tmp_path), answers=True)
    weight = Path(f"/proc/{process.pid}/autogroup")
    try:
        assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        known = weight.exists() and weight.read_text().strip()
        assert not known or known.endswith("nice 15")
        beside.hurry(process)
        assert not known or weight.read_text().strip().endswith("nice 0")
    finally:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(list(tmp_path.glob("sweeps/finished/wandb/wandb/offline-run-*"))) == ALL


@pytest.mark.further
@pytest.mark.slow
def test_a_publisher_ends_with_a_driver_that_is_killed(server: State, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(SWEEP.replace("MODE", "online"))
    server.order("", "hang")
    code = (
        "import sys; from raysweep.jobs import beside; from tests.test_sync import hasty; "
        "beside.started = hasty; from raysweep.cli.app import app; app()"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, "launch", str(file), "--inline", "--storage",
         str(tmp_path / "st")], stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not server.requests and time.monotonic() < limit:
        time.sleep(0.05)
    (publisher,) = followers(str(tmp_path / "st"))
    driver.kill()
    driver.wait()
    while followers(str(tmp_path / "st")) and time.monotonic() < limit:
        time.sleep(0.05)
    assert publisher and not followers(str(tmp_path / "st"))


def followers(storage: str) -> list[int]:
    """Return the processes that follow a launch in a storage."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            follows = b"\0--follow" in (place / "cmdline").read_bytes()
            told = f"RAYSWEEP_STORAGE={storage}\0".encode()
            found += (
                [int(place.name)] if follows and told in (place / "environ").read_bytes() else []
            )
    return found


def test_a_publisher_that_waits_for_ever_ends_after_its_driver() -> None:
    code = (
        "import time; from raysweep.cli import sync; sync.LATEST_SECONDS = 0.2;"
        "assert sync._end_of_input()(30); time.sleep(600)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"", timeout=60, check=False)
    assert done.returncode == 1


def test_the_end_does_not_wait_for_what_a_publisher_leaves_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb's own process, in a session of its own, holds the pipe to the driver on."""
    left, code = tmp_path / "left", (
        "import json, subprocess, sys, time\n"
        "words = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "child = subprocess.Popen(words, start_new_session=True)\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
        "print(json.dumps({'total': 2, 'held': 1}), flush=True)\n"
        "time.sleep(60)"
    )  # fmt: skip

    def started(words: Sequence[str], storage: str, **more: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(left)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip

    monkeypatch.setattr(beside, "started", started)
    run: Any = SimpleNamespace(
        sweep=SimpleNamespace(name="s", track=ONLINE), store=Store(str(tmp_path)),
        schedule=SimpleNamespace(ran={"k": 1}, stopping=False),
        leases=SimpleNamespace(hold=lambda name: True),
    )  # fmt: skip
    publishes = publishing.Publishing()
    publishes(run)
    limit = time.monotonic() + 60
    while publishes.published is None and time.monotonic() < limit:
        time.sleep(0.05)
    began = time.monotonic()
    publishes.close()
    took = time.monotonic() - began
    os.kill(int(left.read_text()), signal.SIGKILL)
    assert publishes.published == wandb.Published(total=2, held=1) and took < 20


def test_the_driver_waits_longer_for_little_than_for_much(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [wandb.Published(total=100, held=held) for held in (0, 40, 60)]
    assert not publishing._is_little(told[0], told[1], 11) and publishing._is_little(
        None, told[2], 11
    )
    assert not publishing._is_little(None, told[2], 21) and not publishing._is_little(
        None, None, 11
    )


def test_a_row_says_the_same_from_manifests_and_from_the_table(tmp_path: Path) -> None:
    text = SWEEP.replace("MODE", "disabled").replace("[none]", "[none, spectral_signatures]")
    launch(from_text(parse("s.yaml", text)), text, str(tmp_path), inline=True)
    store = Store(str(tmp_path))
    early = {str(row["trial"]): row for row in Arrivals(store, "s", lambda trial: False).take(9)}
    late = {str(row["trial"]): row for row in records.read(store, "s").rows.to_dict("records")}
    assert early.keys() == late.keys() and len(early) == 4
    for trial, row in early.items():
        one, other = (
            entries.trial(syncing._cells(cells), "s", ONLINE) for cells in (row, late[trial])
        )
        assert one == other
        one_text, other_text = (
            {name: repr(cell) for name, cell in entry.config.items()} for entry in (one, other)
        )
        assert one_text == other_text, "3 in both, and 3.0 in none"


def test_each_trial_comes_until_it_is_settled_and_what_is_open_is_looked_at_again(
    tmp_path: Path,
) -> None:
    store, settled = Store(str(tmp_path)), set[str]()
    finished_sweep(store, 3, ONLINE)
    stored = {key: store.manifest(key) for key in store.done()}
    late = sorted(key for key in stored if key.startswith("evaluate-"))[:2]
    for key in late:
        store.discard(key)
    arrivals = Arrivals(store, "finished", settled.__contains__)
    assert arrivals.total == 6
    first = arrivals.take(3)
    assert len(first) == 3 and arrivals.take(3) == first, "nothing was settled"
    settled.update(str(row["trial"]) for row in first)
    second = arrivals.take(3)
    assert len(second) == 1 and not {str(row["trial"]) for row in second} & settled
    settled.update(str(row["trial"]) for row in second)
    for key in late:
        manifest = stored[key]
        assert manifest is not None and arrivals.take(3) == []
        store.put(key, outcome=manifest.outcome, info=manifest.info)
        (row,) = arrivals.take(3)
        assert row["ca"] == manifest.outcome["ca"] and row["status"] == "ok"
        settled.add(str(row["trial"]))
    assert arrivals.take(3) == []


@pytest.mark.further
@pytest.mark.slow
def test_the_key_is_in_no_file_and_on_no_command_line(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, seen = uuid.uuid4().hex + uuid.uuid4().hex, set[bytes]()
    monkeypatch.setattr(publishing, "END_SECONDS", 60.0)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.chdir(tmp_path)

    def watch(run: Run) -> None:
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                seen.add(line.read_bytes())

    server.order("file_stream", 413, times=1)
    text = SWEEP.replace("MODE", "online")
    done = launch(from_text(parse("s.yaml", text)), text, str(tmp_path / "st"), inline=True,
                  watch=watch)  # fmt: skip
    assert len(server.runs) == ALL and any(b"sync\0s\0--follow" in line for line in seen)
    files = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    said = [*map(str.encode, (*done.notes, *done.warnings)), repr(server.runs).encode()]
    assert not [text for text in (*files, *seen, *said) if key[:32].encode() in text]


@pytest.mark.further
@pytest.mark.slow
def test_another_machine_finds_in_the_storage_what_was_published(
    server: State, s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(s3_server.uri("published"), cache=tmp_path / "cache")
    finished_sweep(store, 2, ONLINE)
    folder = SweepFolder(store, "finished")
    told: list[wandb.Published] = []
    done = syncing.sync(folder, tell=told.append)
    assert len(trials(server)) == 4 and done.warning == ""
    assert done.held == done.total == told[-1].held == len(server.runs)
    kept = [
        json.loads(line)
        for line in (store.read(folder.path("wandb/published.jsonl")) or b"").splitlines()
    ]
    assert {one["run"] for one in kept} == set(server.runs)
    server.requests.clear()
    elsewhere = SweepFolder(Store(store.uri, cache=tmp_path / "other"), "finished")
    assert syncing.sync(elsewhere).held == done.held and not server.requests
