"""W&B for real: one run per trial, the same run when started twice, never in the way."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep.results import (
    entries,
    published,
    wandb,
    wandb_offline,
    wandb_runs,
    wandb_settings,
)
from raysweep.results.entries import Entry
from raysweep.results.wandb import Published, Publisher
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Track
from tests.material import generated, row
from tests.wandb_server import ENTITY, Arrived, State, What, send_to, serving

SWEEP = "s"
OFFLINE = Track(wandb="offline", project="p")
ONLINE = Track(wandb="online", project="p")
A, B = "badnets · none · seed 0", "badnets · strip · seed 0"


@pytest.fixture(scope="module")
def world() -> Iterator[State]:
    with serving() as state:
        yield state


@pytest.fixture
def server(world: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """Give an empty server that wandb is sent to; what it does not hold at once is missing."""
    send_to(world, monkeypatch)
    monkeypatch.setattr(wandb_runs, "ARRIVAL_SECONDS", 0)
    monkeypatch.setattr(wandb, "PAUSES", (0.0,))
    yield world
    world.clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_settings, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(wandb_settings, "UPLOAD_SECONDS", 1.0)


def publish(
    told: pd.DataFrame | Sequence[Entry], root: Path, track: Track, sweep: str = SWEEP
) -> Published:
    """Publish rows of trials, or entries, of a sweep; return what is said at the end."""
    if isinstance(told, pd.DataFrame):
        told = [entries.trial(one, sweep, track) for one in told.to_dict("records")]
    with Publisher(SweepFolder(Store(str(root)), sweep), track) as publisher:
        for _ in publisher.publish(told):
            pass
        return publisher.result()


def remembered(root: Path, mode: str, sweep: str = SWEEP) -> set[str]:
    """Return the ids of the runs that are remembered in a mode."""
    file = (
        root
        / f"sweeps/{sweep}/wandb"
        / (published.MEMORY if mode == "online" else published.OFFLINE_MEMORY)
    )
    lines = file.read_text().splitlines() if file.exists() else []
    return {json.loads(line)["run"] for line in lines}


def run_ids() -> list[str]:
    return [entries.trial(one, SWEEP, ONLINE).run for one in rows().to_dict("records")]


def rows() -> pd.DataFrame:
    detector = {"defense": "strip", "defense_name": "strip", "kind": "detector"}
    return pd.DataFrame(
        [
            row(trial="a", ca=0.9, tpr=np.nan, verdict=None, own_seconds=1.0, anomaly=np.inf,
                **{"attack.alpha": None}),
            row(trial="b", ca=0.8, tpr=np.float32(1), verdict=np.bool_(True), own_seconds=2.0,
                **{"attack.alpha": np.float64(0.2)}, **detector),
        ]
    )  # fmt: skip


def runs(root: Path, sweep: str = SWEEP) -> list[Path]:
    return sorted((root / f"sweeps/{sweep}/wandb/wandb").glob("offline-run-*"))


def ids(folder: Path) -> list[str]:
    return [next(run.glob("run-*.wandb")).stem.removeprefix("run-") for run in runs(folder)]


def read(run: Path) -> dict[str, Any]:
    """Return what wandb's own tool finds in an offline run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(told.stdout)
    return found


