"""W&B for real: one run per trial, the same run when started twice, never in the way."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep.cli.app import app
from raysweep.results import entries, wandb, wandb_runs
from raysweep.sweep.spec import Track
from tests.material import generated, row
from tests.wandb_server import ENTITY, State, What, serving

SWEEP = "s"
OFFLINE = Track(wandb="offline", project="p")
ONLINE = Track(wandb="online", project="p")
A, B = "badnets · none · seed 0", "badnets · strip · seed 0"


@pytest.fixture(scope="module")
def world() -> Iterator[State]:
    with serving() as state:
        yield state
    wandb_runs.forget()


@pytest.fixture
def server(world: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """Give an empty server that wandb is sent to; what it does not hold at once is missing."""
    world.clear()
    monkeypatch.setenv("WANDB_BASE_URL", world.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_runs, "ARRIVAL_SECONDS", 0)
    yield world
    world.clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_runs, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(wandb_runs, "UPLOAD_SECONDS", 1.0)


def remembered(folder: Path, mode: str) -> set[str]:
    """Return the ids of the runs that are remembered in a mode."""
    lines = map(json.loads, (folder / wandb.MEMORY).read_text().splitlines())
    return {line["run"] for line in lines if line["mode"] == mode}


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


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def ids(folder: Path) -> list[str]:
    return [next(run.glob("run-*.wandb")).stem.removeprefix("run-") for run in runs(folder)]


def read(run: Path) -> dict[str, Any]:
    """Return what wandb's own tool finds in an offline run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(told.stdout)
    return found


@pytest.mark.slow
def test_offline_runs_are_written_once_and_read_back(tmp_path: Path) -> None:
    first = wandb.publish(rows(), SWEEP, OFFLINE, tmp_path)
    assert (first.count, first.skipped, first.warning) == (2, 0, "")
    upload = f"upload them with: wandb sync {tmp_path}/wandb/offline-run-*"
    assert first.note == f"W&B: 2 runs are offline; {upload}"
    assert len(set(ids(tmp_path))) == 2
    again = wandb.publish(rows(), SWEEP, OFFLINE, tmp_path)
    assert (again.count, again.skipped) == (0, 2)
    changed = rows()
    changed.loc[0, "ca"] = 0.5
    third = wandb.publish(changed, SWEEP, OFFLINE, tmp_path)
    assert (third.count, third.skipped) == (1, 1)
    assert len(runs(tmp_path)) == 2, "the run that was said again replaces what it said before"
    assert third.note == first.note
    for run in runs(tmp_path):
        (run / f"run-{run.name.rpartition('-')[2]}.wandb.synced").touch()  # as `wandb sync` does
    assert wandb.publish(changed, SWEEP, OFFLINE, tmp_path).note == "", "all are uploaded"
    told = {found["config"]["trial"]: found for found in map(read, runs(tmp_path))}
    assert told["a"]["summary"]["ca"] == 0.5 and "tpr" not in told["a"]["summary"]
    assert told["b"]["summary"]["tpr"] == 1 and told["b"]["config"]["attack.alpha"] == 0.2
    assert told["b"]["project"] == "p" and told["b"]["state"] == "finished"
    assert {"strip", "badnets", "digits"} <= set(told["b"]["tags"])
    assert told["b"]["name"] == "badnets · strip · seed 0"


@pytest.mark.slow
def test_a_launch_ends_with_the_line_that_uploads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, store = tmp_path / "s.yaml", tmp_path / "store"
    words = ["launch", str(file), "--inline", "--storage", str(store)]
    for mode in ("disabled", "offline"):
        file.write_text(
            "name: s\ndataset: {digits: {size: 200}}\nmodel: linear\nrecipe: {epochs: 1}\n"
            f"attack: none\ndefense: none\ntrack: {{wandb: {mode}}}\n"
        )
        app(words, standalone_mode=False)
        said = [line for line in capsys.readouterr().out.splitlines() if "W&B" in line]
        upload = f"wandb sync {store}/sweeps/s/wandb/wandb/offline-run-*"
        told = [f"W&B: 1 runs are offline; upload them with: {upload}"]
        assert said == ([] if mode == "disabled" else told)


@pytest.mark.slow
def test_an_interrupted_publishing_goes_on(tmp_path: Path) -> None:
    wandb.publish(rows().head(1), SWEEP, OFFLINE, tmp_path)
    memory = tmp_path / wandb.MEMORY
    memory.write_text(memory.read_text() + '{"run": "torn')
    done = wandb.publish(rows(), SWEEP, OFFLINE, tmp_path)
    assert (done.count, done.skipped, done.warning) == (1, 1, "")
    assert (wandb.publish(rows(), SWEEP, OFFLINE, tmp_path)).skipped == 2, "nothing was glued"


@pytest.mark.slow
def test_only_finished_trials_are_published(tmp_path: Path) -> None:
    mixed = rows()
    mixed.loc[1, "status"] = "failed"
    assert wandb.publish(mixed, SWEEP, OFFLINE, tmp_path).count == 1


