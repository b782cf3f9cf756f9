"""Weights & Biases: a run per finished trial and one per tuning.

A run's id is a hash of sweep and trial, so that a trial published twice is the same run. What W&B
is seen to hold is remembered, so that an unchanged row is not written again and an interrupted
publishing goes on; what did not arrive lies offline and is sent again by the next launch. Nothing
that goes wrong here ever fails a sweep.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from raysweep.results import entries, wandb_runs
from raysweep.results.entries import Entry
from raysweep.results.tuned import Tuned
from raysweep.results.wandb_runs import Mode, Project
from raysweep.sweep.spec import Track

MEMORY = "published.jsonl"
# Runs that are sent before W&B is asked, in one request, which of them arrived.
BATCH = 20
# What a run online may take on average; a server slower than this gets no more of them.
RUN_SECONDS = 3.0
NAMED = 3
# Statuses that speak of one run; any other ends the attempt for all.
OF_ONE_RUN = frozenset({400, 409, 413, 422})
KEY_ERRORS = frozenset({"UsageError", "AuthenticationError"})


@dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers of runs that were written and that stood already, and what to tell the user.

    `note` says where the runs are; `warning` says what went wrong. Either may be empty.
    """

    count: int = 0
    skipped: int = 0
    folder: Path = Path()
    warning: str = ""
    note: str = ""


def publish(rows: pd.DataFrame, sweep: str, track: Track, folder: Path) -> Published:
    """Write a run for every finished trial that is new or has changed.

    Online, W&B is asked what arrived; only that is remembered. Without a key or a network, and
    where W&B refuses, runs are kept offline, and the warning names them and says how to upload
    them; a later call that reaches W&B writes them there itself.

    Args:
        rows: trials; those whose status is not `ok` are left out.
        sweep: its name, the runs' group unless `track.group` is given.
        track: mode, project, entity.
        folder: where offline runs and the memory of what was published are kept.

    Returns:
        Counts and a warning. No exception of wandb or of the file system leaves this function.
    """
    if rows.empty:
        return Published(folder=folder)
    finished = rows[rows["status"] == "ok"] if "status" in rows else rows
    records = (
        {str(column): cell for column, cell in row.items()} for row in finished.to_dict("records")
    )
    runs = (entries.trial(row, sweep, track) for row in records)
    return _published(runs, sweep, track, folder)


def publish_tuning(tuned: Tuned, sweep: str, track: Track, folder: Path) -> Published:
    """Write one run for a tuning: a table of what was tuned, and one of every candidate.

    Args:
        tuned: what the tuning left.
        sweep: the name of the sweep that was tuned.
        track: mode, project, entity.
        folder: as `publish` takes it.
    """
    runs = (entries.tuning(one, sweep, track) for one in (tuned,))
    return _published(runs, sweep, track, folder)


