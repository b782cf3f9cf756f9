"""Runs of Weights & Biases: write one, ask which arrived, read why one was refused.

The only user of wandb. Every function ends in bounded time and none asks a question.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import pandas as pd

from raysweep.results.entries import Entry
from raysweep.sweep.spec import Track

if TYPE_CHECKING:
    from wandb import Settings
    from wandb.apis.public import Run

Mode = Literal["online", "offline"]
CONNECT_SECONDS = 20
UPLOAD_SECONDS = 60.0
RETRIES = 3
# W&B shows what it took a moment later; a run that is missing is asked for again until then.
ARRIVAL_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 0.5
# A run's summary holds the digest of what the run says: this very content arrived, no earlier one.
MARK = "raysweep_mark"
STATUS = re.compile(r"\b(?:error|HTTP|status)\W{1,2}([45]\d\d)\b")


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project of W&B: its path, `entity/project`, and its URL; offline it has none."""

    path: str
    url: str


def write(entry: Entry, group: str, track: Track, folder: Path, mode: Mode) -> Project:
    """Write one run and return its project, or raise.

    Online, a return does not say that anything arrived: W&B's client drops what is refused.
    Earlier copies of the run in the same mode are replaced: uploading both would mix them, and the
    log of an earlier attempt would be read for this one's.
    """
    before = copies(folder, entry.run, mode)
    if mode == "online":
        remove(before)
    with _unattended():
        import wandb

        started = wandb.init(
            id=entry.run,
            name=entry.name,
            mode=mode,
            project=track.project,
            entity=track.entity,
            group=group,
            job_type=entry.job,
            config=dict(entry.config),
            dir=str(folder),
            settings=_settings(),
            tags=list(entry.tags),
            resume="allow" if mode == "online" else None,
            reinit="finish_previous",
        )
        project = Project(
            path=f"{started.entity}/{started.project}",
            url=(started.project_url or "") if mode == "online" else "",
        )
        tables = {name: wandb.Table(dataframe=table) for name, table in entry.tables.items()}
        started.log({**entry.summary, **tables})
        started.summary[MARK] = entry.mark
        started.finish()
    if mode == "offline":
        remove(before)
    return project


def arrived_runs(where: str, sent: Sequence[Entry]) -> set[str]:
    """Return the ids of the runs that W&B holds as they were sent, tables included, or raise.

    All runs are asked for in one request, and again while some are missing.

    Args:
        where: the path of the project that `write` returned.
        sent: what was written there.
    """
    missing = {entry.run: entry for entry in sent}
    ends, pause = time.monotonic() + ARRIVAL_SECONDS, FIRST_PAUSE_SECONDS
    with tempfile.TemporaryDirectory() as scratch, _unattended(WANDB_DIR=scratch):
        import wandb

        api = wandb.Api(timeout=CONNECT_SECONDS)
        while True:
            asked = {"name": {"$in": list(missing)}}
            for run in api.runs(where, filters=asked, per_page=len(missing), lazy=False):
                if run.id in missing and _whole(run, missing[run.id]):
                    del missing[run.id]
            if not missing or time.monotonic() + pause > ends:
                return {entry.run for entry in sent} - set(missing)
            time.sleep(pause)
            pause *= 2


def _whole(run: Run, entry: Entry) -> bool:
    if run.state != "finished" or run.summary_metrics.get(MARK) != entry.mark:
        return False
    if not entry.tables:
        return True
    kept = {a.digest for a in run.logged_artifacts() if a.state == "COMMITTED"}
    return all(_table_digest(*table) in kept for table in entry.tables.items())


def _table_digest(name: str, table: pd.DataFrame) -> str:
    """Return the digest of the artifact that logging a table makes."""
    import wandb

    artifact = wandb.Artifact(name, type="table")
    artifact.add(wandb.Table(dataframe=table), name)
    return str(artifact.digest)


def refusal(error: Exception | None, folder: Path, run: str) -> int | None:
    """Return the HTTP status that kept a run away: in the error's words, else in the run's log."""
    if error is not None and (named := STATUS.search(str(error))):
        return int(named[1])
    refused = None
    for copy in copies(folder, run, "online"):
        log = copy / "logs" / "debug-internal.log"
        for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                status = json.loads(line)["status"]
                refused = status if isinstance(status, int) and status >= 400 else refused
    return refused


def copies(folder: Path, run: str, mode: Mode) -> list[Path]:
    """Return the folders that writing a run in a mode left."""
    start = "offline-run" if mode == "offline" else "run"
    return sorted((folder / "wandb").glob(f"{start}-*-{run}*"))


def waiting(folder: Path) -> list[Path]:
    """Return the folders of the offline runs that `wandb sync` has not uploaded."""
    kept = sorted((folder / "wandb").glob("offline-run-*"))
    return [run for run in kept if not any(run.glob("*.wandb.synced"))]


def key_source() -> str:
    """Return the place of W&B's key, as its client looks for it; empty if there is none.

    Nothing is asked of any server, and the key itself is not told.
    """
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc").expanduser()
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    try:
        login = netrc.netrc(file).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return ""
    return str(file) if login and login[2] else ""


def remove(superseded: Sequence[Path]) -> None:
    """Remove copies of a run."""
    for copy in superseded:
        shutil.rmtree(copy, ignore_errors=True)


def forget() -> None:
    """Stop wandb's own process: it still holds the run that could not be started."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):  # It exits where its process had crashed.
        wandb.teardown()


def _settings() -> Settings:
    """Return settings that collect nothing, print nothing and end in bounded time."""
    import wandb

    wanted = {
        "console": "off", "silent": True, "disable_git": True, "disable_code": True,
        "save_code": False, "x_disable_stats": True, "x_disable_meta": True,
        "x_disable_machine_info": True, "x_save_requirements": False,
        "init_timeout": CONNECT_SECONDS, "login_timeout": CONNECT_SECONDS,
        "finish_timeout": UPLOAD_SECONDS, "finish_timeout_raises": True,
        # What wandb asks before an upload is not under finish_timeout, and its patience is long.
        "x_graphql_timeout_seconds": CONNECT_SECONDS / 2, "x_graphql_retry_max": RETRIES,
        "x_graphql_retry_wait_max_seconds": CONNECT_SECONDS / 4,
        "x_file_stream_timeout_seconds": CONNECT_SECONDS, "x_file_stream_retry_max": RETRIES,
        "x_file_stream_retry_wait_max_seconds": CONNECT_SECONDS / 4,
        "x_file_transfer_retry_max": RETRIES,
        "x_file_transfer_retry_wait_max_seconds": CONNECT_SECONDS / 4,
    }  # fmt: skip
    known = wandb.Settings.model_fields  # Versions differ in the lesser ones.
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


@contextlib.contextmanager
def _unattended(**variables: str) -> Iterator[None]:
    """Give wandb no terminal to ask at: a sweep must not wait for a key at night."""
    stdin = sys.stdin
    with Path(os.devnull).open() as nothing, _environment({"WANDB_SILENT": "true", **variables}):
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
