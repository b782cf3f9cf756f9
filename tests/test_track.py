"""W&B for real, offline: one run per trial, the same run when started twice, never in the way."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep import track
from raysweep.spec import Track
from tests.material import generated, row

SWEEP = {"name": "s"}
OFFLINE = Track(wandb="offline", project="p")


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


def test_config_and_summary_are_flat_and_defined() -> None:
    first, second = ({str(k): v for k, v in r.items()} for r in rows().to_dict("records"))
    measured = {**first, "found.models": 250.0}
    assert track._summary(measured)["found.models"] == 250
    assert "found.models" not in track._config(measured)
    assert track._config(second)["attack.alpha"] == 0.2
    assert "attack.alpha" not in track._config(first)
    shared = {"ca_n": 100, "asr": 0.9, "asr_n": 90}
    assert track._summary(first) == {"ca": 0.9, **shared}
    assert track._summary(second) == {"ca": 0.8, "tpr": 1.0, "verdict": 1.0, **shared}


@pytest.mark.slow
def test_offline_runs_are_written_once_and_read_back(tmp_path: Path) -> None:
    first = track.publish(rows(), SWEEP, OFFLINE, tmp_path)
    assert (first.count, first.skipped, first.warning) == (2, 0, "")
    assert len(set(ids(tmp_path))) == 2
    again = track.publish(rows(), SWEEP, OFFLINE, tmp_path)
    assert (again.count, again.skipped) == (0, 2)
    changed = rows()
    changed.loc[0, "ca"] = 0.5
    third = track.publish(changed, SWEEP, OFFLINE, tmp_path)
    assert (third.count, third.skipped) == (1, 1)
    assert len(runs(tmp_path)) == 2, "the run that was said again replaces what it said before"
    told = {found["config"]["trial"]: found for found in map(read, runs(tmp_path))}
    assert told["a"]["summary"]["ca"] == 0.5 and "tpr" not in told["a"]["summary"]
    assert told["b"]["summary"]["tpr"] == 1 and told["b"]["config"]["attack.alpha"] == 0.2
    assert told["b"]["project"] == "p" and told["b"]["state"] == "finished"
    assert {"strip", "badnets", "digits"} <= set(told["b"]["tags"])
    assert told["b"]["name"] == "badnets · strip · seed 0"


@pytest.mark.slow
def test_an_interrupted_publishing_goes_on(tmp_path: Path) -> None:
    track.publish(rows().head(1), SWEEP, OFFLINE, tmp_path)
    memory = tmp_path / track.MEMORY
    memory.write_text(memory.read_text() + '{"run": "torn')
    done = track.publish(rows(), SWEEP, OFFLINE, tmp_path)
    assert (done.count, done.skipped, done.warning) == (1, 1, "")
    assert (track.publish(rows(), SWEEP, OFFLINE, tmp_path)).skipped == 2, "nothing was glued"


@pytest.mark.slow
def test_only_finished_trials_are_published(tmp_path: Path) -> None:
    mixed = rows()
    mixed.loc[1, "status"] = "failed"
    assert track.publish(mixed, SWEEP, OFFLINE, tmp_path).count == 1


@pytest.mark.slow
def test_a_tuning_is_one_run_with_its_tables(tmp_path: Path) -> None:
    told = generated().tuning
    first = track.publish_tuning(told, SWEEP, OFFLINE, tmp_path)
    assert (first.count, first.warning) == (1, "")
    assert track.publish_tuning(told, SWEEP, OFFLINE, tmp_path).skipped == 1
    (found,) = map(read, runs(tmp_path))
    assert found["name"] == "tune · s" and "tune" in found["tags"]
    assert found["summary"]["tuned_tpr/badnets"] == pytest.approx(0.75)
    tables = {file.name.split("_")[0]: json.loads(file.read_text())
              for file in (runs(tmp_path)[0] / "files").rglob("*.table.json")}  # fmt: skip
    assert len(tables["tuned"]["data"]) == 6 and len(tables["candidates"]["data"]) == 27
    assert "parameter.overlays" in tables["candidates"]["columns"]


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    done = track.publish(rows(), SWEEP, Track(wandb="disabled"), tmp_path / "x")
    assert (done.count, done.skipped, done.warning) == (0, 0, "") and not (tmp_path / "x").exists()


def test_an_unusable_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = track.publish(rows(), SWEEP, OFFLINE, tmp_path / "file" / "wandb")
    assert done.count == 0 and "W&B failed (NotADirectoryError" in done.warning


@pytest.mark.slow
def test_no_network_falls_back_to_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(track, "CONNECT_SECONDS", 5)
    folder = tmp_path / "a folder"
    for count, skipped in ((2, 0), (0, 2)):
        start = time.monotonic()
        done = track.publish(rows(), SWEEP, Track(wandb="online"), folder)
        assert time.monotonic() - start < 60
        assert (done.count, done.skipped) == (count, skipped), "online is tried again, once"
        assert f"wandb sync '{folder}/wandb'/offline-run-*" in done.warning
        assert len(set(ids(folder))) == 2


@pytest.mark.slow
def test_without_a_key_nothing_is_asked_on_a_terminal(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raysweep import track; "
        "from raysweep.spec import Track; from tests.test_track import rows; "
        "assert sys.stdin.isatty() and sys.stderr.isatty(); "
        "done = track.publish(rows(), {'name': 's'}, Track(wandb='online'), Path(sys.argv[1])); "
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