@pytest.mark.slow
def test_a_tuning_is_one_run_with_its_tables(tmp_path: Path) -> None:
    told = generated().tuned
    first = wandb.publish_tuning(told, SWEEP, OFFLINE, tmp_path)
    assert (first.count, first.warning) == (1, "")
    assert wandb.publish_tuning(told, SWEEP, OFFLINE, tmp_path).skipped == 1
    (found,) = map(read, runs(tmp_path))
    assert found["name"] == "tune · s" and "tune" in found["tags"]
    assert found["summary"]["tuned_tpr/badnets"] == pytest.approx(0.75)
    tables = {file.name.split("_")[0]: json.loads(file.read_text())
              for file in (runs(tmp_path)[0] / "files").rglob("*.table.json")}  # fmt: skip
    assert len(tables["tuned"]["data"]) == 6 and len(tables["candidates"]["data"]) == 27
    assert "parameter.overlays" in tables["candidates"]["columns"]


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    done = wandb.publish(rows(), SWEEP, Track(wandb="disabled"), tmp_path / "x")
    assert (done.count, done.skipped, done.warning) == (0, 0, "") and not (tmp_path / "x").exists()


def test_an_unusable_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = wandb.publish(rows(), SWEEP, OFFLINE, tmp_path / "file" / "wandb")
    assert done.count == 0 and "W&B failed (NotADirectoryError" in done.warning


@pytest.mark.slow
def test_no_network_falls_back_to_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_runs, "CONNECT_SECONDS", 5)
    folder = tmp_path / "a folder"
    for count, skipped in ((2, 0), (0, 2)):
        done = wandb.publish(rows(), SWEEP, Track(wandb="online"), folder)
        assert (done.count, done.skipped) == (count, skipped), "online is tried again, once"
        assert f"wandb sync '{folder}/wandb'/offline-run-*" in done.warning
        assert len(set(ids(folder))) == 2


@pytest.mark.slow
def test_without_a_key_nothing_is_asked_on_a_terminal(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raysweep.results import wandb; "
        "from raysweep.sweep.spec import Track; from tests.test_track import rows; "
        "assert sys.stdin.isatty() and sys.stderr.isatty(); "
        "done = wandb.publish(rows(), 's', Track(wandb='online'), Path(sys.argv[1])); "
        "assert sys.stdin.isatty(), 'given back'; "
        "print(done.count, 'sync' in done.warning)"
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
    assert done.returncode == 0 and done.stdout.split() == ["2", "True"]


@pytest.mark.slow
def test_what_arrived_is_asked_for_once_and_remembered(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "w"
    first = wandb.publish(rows(), SWEEP, ONLINE, folder)
    assert (first.count, first.skipped, first.warning) == (2, 0, "")
    place = first.note.removeprefix("W&B: 2 runs sent, 0 stood there already: ")
    assert place.startswith("http") and place.endswith(f"/{ENTITY}/p"), first.note
    assert server.requests["graphql Runs"] == 1, "one question for all runs"
    assert set(server.runs) == set(run_ids()) == remembered(folder, "online")
    run = server.runs[run_ids()[0]]
    assert (run.name, run.group, run.project, run.state) == (A, "s", "p", "finished")
    assert run.summary["ca"] == 0.9 and run.config["trial"] == "a"
    assert not (tmp_path / ENTITY).exists(), "asking leaves no folders behind"
    server.requests.clear()
    again = wandb.publish(rows(), SWEEP, ONLINE, folder)
    assert (again.count, again.skipped) == (0, 2)
    assert again.note == "W&B: 0 runs sent, 2 stood there already: project p"
    assert not set(server.requests) - {"other"}, "nothing is asked, nothing is sent"


@pytest.mark.slow
def test_two_sweeps_with_the_same_trial_and_their_tunings_are_runs_of_their_own(
    server: State, tmp_path: Path
) -> None:
    wandb_runs.forget()  # wandb keeps where it was sent before.
    told = generated().tuned
    for name in ("s", "t"):
        folder = tmp_path / name
        wandb.publish(rows().head(1), name, ONLINE, folder)
        wandb.publish_tuning(told, name, ONLINE, folder)
    assert len(server.runs) == 4, "no run took the place of another"
    said = sorted((run.group, run.name) for run in server.runs.values())
    assert said == [(name, text) for name in "st" for text in (A, f"tune · {name}")]


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 403, 404, 409, 413])
def test_a_run_whose_file_stream_is_refused_stays_offline_and_is_named(
    server: State, tmp_path: Path, status: int
) -> None:
    one, other = run_ids()
    server.order(f"file_stream {other}", status)
    first = wandb.publish(rows(), SWEEP, ONLINE, tmp_path)
    assert f"(HTTP {status})" in first.warning and "wandb sync" in first.warning
    assert B in first.warning and A not in first.warning
    assert remembered(tmp_path, "online") == {one} and remembered(tmp_path, "offline") == {other}
    assert ids(tmp_path) == [other]
    server.faults.clear()
    second = wandb.publish(rows(), SWEEP, ONLINE, tmp_path)
    assert (second.count, second.skipped, second.warning) == (1, 1, "")
    assert server.runs[other].summary["tpr"] == 1 and remembered(tmp_path, "online") == {one, other}
    assert not runs(tmp_path), "what arrived no longer lies offline"


