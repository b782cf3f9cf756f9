"""Weights & Biases: entries are published as runs, and what W&B is seen to hold is remembered.

A run's id is a hash of sweep and trial, so that a trial published twice is the same run. W&B is
asked before runs are sent, and again afterwards: only what it shows counts. So an unchanged run is
not written again, and a publishing that was killed goes on. Nothing that goes wrong here ever fails
a sweep.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from raysweep.results import wandb_runs
from raysweep.results.entries import Entry
from raysweep.results.published import Memory
from raysweep.results.wandb_settings import Mode
from raysweep.store import Store
from raysweep.store.sweepfolder import DEFAULT_STORAGE, SweepFolder
from raysweep.sweep.spec import Track

# Runs that are sent before W&B is asked, in one request, which of them arrived.
BATCH = 100
# Seconds before each attempt at a run. W&B resets its limits of rate once a minute.
PAUSES = (0.0, 2.0, 10.0, 30.0, 60.0)
NAMED = 3
KEPT_AT_MOST = 3  # attempts to write a run offline
# The sizes up to which W&B documents that a project works well.
MOST_RUNS, MOST_KEYS = 10_000, 10_000
# Statuses that speak of one run, and those that speak of all; others may pass.
OF_ONE_RUN, OF_ALL_RUNS = frozenset({400, 409, 413, 422}), frozenset({401, 403, 404})
KEY_ERRORS = frozenset({"UsageError", "AuthenticationError"})
# W&B's client calls a key wrong, too, that it could not have verified.
NO_ANSWER = "Failed to execute"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers of runs, and what to tell the user.

    Attributes:
        total: how many runs there are to publish, as far as is known.
        held: how many of them W&B holds; offline, how many are written.
        note: says where the runs are; may be empty.
        warning: says what went wrong, and what helps; may be empty.
    """

    total: int = 0
    held: int = 0
    note: str = ""
    warning: str = ""

    @property
    def left(self) -> int:
        """The number of runs that are not published."""
        return self.total - self.held


