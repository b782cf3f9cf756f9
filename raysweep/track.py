"""Weights & Biases: a run per finished trial and one per tuning; the only user of wandb.

A run's id is a hash of sweep and trial, so that a trial published twice is the same run. What was
published is remembered, so that an unchanged row is not written again and an interrupted publishing
goes on. Nothing that goes wrong here ever fails a sweep, and nothing here ever asks a question.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from raysweep.identity import digest
from raysweep.spec import Track

Mode = Literal["online", "offline"]
CONFIG = (
    "dataset", "model", "attack", "attack_name", "rate", "target", "defense", "defense_name",
    "kind", "badges", "seed", "trial", "git_commit",
)  # fmt: skip
TAGS = ("dataset", "model", "attack_name", "defense_name")
# Shares of a cost change whenever another trial joins; they say nothing about this one.
UNSTABLE = frozenset({"own_seconds", "shared_seconds", "gpu_seconds", "finished_at"})
MEMORY = "published.jsonl"
CONNECT_SECONDS = 20
UPLOAD_SECONDS = 60.0
TAG_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True)
class Published:
    """How many runs were written, how many stood already, and what went wrong, if anything."""

    count: int = 0
    skipped: int = 0
    folder: Path = Path()
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One run to be: its id, a digest of what it says, and what it says."""

    run: str
    mark: str
    name: str
    job: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    summary: dict[str, float]
    tables: Mapping[str, pd.DataFrame]


def publish(rows: pd.DataFrame, sweep: Mapping[str, Any], track: Track, folder: Path) -> Published:
    """Write a run for every finished trial that is new or has changed.

    Without a key or a network, runs are kept offline, and the warning says how to upload them; a
    later call that reaches W&B writes them there itself.

    Args:
        rows: trials; those whose status is not `ok` are left out.
        sweep: its description; the name is the runs' group unless `track.group` is given.
        track: mode, project, entity.
        folder: where offline runs and the memory of what was published are kept.

    Returns:
        Counts and a warning. No exception of wandb or of the file system leaves this function.
    """
    if rows.empty:
        return Published(folder=folder)
    finished = rows[rows["status"] == "ok"] if "status" in rows else rows
    entries = (_entry(row, sweep, track) for row in finished.to_dict("records"))
    return _published(entries, sweep, track, folder)


def publish_tuning(
    told: Mapping[str, Any], sweep: Mapping[str, Any], track: Track, folder: Path
) -> Published:
    """Write one run for a tuning: a table of what was tuned, and one of every candidate.

    Args:
        told: `rows` and `searches`, as `raysweep.tune.conclude` gives them.
        sweep: its description.
        track: mode, project, entity.
        folder: as `publish` takes it.
    """
    return _published([_tuning_entry(told, sweep, track)], sweep, track, folder)


def _published(
    entries: Iterable[_Entry], sweep: Mapping[str, Any], track: Track, folder: Path
) -> Published:
    if track.wandb == "disabled":
        return Published(folder=folder)
    try:
        return _publish(entries, sweep, track, folder)
    except Exception as error:  # noqa: BLE001  tracking never fails a sweep
        return Published(folder=folder, warning=_trouble(error))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _trouble(error: Exception) -> str:
    return (
        f"W&B failed ({_said(error)}); the records are whole, and what "
        f"was not published is published by the next launch"
    )


def _publish(
    entries: Iterable[_Entry], sweep: Mapping[str, Any], track: Track, folder: Path
) -> Published:
    folder.mkdir(parents=True, exist_ok=True)
    memory = folder / MEMORY
    known = _known(memory)
    mode: Mode = "online" if track.wandb == "online" else "offline"
    queue = list(entries)[::-1]
    count, skipped, warning = 0, 0, ""
    while queue:
        entry = queue.pop()
        # What only lies offline is not yet published online.
        if (entry.mark, mode) in known.get(entry.run, ()):
            skipped += 1
            continue
        try:
            _write(entry, sweep, track, folder, mode)
        except Exception as error:  # noqa: BLE001  tracking never fails a sweep
            if mode == "offline":
                warning = _trouble(error)
                break
            mode, warning = "offline", _unreachable(error, folder)
            _forget()
            queue.append(entry)
            continue
        _remember(memory, entry, mode)
        count += 1
    return Published(count=count, skipped=skipped, folder=folder, warning=warning)


def _unreachable(error: Exception, folder: Path) -> str:
    where = f"{shlex.quote(str(folder / 'wandb'))}/offline-run-*"
    return (
        f"W&B is not reachable ({_said(error)}); runs are kept "
        f"offline, upload them with: wandb sync {where}"
    )


def _entry(record: Mapping[Any, Any], sweep: Mapping[str, Any], track: Track) -> _Entry:
    row = {str(name): value for name, value in record.items()}
    config, summary = _config(row), _summary(row)
    where = [track.project, track.entity, track.group]
    told = json.dumps([where, config, summary], sort_keys=True, default=str)
    run = digest(f"{sweep['name']}/{row['trial']}")[:16]
    tags = dict.fromkeys(str(row[t])[:TAG_CHARACTERS] for t in TAGS if row.get(t))
    return _Entry(
        run=run, mark=digest(told), config=config, summary=summary, tags=tuple(tags),
        name=f"{row['attack']} · {row['defense']} · seed {row['seed']}"[:128],
        job=str(row["kind"])[:TAG_CHARACTERS], tables={},
    )  # fmt: skip