def _published(runs: Iterable[Entry], sweep: str, track: Track, folder: Path) -> Published:
    if track.wandb == "disabled":
        return Published(folder=folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        publisher = _Publisher(track, track.group or sweep, folder, _known(folder / MEMORY))
        return publisher.publish(list(runs))
    except Exception as error:  # noqa: BLE001  tracking never fails a sweep
        return Published(folder=folder, warning=_trouble(error))


@dataclass
class _Publisher:
    """One publishing: what is remembered, what was counted, and the first thing that went wrong."""

    track: Track
    group: str
    folder: Path
    known: dict[str, set[tuple[str, str]]]
    project: Project | None = None
    count: int = 0
    skipped: int = 0
    cause: str = ""

    def publish(self, runs: Sequence[Entry]) -> Published:
        if self.track.wandb == "offline":
            return self._result(self._keep(runs))
        # What only lies offline is not yet published online.
        new = [entry for entry in runs if not self._stands(entry, "online")]
        self.skipped = len(runs) - len(new)
        ends = time.monotonic() + wandb_runs.UPLOAD_SECONDS + RUN_SECONDS * len(new)
        for first in range(0, len(new), BATCH):
            sent, goes_on = self._send(new[first : first + BATCH], ends)
            if not self._confirm(sent) or not goes_on:
                break
        missing = [entry for entry in new if not self._stands(entry, "online")]
        failed = self._keep(missing)
        if failed:
            return self._result(f"{self.cause}; {failed}")
        return self._result(_missed(missing, self.cause, self.folder))

    def _stands(self, entry: Entry, mode: Mode) -> bool:
        return (entry.mark, mode) in self.known.get(entry.run, ())

    def _send(self, batch: Sequence[Entry], ends: float) -> tuple[list[Entry], bool]:
        """Return the numbers of runs that were sent, and whether there is sense in sending more."""
        sent: list[Entry] = []
        for entry in batch:
            if time.monotonic() > ends:
                self.cause = self.cause or "W&B is too slow"
                return sent, False
            try:
                self.project = wandb_runs.write(
                    entry, self.group, self.track, self.folder, "online"
                )
            except Exception as error:  # noqa: BLE001  tracking never fails a sweep
                no_key = type(error).__name__ in KEY_ERRORS
                what = "W&B has no usable key" if no_key else "W&B is not reachable"
                status = self._blame(error, entry, what)
                wandb_runs.forget()
                if status not in OF_ONE_RUN:
                    return sent, False
            else:
                sent.append(entry)
        return sent, True

    def _confirm(self, sent: Sequence[Entry]) -> bool:
        """Ask which runs arrived and remember them; return whether any did."""
        if not sent or self.project is None:
            return False
        try:
            arrived = wandb_runs.arrived_runs(self.project.path, sent)
        except Exception as error:  # noqa: BLE001  tracking never fails a sweep
            self._blame(error, sent[0], "W&B did not say which runs arrived")
            wandb_runs.forget()
            return False
        for entry in sent:
            if entry.run in arrived:
                self._remember(entry, "online")
                wandb_runs.remove(wandb_runs.copies(self.folder, entry.run, "offline"))
            else:
                self._blame(None, entry, "W&B took runs but does not hold them")
        return bool(arrived)

    def _blame(self, error: Exception | None, entry: Entry, what: str) -> int | None:
        """Return the HTTP status that kept a run away; the first cause is the one that is told."""
        status = wandb_runs.refusal(error, self.folder, entry.run)
        if not self.cause:
            text = f"{what} ({_brief(error)})" if error else what
            self.cause = text if status is None else _remedy(status, self.track)
        return status

    def _keep(self, runs: Sequence[Entry]) -> str:
        """Write runs offline that do not lie there yet; return what went wrong."""
        for entry in runs:
            if self._stands(entry, "offline"):
                self.skipped += 1
                continue
            try:
                wandb_runs.write(entry, self.group, self.track, self.folder, "offline")
            except Exception as error:  # noqa: BLE001  tracking never fails a sweep
                return _trouble(error)
            self._remember(entry, "offline")
        return ""

    def _remember(self, entry: Entry, mode: Mode) -> None:
        _append(self.folder / MEMORY, entry, mode)
        self.known.setdefault(entry.run, set()).add((entry.mark, mode))
        self.count += 1

    def _result(self, warning: str) -> Published:
        return Published(
            count=self.count, skipped=self.skipped, folder=self.folder, warning=warning,
            note="" if warning else self._note(),
        )  # fmt: skip

    def _note(self) -> str:
        """Return the line on the place of the runs: a project, or this machine until uploaded."""
        if self.track.wandb == "online":
            url = self.project.url if self.project else ""
            named = "/".join(name for name in (self.track.entity, self.track.project) if name)
            place = url or f"project {named}"
            return f"W&B: {self.count} runs sent, {self.skipped} stood there already: {place}"
        waiting = wandb_runs.waiting(self.folder)
        if not waiting:
            return ""
        return f"W&B: {len(waiting)} runs are offline; upload them with: {_sync(self.folder)}"


def _remedy(status: int, track: Track) -> str:
    """Return in plain words what an HTTP status of W&B means and what helps."""
    project = "/".join(name for name in (track.entity, track.project) if name)
    if status == 401:
        return (
            "W&B refused the key (HTTP 401): log in with `wandb login --relogin`, or correct "
            "WANDB_API_KEY"
        )
    if status == 403:
        return (
            f"W&B does not let this key write to {project} (HTTP 403): ask for the permission, or "
            f"name another track.entity or track.project"
        )
    if status == 404:
        return (
            f"W&B does not know {project} (HTTP 404): correct track.entity or track.project, or "
            f"create the project"
        )
    return f"W&B did not take what was sent (HTTP {status})"


def _missed(missing: Sequence[Entry], cause: str, folder: Path) -> str:
    """Return the warning that names what did not arrive, or nothing."""
    if not missing:
        return ""
    names = ", ".join(entry.name for entry in missing[:NAMED])
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return (
        f"{cause}; runs are kept offline: {names}{more}; the next launch sends them, or upload "
        f"them with: {_sync(folder)}"
    )


def _sync(folder: Path) -> str:
    return f"wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _trouble(error: Exception) -> str:
    return (
        f"W&B failed ({_brief(error)}); the records are whole, and what "
        f"was not published is published by the next launch"
    )


def _known(file: Path) -> dict[str, set[tuple[str, str]]]:
    """Return run id → (mark, mode) of its last writing, offline and online; skip torn lines."""
    last: dict[tuple[str, str], str] = {}
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            last[entry["run"], entry["mode"]] = entry["mark"]
            if entry["mode"] == "online":
                last.pop((entry["run"], "offline"), None)  # Its offline copies were removed.
    known: dict[str, set[tuple[str, str]]] = {}
    for (run, mode), mark in last.items():
        known.setdefault(run, set()).add((mark, mode))
    return known


def _append(file: Path, entry: Entry, mode: Mode) -> None:
    torn = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a") as memory:
        line = json.dumps({"run": entry.run, "mode": mode, "mark": entry.mark})
        memory.write(("\n" if torn else "") + line + "\n")