@pytest.mark.further
def test_a_run_is_given_no_setting_that_all_runs_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb checks all of its settings anew for each that it is given: a third of its time."""
    from wandb.sdk.wandb_settings import Settings

    given: list[set[str]] = []
    update = Settings.update_from_dict

    def watched(self: Settings, settings: dict[str, Any]) -> None:
        given.append(set(settings))
        update(self, settings)

    monkeypatch.setattr(Settings, "update_from_dict", watched)
    monkeypatch.setattr(wandb_offline, "is_plain", lambda entry: False)
    assert publish(rows(), tmp_path, OFFLINE).held == 2
    shared = [names for names in given if "finish_timeout" in names]
    assert len(shared) == 1 and {"mode", "project", "root_dir", "x_disable_stats"} < shared[0]
    own = [names for names in given if "run_id" in names]
    assert len(own) >= 2 and max(map(len, own)) < 10


def test_a_copy_of_the_same_second_is_known_as_the_run_that_it_is(tmp_path: Path) -> None:
    publish(rows(), tmp_path, OFFLINE)
    for run in runs(tmp_path):
        run.rename(run.with_name(f"{run.name}-1"))
    before = runs(tmp_path)
    assert publish(rows(), tmp_path, OFFLINE).held == 2 and runs(tmp_path) == before


def test_an_answer_that_wandbs_process_has_lost_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, lost = wandb_runs.Client._write, [KeyError("29myls2i"), KeyError("of another thread")]

    def write(client: wandb_runs.Client, entry: Entry) -> Path:
        if lost:
            raise lost.pop()
        return whole(client, entry)

    monkeypatch.setattr(wandb_runs.Client, "_write", write)
    monkeypatch.setattr(wandb_offline, "is_plain", lambda entry: False)
    done = publish(rows(), tmp_path, OFFLINE)
    assert (done.held, done.total, done.warning) == (2, 2, "") and not lost
    lost.extend(KeyError("always") for _ in range(99))
    changed = rows()
    changed["ca"] = 0.5
    failed = publish(changed, tmp_path, OFFLINE)
    assert failed.warning.startswith("W&B's client has failed (KeyError: 'always')")


@pytest.mark.slow
def test_offline_runs_are_written_once_and_read_back(tmp_path: Path) -> None:
    first = publish(rows(), tmp_path, OFFLINE)
    assert (first.held, first.total, first.warning) == (2, 2, "")
    send = f"send them with: raysweep sync s --storage {tmp_path}"
    assert first.note == f"W&B: 2 runs are offline; {send}"
    before = runs(tmp_path)
    assert publish(rows(), tmp_path, OFFLINE).held == 2 and runs(tmp_path) == before
    changed = rows()
    changed.loc[0, "ca"] = 0.5
    third = publish(changed, tmp_path, OFFLINE)
    assert len(runs(tmp_path)) == 2, "the run that was said again replaces what it said before"
    assert len(set(runs(tmp_path)) - set(before)) == 1 and third.note == first.note
    for run in runs(tmp_path):
        (run / f"run-{run.name.split('-')[3]}.wandb.synced").touch()  # as `wandb sync` does
    assert publish(changed, tmp_path, OFFLINE).note == "", "all are uploaded"
    told = {found["config"]["trial"]: found for found in map(read, runs(tmp_path))}
    assert told["a"]["summary"]["ca"] == 0.5 and "tpr" not in told["a"]["summary"]
    assert told["b"]["summary"]["tpr"] == 1 and told["b"]["config"]["attack.alpha"] == 0.2
    assert told["b"]["project"] == "p" and told["b"]["state"] == "finished"
    assert {"strip", "badnets", "digits"} <= set(told["b"]["tags"])
    assert told["b"]["name"] == "badnets · strip · seed 0"


@pytest.mark.further
@pytest.mark.slow
def test_a_run_that_is_written_without_wandbs_client_arrives_as_the_same(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {f"parameter.{n}": "é" * n for n in range(300)}  # more than two blocks of a log
    told = [
        entries.Entry(
            run="victim", mark="m1", name="an <b>é</b>", job="train", tags=("digits", "x"),
            config={"epochs": 2, "good": True, "share": 0.1, "of": "[1, 2]"},
            summary={"loss": 0.5, "found.n": 1e-9},
            history=[{"epoch": 1, "loss": 0.9, "first": 3}, {"epoch": 2, "loss": 0.5}],
        ),
        entries.Entry(
            run="failed", mark="m2", name="failed", job="filter", tags=(), config=long,
            summary={}, group="mine", notes="ValueError: no luck", state="failed",
        ),
    ]  # fmt: skip
    found = []
    for way, is_plain in (("ours", wandb_offline.is_plain), ("theirs", lambda entry: False)):
        monkeypatch.setattr(wandb_offline, "is_plain", is_plain)
        assert publish(told, tmp_path / way, OFFLINE).warning == ""
        places = [str(run) for run in runs(tmp_path / way)]
        assert [(Path(place) / "logs").exists() for place in places] == 2 * [way == "theirs"]
        command = [sys.executable, "-m", "wandb", "sync", *places]
        subprocess.run(command, check=True, timeout=120, cwd=tmp_path, capture_output=True)
        found.append({run: _lasting(arrived) for run, arrived in server.runs.items()})
        server.clear()
    ours, theirs = found
    assert ours == theirs and ours.keys() == {"victim", "failed"}
    assert (ours["failed"]["state"], ours["failed"]["group"]) == ("failed", "mine")
    assert ours["victim"]["summary"]["raysweep_mark"] == "m1"


@pytest.mark.further
def test_wandb_is_imported_before_several_threads_write_runs(tmp_path: Path) -> None:
    """Threads that import its modules from both ends at once see half of them."""
    code = """
