"""Runs of Weights & Biases: write one, ask which arrived, read why one was refused.

The only user of wandb. Every function ends in bounded time and none asks a question. Runs are
written by several threads at once, through one process of wandb's own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import netrc
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pandas as pd

from raysweep.identity import Json
from raysweep.results import wandb_offline, wandb_settings
from raysweep.results.entries import Artifact, Entry
from raysweep.results.wandb_settings import EXIT_CODES, MARK, Mode, set_up, share_memory, unattended
from raysweep.sweep.spec import Track

if TYPE_CHECKING:
    import wandb
    from wandb.apis.public import Run, Runs

WRITERS = 8  # runs at once
# Runs until wandb's process is started anew: it keeps 75 KB of each run that it has sent.
MOST_WRITTEN = 1000
# W&B shows what it took a moment later; a run that is missing is asked for again until then.
ARRIVAL_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 0.5
STATUS = re.compile(r"\b(?:error|HTTP|status)\W{1,2}([45]\d\d)\b")


class Client:
    """The project of a sweep's runs, on W&B's server or in a folder of offline runs.

    A context: inside, wandb finds no terminal to ask at, and at the end its process stops. Files of
    runs online are gone then.

    Attributes:
        path: of the project, `entity/project`; empty until W&B has told the entity.
        url: of the project; empty until a run was written online.
    """

    def __init__(self, track: Track, group: str, folder: Path, mode: Mode) -> None:
        """Name the project; nothing is asked yet.

        Args:
            track: project and entity.
            group: of the runs whose entries name none.
            folder: where offline runs are kept.
            mode: whether runs are sent, or kept.
        """
        self._track, self._group, self._mode = track, group, mode
        self._kept = self._folder = folder
        self._inside = contextlib.ExitStack()
        self._offline: dict[str, list[Path]] = {}
        self._api: wandb.Api | None = None
        self._lock = threading.Lock()
        self._failed = self._written = 0
        self._is_set_up = False
        self.path = f"{track.entity}/{track.project}" if track.entity else ""
        self.url = ""

    def __enter__(self) -> Client:
        temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        scratch = self._inside.enter_context(temporary)
        if self._mode == "online":
            self._folder = Path(scratch)
        # Files of artifacts that are kept offline lie beside the runs.
        places = {"WANDB_DIR": str(self._folder), "WANDB_DATA_DIR": str(self._folder / "data")}
        self._inside.enter_context(unattended(WANDB_CACHE_DIR=scratch, **places))
        self._inside.callback(self.forget)
        for copy in sorted((self._kept / "wandb").glob("offline-run-*")):
            run = copy.name.split("-")[3]  # offline-run-TIME-ID, and -1 for a second of its time
            self._offline.setdefault(run, []).append(copy)
        return self

    def __exit__(self, *ended: object) -> None:
        self._inside.close()

    def write(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Exception | None]]:
        """Write runs, several at once; yield each with what went wrong, in their order.

        Online, an error of none does not say that anything arrived: W&B's client drops what is
        refused. After several errors in a row the rest is not tried.
        """
        # Of threads that import it at once, some would see half of it.
        importlib.import_module("wandb.proto.wandb_internal_pb2")
        self._failed = 0
        self._written += len(entries)
        if self._written > MOST_WRITTEN:
            self._written = len(entries)
            self.forget()
        with ThreadPoolExecutor(WRITERS) as pool:
            yield from zip(entries, pool.map(self._tried, entries), strict=True)

    def _tried(self, entry: Entry) -> Exception | None:
        if self._failed >= 2 * WRITERS:
            return ConnectionError("not tried after others had failed")
        try:
            if self._mode == "offline":
                self._keep(entry)
            else:
                self._write(entry)
        except Exception as error:  # noqa: BLE001  tracking never fails a sweep
            self._failed += 1
            return error
        self._failed = 0
        return None

    def _keep(self, entry: Entry) -> None:
        """Write an offline run; its earlier copies go: sending them, too, would mix them."""
        if wandb_offline.is_plain(entry):
            kept = wandb_offline.write(entry, self._track, self._group, self._folder)
        else:
            kept = self._write(entry)
        _remove(self._offline.get(entry.run, ()))
        self._offline[entry.run] = [kept]

    def _write(self, entry: Entry) -> Path:
        """Write a run by W&B's client; return the folder of its files."""
        import wandb

        self._set_up()
        run = wandb.init(
            id=entry.run,
            name=entry.name,
            notes=entry.notes or None,
            group=entry.group or self._group,
            job_type=entry.job,
            config=dict(entry.config),
            settings={"x_update_finish_state": False} if entry.state == "running" else None,
            tags=list(entry.tags),
            # Not resumed: what is said now takes the place of all that was said before.
            reinit="create_new",
        )
        folder, told = Path(run.dir).parent, False
        try:
            self._tell(run, entry)
            told = True
        finally:
            run.finish(exit_code=EXIT_CODES[entry.state])
            if not told and self._mode == "offline":
                _remove([folder])
        return folder

    def _set_up(self) -> None:
        """Give wandb the settings that all runs share, once for each of its processes."""
        with self._lock:
            if not self._is_set_up:
                share_memory()
                set_up(self._mode, self._track, self._folder)
                self._is_set_up = True

    def _tell(self, run: wandb.Run, entry: Entry) -> None:
        import wandb

        with self._lock:
            self.path = f"{run.entity}/{run.project}"
            self.url = (run.project_url or "") if self._mode == "online" else ""
        for step in entry.history:
            run.log(dict(step))
        tables = {name: wandb.Table(dataframe=table) for name, table in entry.tables.items()}
        run.log({**entry.summary, **tables, **(entry.media() if entry.media else {})})
        run.summary[MARK] = entry.mark
        for name in entry.reads if self._mode == "online" else ():
            with contextlib.suppress(wandb.Error, ValueError):  # It may have been deleted there.
                run.use_artifact(name)
        for artifact in entry.writes:
            run.log_artifact(_packed(artifact))

    # Questions

    def count(self, *, of_sweep: bool = False) -> int:
        """Return the number of runs that the project holds, all or those of the group; or raise."""
        try:
            return len(self._runs({"group": self._group} if of_sweep else {}, 1))
        except ValueError:  # There is no such project yet.
            return 0

    def held(self, entries: Sequence[Entry], *, patience: float = 0) -> set[str]:
        """Return the ids of the runs that W&B holds as they are, tables included, or raise.

        All are asked for in one request, and again while some are missing.

        Args:
            entries: what the runs should say.
            patience: for how many seconds a missing run is asked for again.
        """
        missing = {entry.run: entry for entry in entries}
        ends, pause = time.monotonic() + patience, FIRST_PAUSE_SECONDS
        while True:
            asked = {"name": {"$in": list(missing)}}
            with contextlib.suppress(ValueError), ThreadPoolExecutor(WRITERS) as pool:
                found = [run for run in self._runs(asked, len(missing)) if run.id in missing]
                whole = pool.map(_whole, found, [missing[run.id] for run in found])
                for run, is_whole in zip(found, whole, strict=True):
                    if is_whole:
                        del missing[run.id]
            if not missing or time.monotonic() + pause > ends:
                return {entry.run for entry in entries} - set(missing)
            time.sleep(pause)
            pause *= 2

    def _runs(self, filters: Mapping[str, Json], page: int) -> Runs:
        import wandb

        if self._api is None:
            share_memory()
            self._api = wandb.Api(timeout=wandb_settings.CONNECT_SECONDS)
            if not self.path:
                self.path = f"{self._api.default_entity}/{self._track.project}"
        self._api.flush()  # It answers the same question from memory.
        return self._api.runs(self.path, filters=dict(filters), per_page=page, lazy=False)

    def refusal(self, error: Exception | None, run: str) -> int | None:
        """Return the HTTP status that kept a run away: in the error's words, else in its log."""
        if error is not None and (named := STATUS.search(str(error))):
            return int(named[1])
        refused = None
        for log in (self._folder / "wandb").glob(f"run-*-{run}*/logs/debug-internal.log"):
            for line in log.read_text("utf-8", "replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    status = json.loads(line)["status"]
                    refused = status if isinstance(status, int) and status >= 400 else refused
        return refused

    def keeps(self, run: str) -> bool:
        """Return whether a copy of a run lies offline."""
        return run in self._offline

    def drop(self, runs: Iterable[str]) -> None:
        """Remove the offline copies of runs that arrived, and all that was written to send runs."""
        for run in runs:
            _remove(self._offline.pop(run, ()))
        _remove([self._folder / "wandb"] if self._mode == "online" else [])

    def forget(self) -> None:
        """Stop wandb's own process: it still holds the runs that could not be started."""
        if "wandb" not in sys.modules:
            return
        import wandb

        self._api, self._is_set_up = None, False
        with contextlib.suppress(Exception, SystemExit):  # It exits where its process had crashed.
            wandb.teardown()


def _whole(run: Run, entry: Entry) -> bool:
    if entry.state not in ("running", run.state) or run.summary_metrics.get(MARK) != entry.mark:
        return False
    if not entry.tables and not entry.writes:
        return True
    kept = [one for one in run.logged_artifacts() if one.state == "COMMITTED"]
    names, digests = {one.name.partition(":")[0] for one in kept}, {one.digest for one in kept}
    return names.issuperset(one.name for one in entry.writes) and all(
        _table_digest(*table) in digests for table in entry.tables.items()
    )


def _table_digest(name: str, table: pd.DataFrame) -> str:
    """Return the digest of the artifact that logging a table makes."""
    import wandb

    artifact = wandb.Artifact(name, type="table")
    artifact.add(wandb.Table(dataframe=table), name)
    return str(artifact.digest)


def _packed(artifact: Artifact) -> wandb.Artifact:
    import wandb

    packed = wandb.Artifact(artifact.name, artifact.type, metadata=dict(artifact.metadata))
    for name, data in artifact.files.items():
        with packed.new_file(name, mode="wb") as file:
            file.write(data)
    return packed


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


def _remove(superseded: Iterable[Path]) -> None:
    for copy in superseded:
        shutil.rmtree(copy, ignore_errors=True)