class Publisher:
    """Publishes entries of one sweep. A context: at its end W&B's client stops.

    Attributes:
        stopped: why nothing more is published for now; empty while something is.
    """

    def __init__(self, folder: SweepFolder, track: Track) -> None:
        """Read what was published before; nothing is sent yet.

        Args:
            folder: of the sweep.
            track: project and entity, and the mode: online, or offline.
        """
        self._folder, self._track = folder, track
        self._online = track.wandb == "online"
        local = folder.wandb
        self._memory = Memory(folder, online=self._online)
        mode: Mode = "online" if self._online else "offline"
        self._client = wandb_runs.Client(track, track.group or folder.name, local, mode)
        self._expected = 0
        self._names: dict[str, str] = {}
        self._held: set[str] = set()
        self._refused: set[str] = set()
        self._keys: set[str] = set()
        self._room: int | None = None
        self._cause = ""
        self.stopped = ""

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(self, *ended: object) -> None:
        self._memory.close()
        self._client.__exit__(*ended)

    def settled(self, run: str) -> bool:
        """Return whether a run was published with some content, or refused."""
        return run in self._memory.marks or run in self._refused

    def publish(self, entries: Iterable[Entry]) -> Iterator[Published]:
        """Write a run for every entry that is new or has changed; yield the numbers so far.

        No exception of wandb leaves this. A run that is refused, or hangs, costs itself alone. When
        the server is away for minutes, or nothing is taken at all, `stopped` says why; the rest is
        only counted.
        """
        for batch in _batches(entries):
            self._names |= {entry.run: entry.name for entry in batch}
            for entry in batch:
                self._keys |= entry.summary.keys()
            known = [entry.run for entry in batch if self._stands(entry)]
            new = [entry for entry in batch if entry.run not in known]
            # A sweep's own run is told several times, and holds something else each time.
            self._held = (self._held - {entry.run for entry in new}) | set(known)
            if self._online:
                self._client.drop(known)
            if new and not self.stopped:
                try:
                    self._send(new) if self._online else self._keep(new)
                except Exception as error:  # noqa: BLE001  tracking never fails a sweep
                    self.stopped = self._cause = f"W&B failed ({_brief(error)})"
            yield Published(total=self._total, held=len(self._held))

    def _stands(self, entry: Entry) -> bool:
        return self._memory.holds(entry) and (self._online or self._client.keeps(entry.run))

    def begin(self, expected: int) -> None:
        """Begin, or begin again after `stopped`: so many runs are expected, as far as is known."""
        self._expected = expected
        self.stopped = self._cause = ""

    # Offline

    def _keep(self, new: Sequence[Entry]) -> None:
        """Write runs offline; again those of which wandb's own process has lost an answer."""
        left, errors = list(new), dict[str, Exception]()
        for _ in range(KEPT_AT_MOST):
            errors = {}
            for entry, error in self._client.write(left):
                if error is None:
                    self._remember([entry])
                else:
                    errors[entry.run] = error
            left = [entry for entry in left if entry.run in errors]
            if not left:
                return
            self._client.forget()
        for entry in left:
            self._blame(errors[entry.run], entry)
        if len(left) == len(new):
            self.stopped = self._cause

    # Online

    def _send(self, new: Sequence[Entry]) -> None:
        """Send runs that W&B does not hold; again those that a passing fault has kept away."""
        left, began = list(new), len(new)
        for pause in PAUSES:
            time.sleep(pause)
            left = self._attempt(left)
            if not left or self.stopped:
                break
        if len(left) == began:
            self.stopped = self.stopped or self._cause

    def _attempt(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries that are to be tried again."""
        try:
            left = self._confirmed(entries, 0)
            if not left or not self._fits(len(left)):
                return left
        except Exception as error:  # noqa: BLE001  tracking never fails a sweep
            self._blame(error, entries[0])
            self._client.forget()
            return list(entries)
        errors: dict[str, Exception] = {}
        for wave in _waves(left):
            written = self._client.write(wave)
            errors |= {entry.run: error for entry, error in written if error is not None}
        sent = [entry for entry in left if entry.run not in errors]
        try:
            lost = self._confirmed(sent, wandb_runs.ARRIVAL_SECONDS) if sent else []
        except Exception as error:  # noqa: BLE001  tracking never fails a sweep
            self._blame(error, sent[0])
            lost = []
        for entry in [entry for entry in left if entry.run in errors] + lost:
            self._blame(errors.get(entry.run), entry)
        again = [entry for entry in left if not self._done(entry)]
        self._client.drop(entry.run for entry in left if self._done(entry))
        if errors:
            self._client.forget()
        return again

    def _confirmed(self, entries: Sequence[Entry], patience: float) -> list[Entry]:
        """Ask which runs arrived and remember them; return the others."""
        held = self._client.held(entries, patience=patience)
        self._remember([entry for entry in entries if entry.run in held])
        return [entry for entry in entries if entry.run not in held]

    def _done(self, entry: Entry) -> bool:
        return entry.run in self._held or entry.run in self._refused

    def _fits(self, new: int) -> bool:
        """Return whether the project stays within the sizes that W&B documents."""
        if self._room is None:
            self._room = MOST_RUNS - self._client.count()
            new = max(new, self._expected - self._client.count(of_sweep=True))
        if new > self._room or len(self._keys) > MOST_KEYS:
            what = (
                f"{len(self._keys)} metrics, and {MOST_KEYS} are"
                if len(self._keys) > MOST_KEYS
                else f"{MOST_RUNS - self._room} runs, and with {new} more it would hold more than "
                f"the {MOST_RUNS} that are"
            )
            self.stopped = self._cause = (
                f"project {self._place()} holds {what} documented to work well: name another "
                f"track.project in the sweep file, or split the sweep"
            )
            return False
        self._room -= new if not self._expected else 0
        return True

    def _remember(self, entries: Sequence[Entry]) -> None:
        self._memory.add(entries)
        self._held |= {entry.run for entry in entries}

    def _blame(self, error: Exception | None, entry: Entry) -> None:
        """Take in why a run is not there; the first cause is the one that is told."""
        status = self._client.refusal(error, entry.run)
        no_key = type(error).__name__ in KEY_ERRORS and NO_ANSWER not in str(error)
        cause = "W&B took runs but does not hold them"
        if error is not None:
            away = "W&B is not reachable" if self._online else "W&B's client has failed"
            what = "W&B has no usable key" if no_key else away
            cause = f"{what} ({_brief(error)})"
        cause = cause if status is None else _remedy(status, self._track)
        self._cause = self._cause or cause
        if no_key or status in OF_ALL_RUNS:
            self.stopped = cause
        elif status in OF_ONE_RUN:
            self._refused.add(entry.run)

    # What is told

    def _place(self) -> str:
        named = "/".join(name for name in (self._track.entity, self._track.project) if name)
        return self._client.url or self._client.path or named

    @property
    def _total(self) -> int:
        return max(len(self._names), self._expected)

    def result(self) -> Published:
        """Return the numbers so far, and what to tell the user."""
        held, total, again = len(self._held), self._total, command(self._folder)
        where = self._place() if self._online else str(self._folder.wandb)
        note, warning = f"W&B: {held} of {total} runs are in {where}", ""
        if not self._online:
            note = offline_note(self._folder)
        missing = [name for run, name in self._names.items() if run not in self._held]
        if missing and self._cause:
            names = ", ".join(missing[:NAMED])
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            warning = (
                f"{self._cause}; {held} of {total} runs are in {where}, without {names}{more}; "
                f"publish what is missing with: {again}"
            )
        return Published(total=total, held=held, note="" if warning else note, warning=warning)


def command(folder: SweepFolder) -> str:
    """Return the command that publishes what is missing of a sweep."""
    words = ["raysweep", "sync", folder.name]
    if folder.store.uri != Store(DEFAULT_STORAGE).uri:
        words += ["--storage", folder.store.where()]
    return shlex.join(words)


def offline_note(folder: SweepFolder) -> str:
    """Return the line on the runs that lie offline; empty if none does."""
    waiting = len(wandb_runs.waiting(folder.wandb))
    send = f"W&B: {waiting} runs are offline; send them with: {command(folder)}"
    return send if waiting else ""


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _waves(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield entries whose artifacts others read before those others."""
    left = list(entries)
    while left:
        made = {artifact.name: entry.run for entry in left for artifact in entry.writes}
        wave = [
            entry
            for entry in left
            if all(made.get(name.partition(":")[0], entry.run) == entry.run for name in entry.reads)
        ]
        yield wave or left
        left = [entry for entry in left if wave and entry not in wave]


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
    if status == 429:
        return "W&B limits how much is sent (HTTP 429)"
    return f"W&B did not take what was sent (HTTP {status})"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