def _tuning_entry(told: Mapping[str, Any], sweep: Mapping[str, Any], track: Track) -> _Entry:
    rows = pd.DataFrame(told["rows"])
    candidates = [
        {
            "defense": search["defense"], "held_out": search["held_out"],
            "number": one["number"], "state": one["state"],
            **{f"parameter.{name}": value for name, value in one["parameters"].items()},
            **one["metrics"],
        }
        for search in told["searches"] for one in search.get("history", ())
    ]  # fmt: skip
    summary = {}
    for column in rows.columns:
        if str(column).startswith(("tuned_", "default_", "oracle_")):
            for held, part in rows.groupby("held_out"):
                value = float(pd.to_numeric(part[column]).mean())
                if math.isfinite(value):
                    summary[f"{column}/{held}"] = value
    tables = {"tuned": _textual(rows)}
    if candidates:
        tables["candidates"] = _textual(pd.DataFrame(candidates))
    where = [track.project, track.entity, track.group]
    mark = digest(json.dumps([where, told], sort_keys=True, default=str))
    return _Entry(
        run=digest(f"{sweep['name']}/tune")[:16], mark=mark, name=f"tune · {sweep['name']}"[:128],
        job="tune", tags=("tune",), config={"sweep": sweep["name"]}, summary=summary, tables=tables,
    )  # fmt: skip


def _textual(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose cells W&B takes: parameters as JSON text, columns of one kind."""
    fixed = frame.copy()
    for column in fixed.select_dtypes(object).columns:
        fixed[column] = fixed[column].map(
            lambda cell: cell if isinstance(cell, str) else json.dumps(cell, default=str)
        )
    return fixed


def _known(file: Path) -> dict[str, set[tuple[str, str]]]:
    """Return run id → (mark, mode) of its last writing, offline and online; skip torn lines."""
    last: dict[tuple[str, str], str] = {}
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            last[entry["run"], entry["mode"]] = entry["mark"]
    known: dict[str, set[tuple[str, str]]] = {}
    for (run, mode), mark in last.items():
        known.setdefault(run, set()).add((mark, mode))
    return known


def _remember(file: Path, entry: _Entry, mode: Mode) -> None:
    torn = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a") as memory:
        line = json.dumps({"run": entry.run, "mode": mode, "mark": entry.mark})
        memory.write(("\n" if torn else "") + line + "\n")


def _write(entry: _Entry, sweep: Mapping[str, Any], track: Track, folder: Path, mode: Mode) -> None:
    """Write one run, or raise."""
    before = set(_offline_runs(folder, entry.run))
    with _unattended():
        import wandb

        started = wandb.init(
            id=entry.run,
            name=entry.name,
            mode=mode,
            project=track.project,
            entity=track.entity,
            group=track.group or str(sweep["name"]),
            job_type=entry.job,
            config=entry.config,
            dir=str(folder),
            settings=_settings(wandb),
            tags=list(entry.tags),
            resume="allow" if mode == "online" else None,
            reinit="finish_previous",
        )
        tables = {name: wandb.Table(dataframe=table) for name, table in entry.tables.items()}
        started.log({**entry.summary, **tables})
        started.finish()
    for stale in before:
        # The same run, said again: uploading both would mix them.
        shutil.rmtree(stale, ignore_errors=True)


def _settings(wandb: Any) -> Any:
    """Return settings that collect nothing, print nothing and end in bounded time."""
    wanted = {
        "console": "off", "silent": True, "disable_git": True, "disable_code": True,
        "save_code": False, "x_disable_stats": True, "x_disable_meta": True,
        "x_disable_machine_info": True, "x_save_requirements": False,
        "init_timeout": CONNECT_SECONDS, "login_timeout": CONNECT_SECONDS,
        "finish_timeout": UPLOAD_SECONDS, "finish_timeout_raises": True,
    }  # fmt: skip
    known = wandb.Settings.model_fields  # Versions differ in the lesser ones.
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def _offline_runs(folder: Path, run: str) -> list[Path]:
    return sorted((folder / "wandb").glob(f"offline-run-*-{run}*"))


@contextlib.contextmanager
def _unattended() -> Iterator[None]:
    """Give wandb no terminal to ask at: a sweep must not wait for a key at night."""
    stdin, silent = sys.stdin, os.environ.get("WANDB_SILENT")
    os.environ["WANDB_SILENT"] = "true"
    with Path(os.devnull).open() as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin
            if silent is None:
                os.environ.pop("WANDB_SILENT", None)
            else:
                os.environ["WANDB_SILENT"] = silent


def _forget() -> None:
    """Stop wandb's own process: it still holds the run that could not be started."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _defined(value: Any) -> bool:
    """Return whether a cell holds something: not None, NA, NaN or infinite."""
    if value is None or value is pd.NA or value is pd.NaT:
        return False
    return not isinstance(value, float) or math.isfinite(value)


def _config(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with flat keys: filters and groups of W&B disagree on nested ones."""
    chosen = {k: _plain(v) for k, v in row.items() if k in CONFIG or _parameter(k)}
    return {k: v for k, v in chosen.items() if _defined(v)}


def _parameter(column: str) -> bool:
    """Return whether a column is a parameter; `found.*` are what a defense measured."""
    return "." in column and not column.startswith("found.")


def _summary(row: Mapping[str, Any]) -> dict[str, float]:
    """Return every number that is neither a parameter nor undefined."""
    numbers = {}
    for name, value in row.items():
        plain = _plain(value)
        outside = _parameter(name) or name in CONFIG or name in UNSTABLE
        if not outside and isinstance(plain, int | float) and _defined(plain):
            numbers[name] = float(plain)
    return numbers