@pytest.mark.slow
def test_earlier_content_is_not_taken_for_what_was_refused(server: State, tmp_path: Path) -> None:
    wandb.publish(rows(), SWEEP, ONLINE, tmp_path)
    changed = rows()
    changed.loc[0, "ca"] = 0.5
    server.order("file_stream", 413)
    refused = wandb.publish(changed, SWEEP, ONLINE, tmp_path)
    assert (refused.count, refused.skipped) == (1, 1) and A in refused.warning
    server.faults.clear()
    assert wandb.publish(changed, SWEEP, ONLINE, tmp_path).warning == ""
    assert server.runs[run_ids()[0]].summary["ca"] == 0.5 and not runs(tmp_path)
    offline = wandb.publish(changed, SWEEP, OFFLINE, tmp_path)
    assert offline.count == len(runs(tmp_path)) == 2, "a copy that was removed does not stand"


@pytest.mark.slow
def test_a_tuning_whose_tables_are_refused_stays_offline(server: State, tmp_path: Path) -> None:
    told = generated().tuned
    for part, status, after in (
        ("graphql CreateArtifact", 400, 0), ("graphql CommitArtifact", 409, 1), ("upload", 403, 0),
    ):  # fmt: skip
        server.clear()
        server.order(part, status, after=after)
        done = wandb.publish_tuning(told, SWEEP, ONLINE, tmp_path)
        assert f"(HTTP {status})" in done.warning and "tune · s" in done.warning
        assert not remembered(tmp_path, "online") and len(runs(tmp_path)) == 1
    server.faults.clear()
    done = wandb.publish_tuning(told, SWEEP, ONLINE, tmp_path)
    assert (done.count, done.warning) == (1, "") and not runs(tmp_path)
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
    server.order("graphql UpsertBucket", status)
    five = pd.concat([rows().head(1).assign(trial=str(n), seed=n) for n in range(5)])
    mine = Track(wandb="online", project="p", entity="team")
    done = wandb.publish(five, SWEEP, mine, tmp_path)
    assert all(word in done.warning for word in words), done.warning
    assert "seed 0" in done.warning and "seed 2 and 2 more" in done.warning
    assert done.count == 5 and len(runs(tmp_path)) == 5
    assert server.requests["graphql UpsertBucket"] == 1, "refused for one is refused for all"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "what"),
    [("", "hang"), ("file_stream", 500), ("graphql Runs", "hang"), ("", "html"),
     ("graphql Runs", "html"), ("graphql CreateRunFiles", "empty")],
)  # fmt: skip
def test_a_server_out_of_order_neither_holds_up_nor_fools(
    server: State, tmp_path: Path, impatient: None, part: str, what: What
) -> None:
    server.order(part, what)
    done = wandb.publish(rows(), SWEEP, ONLINE, tmp_path)
    assert done.count == 2 and A in done.warning and B in done.warning
    assert not remembered(tmp_path, "online") and len(runs(tmp_path)) == 2


@pytest.mark.slow
def test_a_publishing_that_takes_too_long_ends_offline(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "RUN_SECONDS", -wandb_runs.UPLOAD_SECONDS)
    done = wandb.publish(rows(), SWEEP, ONLINE, tmp_path)
    assert done.count == 2 and "too slow" in done.warning and A in done.warning
    assert not server.runs and len(runs(tmp_path)) == 2


@pytest.mark.slow
def test_what_is_shown_late_is_asked_for_again(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_runs, "ARRIVAL_SECONDS", 60.0)
    monkeypatch.setattr(wandb_runs, "FIRST_PAUSE_SECONDS", 0.01)
    server.order("graphql Runs", "no runs", times=2)
    done = wandb.publish(rows().head(1), SWEEP, ONLINE, tmp_path)
    assert (done.count, done.warning) == (1, "") and server.requests["graphql Runs"] == 3


@pytest.mark.slow
def test_a_key_that_cannot_be_one_is_said(
    server: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.order("file_stream", 413)
    wandb.publish(rows(), SWEEP, ONLINE, tmp_path)
    wandb_runs.forget()  # wandb keeps a key that served.
    monkeypatch.setenv("WANDB_API_KEY", "short")
    done = wandb.publish(rows(), SWEEP, ONLINE, tmp_path)
    assert "W&B has no usable key" in done.warning and "413" not in done.warning
    assert (done.count, done.skipped) == (0, 2)
