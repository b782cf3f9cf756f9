"""W&B for real, offline: one run per trial, the same run when started twice, never in the way."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raysweep import track
from raysweep.spec import Track

SWEEP = {"name": "s"}


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "trial": ["a", "b"], "dataset": "digits", "model": "tiny_cnn", "attack": "badnets",
            "attack_name": "badnets", "rate": 0.05, "defense": ["none", "strip"],
            "defense_name": ["none", "strip"], "kind": ["control", "detector"], "badges": "",
            "seed": 0, "status": "ok", "ca": [0.9, 0.8], "tpr": [np.nan, 1.0],
            "attack.alpha": [None, 0.2], "own_seconds": 1.0,
        }
    )  # fmt: skip


def runs(folder: Path) -> list[str]:
    return sorted(f.name.split("-")[3] for f in (folder / "wandb").glob("offline-run-*"))


def test_config_and_summary_are_flat_and_defined() -> None:
    first, second = rows().to_dict("records")
    named = {str(k): v for k, v in second.items()}
    assert track._config(named)["attack.alpha"] == 0.2
    assert track._summary(named) == {"ca": 0.8, "tpr": 1.0}
    named = {str(k): v for k, v in first.items()}
    assert "attack.alpha" not in track._config(named) and track._summary(named) == {"ca": 0.9}


@pytest.mark.slow
def test_offline_runs_are_written_once(tmp_path: Path) -> None:
    offline = Track(wandb="offline")
    first = track.publish(rows(), SWEEP, offline, tmp_path)
    assert (first.count, first.skipped, first.warning) == (2, 0, "")
    assert len(runs(tmp_path)) == 2
    again = track.publish(rows(), SWEEP, offline, tmp_path)
    assert (again.count, again.skipped) == (0, 2)
    changed = rows()
    changed.loc[0, "ca"] = 0.5
    third = track.publish(changed, SWEEP, offline, tmp_path)
    assert (third.count, third.skipped) == (1, 1)
    assert len(set(runs(tmp_path))) == 2, "a run started twice is the same run"


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    done = track.publish(rows(), SWEEP, Track(wandb="disabled"), tmp_path / "x")
    assert done == track.Published() and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_no_network_falls_back_to_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    start = time.monotonic()
    done = track.publish(rows(), SWEEP, Track(wandb="online"), tmp_path)
    assert done.count == 2 and "wandb sync" in done.warning
    assert len(runs(tmp_path)) >= 2 and time.monotonic() - start < 120