import sys, threading
from pathlib import Path
from tests.test_track import OFFLINE, publish, rows

seen = {}

class Watch:
    def find_spec(self, name, *more):
        seen.setdefault(name, threading.current_thread())

sys.meta_path.insert(0, Watch())
assert publish(rows(), Path(sys.argv[1]), OFFLINE).held == 2
for name in ("wandb", "wandb.proto.wandb_internal_pb2"):
    assert seen[name] is threading.main_thread(), seen
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent.parent,
        timeout=120, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_artifacts_and_tables_of_several_threads_are_made_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb's memory of them loses a key where two are added at once, and the run with it."""
    from wandb.sdk.artifacts.artifact_instance_cache import CappedDict

    inside, met, whole = list[int](), list[int](), CappedDict.__setitem__

    def added(memory: Any, key: str, value: object) -> None:
        met.append(len(inside))
        inside.append(1)
        time.sleep(0.005)
        whole(memory, key, value)
        inside.pop()

    monkeypatch.setattr(CappedDict, "__setitem__", added)
    assert publish(with_artifacts(8), tmp_path, OFFLINE).held == 8
    assert len(met) >= 16 and not any(met)


@pytest.mark.further
@pytest.mark.slow
def test_no_run_waits_for_what_the_server_answers_of_the_artifacts_of_others(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them waits for 20 s and more, so that all together took minutes."""
    monkeypatch.setattr(wandb_settings, "CONNECT_SECONDS", 60)
    asked, waiting = "graphql ArtifactType", list[int]()
    server.order(asked, "hang")

    def release() -> None:
        limit = time.monotonic() + 60
        while not server.requests[asked] and time.monotonic() < limit:
            time.sleep(0.05)
        limit = time.monotonic() + 15
        while server.requests[asked] < 8 and time.monotonic() < limit:
            time.sleep(0.05)
        waiting.append(server.requests[asked])
        server.faults.clear()
        server.released.set()

    releasing = threading.Thread(target=release)
    releasing.start()
    assert publish(with_artifacts(8), tmp_path, ONLINE).held == 8
    releasing.join()
    assert waiting == [8]


def with_artifacts(count: int) -> list[Entry]:
    """Return runs with a table and an artifact each."""
    return [
        Entry(
            run=f"r{n}", mark="m", name="r", job="data", tags=(), config={}, summary={},
            tables={"t": pd.DataFrame({"n": [n]})},
            writes=(entries.Artifact(name=f"a{n}", type="dataset", files={"m.json": b"{}"}),),
        )
        for n in range(count)
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_could_not_be_told_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = entries.Entry(
        run="r", mark="m", name="r", job="data", tags=(), config={}, summary={},
        media=lambda: {"n": 1 / 0},
    )  # fmt: skip
    assert "division" in publish([told], tmp_path, OFFLINE).warning and not runs(tmp_path)


def _lasting(arrived: Arrived) -> dict[str, Any]:
    """Return what a run says, without the times and versions at which it was written."""
    told = asdict(arrived)
    for name in ("config", "summary"):
        told[name] = {n: v for n, v in told[name].items() if not n.startswith("_")}
    lines = told["history"].values()
    told["history"] = [
        {n: v for n, v in line.items() if n == "_step" or not n.startswith("_")} for line in lines
    ]
    return told


def test_a_log_keeps_its_records_at_every_border_of_a_block() -> None:
    block, head = wandb_offline.BLOCK_BYTES, wandb_offline.CHUNK
    room = block - len(wandb_offline.START) - head.size
    for size in (0, room - 8, room - 7, room - 1, room, room + 1, 3 * block):
        records = [bytes(size), b"second"]
        data, place, found = wandb_offline.log(records), len(wandb_offline.START), [b""]
        while place < len(data):
            if block - place % block < head.size:
                place += block - place % block
                continue
            checksum, length, kind = head.unpack_from(data, place)
            place += head.size
            part = data[place : place + length]
            assert zlib.crc32(bytes([kind]) + part) == checksum
            assert place % block + length <= block
            place += length
            found[-1] += part
            if kind in (wandb_offline.FULL, wandb_offline.LAST):
                found.append(b"")
        assert found == [*records, b""]


@pytest.mark.slow
def test_a_memory_with_a_torn_line_goes_on(tmp_path: Path) -> None:
    publish(rows().head(1), tmp_path, OFFLINE)
    memory = tmp_path / "sweeps/s/wandb" / published.OFFLINE_MEMORY
    memory.write_text(memory.read_text() + '{"run": "torn')
    first = runs(tmp_path)
    assert publish(rows(), tmp_path, OFFLINE).held == 2
    assert set(first) < set(runs(tmp_path)) and len(runs(tmp_path)) == 2
    now = runs(tmp_path)
    assert publish(rows(), tmp_path, OFFLINE).held == 2 and runs(tmp_path) == now, "nothing glued"


@pytest.mark.slow
def test_a_tuning_is_one_run_with_its_tables(tmp_path: Path) -> None:
    told = [entries.tuning(generated().tuned, SWEEP, OFFLINE)]
    assert publish(told, tmp_path, OFFLINE).held == 1
    found = [read(run) for run in runs(tmp_path)]
    assert publish(told, tmp_path, OFFLINE).held == 1 and len(runs(tmp_path)) == 1
    assert found[0]["name"] == "tune · s" and "tune" in found[0]["tags"]
    assert found[0]["summary"]["tuned_tpr/badnets"] == pytest.approx(0.75)
    tables = {file.name.split("_")[0]: json.loads(file.read_text())
              for file in (runs(tmp_path)[0] / "files").rglob("*.table.json")}  # fmt: skip
    assert len(tables["tuned"]["data"]) == 6 and len(tables["candidates"]["data"]) == 27
    assert "parameter.overlays" in tables["candidates"]["columns"]


@pytest.mark.further
@pytest.mark.slow
def test_no_network_is_a_warning_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_settings, "CONNECT_SECONDS", 5)
    monkeypatch.setattr(wandb, "PAUSES", (0.0, 0.1))
    done = publish(rows(), tmp_path / "a folder", ONLINE)
    assert (done.held, done.left) == (0, 2) and "W&B is not reachable" in done.warning
    assert f"raysweep sync s --storage '{tmp_path}/a folder'" in done.warning
    assert not list(tmp_path.rglob("*run-*"))


@pytest.mark.slow
def test_without_a_key_nothing_is_asked_on_a_terminal(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raysweep.sweep.spec import Track; "
        "from tests.test_track import publish, rows; "
        "assert sys.stdin.isatty() and sys.stderr.isatty(); "
        "done = publish(rows(), Path(sys.argv[1]), Track(wandb='online')); "
        "assert sys.stdin.isatty(), 'given back'; "
        "print(done.held, 'W&B has no usable key' in done.warning)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "w")], stdin=theirs, stderr=theirs,
            stdout=subprocess.PIPE, text=True, timeout=90, cwd=Path(__file__).parent.parent,
            env={**clean, "HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"},
        )  # fmt: skip
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 0 and done.stdout.split() == ["0", "True"]


@pytest.mark.slow
def test_what_arrived_is_asked_for_once_and_remembered(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    first = publish(rows(), tmp_path, ONLINE)
    assert (first.held, first.total, first.warning) == (2, 2, "")
    place = first.note.removeprefix("W&B: 2 of 2 runs are in ")
    assert place.startswith("http") and place.endswith(f"/{ENTITY}/p"), first.note
    assert server.requests["graphql Runs"] == 4, "twice how many, which stand, which arrived"
    assert set(server.runs) == set(run_ids()) == remembered(tmp_path, "online")
    run = server.runs[run_ids()[0]]
    assert (run.name, run.group, run.project, run.state) == (A, "s", "p", "finished")
    assert run.summary["ca"] == 0.9 and run.config["trial"] == "a"
    assert not list(scratch.iterdir()) and not runs(tmp_path), "nothing is left behind"
    assert sum(n for label, n in server.requests.items() if "Runs" not in label) <= 2 + 5 * 2
    server.requests.clear()
    again = publish(rows(), tmp_path, ONLINE)
    assert (again.held, again.note) == (2, "W&B: 2 of 2 runs are in p")
    assert not server.requests, "nothing is asked, nothing is sent"


@pytest.mark.slow
def test_a_run_that_stands_is_not_sent_again_by_who_remembers_nothing(
    server: State, tmp_path: Path
) -> None:
    publish(rows(), tmp_path / "here", ONLINE)
    assert publish(rows(), tmp_path / "there", ONLINE).held == 2
    assert {run.completed for run in server.runs.values()} == {1}
    assert remembered(tmp_path / "there", "online") == set(run_ids())


@pytest.mark.further
@pytest.mark.slow
def test_two_sweeps_with_the_same_trial_and_their_tunings_are_runs_of_their_own(
    server: State, tmp_path: Path
) -> None:
    for name in ("s", "t"):
        told = [entries.trial(rows().to_dict("records")[0], name, ONLINE),
                entries.tuning(generated().tuned, name, ONLINE)]  # fmt: skip
        publish(told, tmp_path, ONLINE, name)
    assert len(server.runs) == 4, "no run took the place of another"
    said = sorted((run.group, run.name) for run in server.runs.values())
    assert said == [(name, text) for name in "st" for text in (A, f"tune · {name}")]


@pytest.mark.further
@pytest.mark.slow
def test_a_process_sends_to_the_server_that_is_named_now(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb as client

    client.Api()  # as a report does, which is written in the same process
    with serving() as other:
        send_to(other, monkeypatch)
        assert publish(rows(), tmp_path, ONLINE).held == 2
        assert set(other.runs) == set(run_ids()) and not server.runs


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 403, 404, 409, 413])
def test_a_run_whose_file_stream_is_refused_is_named(
    server: State, tmp_path: Path, status: int
) -> None:
    one, other = run_ids()
    server.order(f"file_stream {other}", status)
    first = publish(rows(), tmp_path, ONLINE)
    assert f"(HTTP {status})" in first.warning and "raysweep sync s" in first.warning
    assert B in first.warning and A not in first.warning and first.held == 1
    assert remembered(tmp_path, "online") == {one} and not runs(tmp_path)
    server.faults.clear()
    second = publish(rows(), tmp_path, ONLINE)
    assert (second.held, second.warning) == (2, "")
    assert server.runs[other].summary["tpr"] == 1 and remembered(tmp_path, "online") == {one, other}


@pytest.mark.slow
def test_earlier_content_is_not_taken_for_what_was_refused(server: State, tmp_path: Path) -> None:
    publish(rows(), tmp_path, ONLINE)
    changed = rows()
    changed.loc[0, "ca"] = 0.5
    server.order("file_stream", 413)
    refused = publish(changed, tmp_path, ONLINE)
    assert refused.held == 1 and A in refused.warning
    server.faults.clear()
    assert publish(changed, tmp_path, ONLINE).warning == ""
    assert server.runs[run_ids()[0]].summary["ca"] == 0.5


@pytest.mark.slow
def test_offline_copies_go_once_the_runs_have_arrived(server: State, tmp_path: Path) -> None:
    publish(rows(), tmp_path, OFFLINE)
    assert publish(rows().head(1), tmp_path, ONLINE).held == 1 and len(runs(tmp_path)) == 1
    assert publish(rows(), tmp_path, OFFLINE).held == len(runs(tmp_path)) == 2
    assert publish(rows(), tmp_path, ONLINE).held == 2 and not runs(tmp_path)


@pytest.mark.further
@pytest.mark.slow
def test_a_tuning_whose_tables_are_refused_is_not_published(server: State, tmp_path: Path) -> None:
    told = [entries.tuning(generated().tuned, SWEEP, ONLINE)]
    for part, status, after in (
        ("graphql CreateArtifact", 400, 0), ("graphql CommitArtifact", 409, 1), ("upload", 403, 0),
    ):  # fmt: skip
        server.clear()
        server.order(part, status, after=after)
        done = publish(told, tmp_path, ONLINE)
        assert f"(HTTP {status})" in done.warning and "tune · s" in done.warning
        assert not remembered(tmp_path, "online")
    server.faults.clear()
    assert publish(told, tmp_path, ONLINE).warning == ""
    kept = [one["name"] for one in server.artifacts.values() if one["state"] == "COMMITTED"]
    assert {name.rsplit("-", 1)[1] for name in kept} == {"tuned", "candidates"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "words"),
    [(401, ("refused the key", "wandb login", "WANDB_API_KEY")),
     (403, ("does not let this key write to team/p", "permission", "track.entity"))],
)  # fmt: skip
def test_a_wrong_key_and_a_missing_permission_are_said(
    server: State, tmp_path: Path, status: int, words: tuple[str, ...]
) -> None:
    server.order("graphql", status)
    five = pd.concat([rows().head(1).assign(trial=str(n), seed=n) for n in range(5)])
    done = publish(five, tmp_path, Track(wandb="online", project="p", entity="team"))
    assert all(word in done.warning for word in words), done.warning
    assert "seed 0" in done.warning and "seed 2 and 2 more" in done.warning
    assert (done.held, done.left) == (0, 5) and not runs(tmp_path)
    assert not server.requests["graphql UpsertBucket"], "refused once is refused for all"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "what"),
    [("", "hang"), ("file_stream", 500), ("graphql Runs", "hang"), ("", "html"), ("", "drop"),
     ("graphql Runs", "html"), ("graphql UpsertBucket", "empty")],
)  # fmt: skip
def test_a_server_out_of_order_neither_holds_up_nor_fools(
    server: State, tmp_path: Path, impatient: None, part: str, what: What
) -> None:
    server.order(part, what)
    done = publish(rows(), tmp_path, ONLINE)
    assert done.held == 0 and A in done.warning and B in done.warning
    assert not remembered(tmp_path, "online") and not runs(tmp_path)


@pytest.mark.slow
def test_one_run_that_hangs_costs_itself_alone(
    server: State, tmp_path: Path, impatient: None
) -> None:
    six = pd.concat([rows().head(1).assign(trial=str(n)) for n in range(6)])
    hung = entries.run_id(SWEEP, "2")
    server.order(f"file_stream {hung}", "hang")
    done = publish(six, tmp_path, ONLINE)
    assert done.held == 5 and remembered(tmp_path, "online") == set(server.runs) - {hung}
    server.released.set()
    server.faults.clear()
    assert publish(six, tmp_path, ONLINE).held == 6


@pytest.mark.slow
@pytest.mark.parametrize("part", ["graphql UpsertBucket", "file_stream", "graphql Runs"])
def test_a_limit_of_rate_is_waited_for(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(wandb, "PAUSES", (0.0, 0.5, 1.0))
    server.order(part, 429, times=3, reset=1)
    done = publish(rows(), tmp_path, ONLINE)
    assert (done.held, done.warning) == (2, "") and not server.faults[0].times
    assert {run.state for run in server.runs.values()} == {"finished"}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["graphql UpsertBucket", "graphql Runs"])
def test_a_limit_that_outlasts_the_patience_of_wandbs_client_is_waited_for(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(wandb_settings, "CONNECT_SECONDS", 4)
    monkeypatch.setattr(wandb, "PAUSES", (0.0, 0.1, 0.1))
    server.order(part, 429, times=1, reset=60)
    done = publish(rows().head(1), tmp_path, ONLINE)
    assert (done.held, done.warning) == (1, "")


@pytest.mark.slow
def test_a_faulty_answer_now_and_then_is_tried_again(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "PAUSES", (0.0, 0.1))
    server.order("graphql Runs", 502, times=1)
    server.order("file_stream", "drop", times=1)
    server.order("graphql UpsertBucket", 503, times=1)
    done = publish(rows(), tmp_path, ONLINE)
    assert (done.held, done.warning) == (2, "")


@pytest.mark.slow
def test_what_is_shown_late_is_asked_for_again(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_runs, "ARRIVAL_SECONDS", 60.0)
    monkeypatch.setattr(wandb_runs, "FIRST_PAUSE_SECONDS", 0.01)
    server.order("graphql Runs", "no runs", times=5)
    done = publish(rows().head(1), tmp_path, ONLINE)
    assert (done.held, done.warning) == (1, "") and server.requests["graphql Runs"] == 6


@pytest.mark.slow
def test_a_key_that_cannot_be_one_is_said(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    done = publish(rows(), tmp_path, ONLINE)
    assert "W&B has no usable key" in done.warning and done.held == 0


@pytest.mark.slow
def test_a_metric_that_is_no_longer_defined_leaves_the_server(
    server: State, tmp_path: Path
) -> None:
    publish(rows(), tmp_path, ONLINE)
    assert "tpr" in server.runs[run_ids()[1]].summary
    assert publish(rows().assign(tpr=np.nan), tmp_path, ONLINE).held == 2
    assert "tpr" not in server.runs[run_ids()[1]].summary


@pytest.mark.slow
def test_every_field_of_an_entry_arrives(server: State, tmp_path: Path) -> None:
    model = entries.Artifact(
        name="train-1", type="model", metadata={"key": "train-1"}, files={"m.json": b"{}"}
    )
    victim = entries.Entry(
        run="victim", mark="m1", name="victim", job="train", tags=("digits",), config={"epochs": 2},
        summary={"loss": 0.5}, history=[{"epoch": 1, "loss": 0.9}, {"epoch": 2, "loss": 0.5}],
        writes=(model,),
    )  # fmt: skip
    failed = entries.Entry(
        run="failed", mark="m2", name="failed", job="filter", tags=("failed",), config={},
        summary={}, group="mine", notes="ValueError: no luck", state="failed",
        media=lambda: {"curve": _table([[0, 1]])}, reads=("train-1:latest", "gone:latest"),
    )  # fmt: skip
    ongoing = entries.Entry(
        run="sweep", mark="m3", name="sweep", job="sweep", tags=(), config={},
        summary={"done": 1.0}, state="running",
    )  # fmt: skip
    done = publish([failed, victim, ongoing], tmp_path, ONLINE)
    assert (done.held, done.warning) == (3, "")
    one, other = server.runs["victim"], server.runs["failed"]
    assert [line.get("loss") for line in one.history.values()] == [0.9, 0.5, 0.5]
    assert (one.job, one.group, one.state, one.tags) == ("train", SWEEP, "finished", ["digits"])
    assert (other.state, other.group, other.notes) == ("failed", "mine", "ValueError: no luck")
    made = {kept["name"]: kept for kept in server.artifacts.values()}
    assert made["train-1"]["type"] == "model" and made["train-1"]["metadata"] == {"key": "train-1"}
    assert made["train-1"]["made by"] == {"victim"} and made["train-1"]["used by"] == {"failed"}
    assert "curve" in other.summary and server.runs["sweep"].state == "running"
    assert not server.unknown - {"OrganizationCoreWeaveOrganizationID"}, server.unknown


def _table(cells: list[list[int]]) -> object:
    import wandb as client

    return client.Table(columns=["x", "y"], data=cells)


@pytest.mark.slow
def test_wandbs_process_is_started_anew_now_and_then(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "BATCH", 1)
    monkeypatch.setattr(wandb_runs, "MOST_WRITTEN", 1)
    stopped: list[int] = []
    forget = wandb_runs.Client.forget

    def counted(client: wandb_runs.Client) -> None:
        stopped.append(len(server.runs))
        forget(client)

    monkeypatch.setattr(wandb_runs.Client, "forget", counted)
    done = publish(rows(), tmp_path, ONLINE)
    assert (done.held, done.warning, stopped) == (2, "", [1, 2])


@pytest.mark.further
@pytest.mark.slow
def test_a_project_that_would_grow_too_large_is_refused_before_anything_is_sent(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "MOST_RUNS", 3)
    publish(rows(), tmp_path, ONLINE)
    more = rows().assign(trial=["c", "d"])
    done = publish(more, tmp_path, ONLINE)
    assert "holds 2 runs, and with 2 more" in done.warning and "track.project" in done.warning
    assert len(server.runs) == 2 and done.held == 0
    monkeypatch.setattr(wandb, "MOST_KEYS", 1)
    assert "metrics" in publish(rows().assign(ca=0.1), tmp_path, ONLINE).warning
