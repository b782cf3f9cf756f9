"""Weights & Biases: one run per finished trial, written by the driver; the only user of wandb.

A run's id is a hash of sweep and trial, so that a trial published twice is the same run. What was
published is remembered, so that an unchanged row is not written again. Nothing that goes wrong here
ever fails a sweep.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from raysweep.identity import digest
from raysweep.spec import Track

CONFIG = ("dataset", "model", "attack_name", "rate", "defense_name", "kind", "badges", "seed")
NOT_METRICS = frozenset({"seed", "rate", "target"})
MEMORY = "published.jsonl"


@dataclass(frozen=True, kw_only=True)
class Published:
    """How many runs were written, how many stood already, and what went wrong, if anything."""

    count: int = 0
    skipped: int = 0
    warning: str = ""


def publish(rows: pd.DataFrame, sweep: Mapping[str, Any], track: Track, folder: Path) -> Published:
    """Write a run for every row that is new or has changed.

    Args:
        rows: finished trials.
        sweep: its description; the name is the runs' group unless `track.group` is given.
        track: mode, project, entity.
        folder: where offline runs and the memory of what was published are kept.
    """
    if track.wandb == "disabled" or rows.empty:
        return Published()
    folder.mkdir(parents=True, exist_ok=True)
    known = _known(folder / MEMORY)
    todo = []
    for record in rows.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        run = digest(f"{sweep['name']}/{row['trial']}")[:16]
        config, summary = _config(row), _summary(row)
        mark = digest(json.dumps([track.wandb, config, summary], sort_keys=True, default=str))
        if known.get(run) != mark:
            todo.append((run, mark, row, config, summary))
    skipped = len(rows) - len(todo)
    if not todo:
        return Published(skipped=skipped)
    mode: Literal["online", "offline"] = track.wandb
    warning, count = "", 0
    for run, mark, row, config, summary in todo:
        try:
            try:
                _write(run, row, config, summary, sweep, track, folder, mode)
            except Exception as error:
                if mode == "offline":
                    raise
                mode = "offline"
                _forget()
                warning = (
                    f"W&B is not reachable ({type(error).__name__}: {str(error)[:120]}); runs are "
                    f"kept offline, publish them with: wandb sync {folder}/wandb/offline-run-*"
                )
                _write(run, row, config, summary, sweep, track, folder, mode)
        except Exception as error:  # noqa: BLE001  tracking never fails a sweep
            warning = f"W&B failed ({type(error).__name__}: {str(error)[:200]}); records are whole"
            break
        with (folder / MEMORY).open("a") as memory:
            memory.write(json.dumps({"run": run, "mark": mark}) + "\n")
        count += 1
    return Published(count=count, skipped=skipped, warning=warning)


def _known(file: Path) -> dict[str, str]:
    known = {}
    if file.exists():
        for line in file.read_text().splitlines():
            try:
                entry = json.loads(line)
                known[entry["run"]] = entry["mark"]
            except (ValueError, KeyError):
                continue
    return known


def _write(
    run: str,
    row: Mapping[str, Any],
    config: dict[str, Any],
    summary: dict[str, float],
    sweep: Mapping[str, Any],
    track: Track,
    folder: Path,
    mode: Literal["online", "offline"],
) -> None:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True,
        x_disable_meta=True, init_timeout=20,
    )  # fmt: skip
    started = wandb.init(
        id=run, name=f"{row['attack']} · {row['defense']} · seed {row['seed']}", mode=mode,
        project=track.project, entity=track.entity, group=track.group or sweep["name"],
        job_type=str(row["kind"]), config=config, dir=str(folder), settings=settings,
        tags=[str(row[tag])[:64] for tag in ("dataset", "attack_name", "defense_name")],
        resume="allow" if mode == "online" else None, reinit="finish_previous",
    )  # fmt: skip
    started.log(summary)
    started.finish()


def _forget() -> None:
    """Stop wandb's own process: it still holds the run that could not be started."""
    import wandb

    wandb.teardown()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _config(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with flat keys: filters and groups of W&B disagree on nested ones."""
    chosen = {k: v for k, v in row.items() if k in CONFIG or "." in k}
    return {k: _plain(v) for k, v in chosen.items() if v is not None and v == v}


def _summary(row: Mapping[str, Any]) -> dict[str, float]:
    """Return every number that is neither a parameter nor undefined."""
    numbers = {}
    for name, value in row.items():
        plain = _plain(value)
        if "." in name or name in NOT_METRICS or not isinstance(plain, int | float):
            continue
        if plain == plain and "seconds" not in name and name != "finished_at":
            numbers[name] = float(plain)
    return numbers
