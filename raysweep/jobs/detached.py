"""A driver that goes on without the terminal that began it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from raysweep.errors import HostError
from raysweep.identity import cache_folder, digest
from raysweep.store.heartbeat import heartbeats
from raysweep.store.sweepfolder import SweepFolder

BEGIN_SECONDS = 60.0
LOOK_SECONDS = 0.2
LOG = "driver.log"


@dataclass(frozen=True, kw_only=True)
class DetachedDriver:
    """A driver that was left alone.

    Attributes:
        pid: of its process.
        log: what it prints.
        run: id of its run; empty while it plans.
        status: its exit code if it has ended already, else none.
    """

    pid: int
    log: Path
    run: str
    status: int | None


def detached(words: Sequence[str], folder: SweepFolder) -> DetachedDriver:
    """Return the driver that runs a command of raysweep without this terminal, once it has begun.

    Args:
        words: the command and its options, as they are typed.
        folder: of the sweep, or of its tuning.

    Raises:
        HostError: if it ends with an error before its run began; the message holds what it said.
    """
    log = folder.store.local(folder.path(LOG)) or (
        cache_folder() / "drivers" / f"{digest(f'{folder.store.uri}/{folder.name}')}.log"
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    before = set(folder.store.list(folder.ledger))
    with log.open("ab") as out:
        begins = out.tell()
        driver = subprocess.Popen(
            [sys.executable, "-m", "raysweep", *words], stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    limit = time.monotonic() + BEGIN_SECONDS
    run = ""
    while not run and driver.poll() is None and time.monotonic() < limit:
        time.sleep(LOOK_SECONDS)
        run = _run_of(driver.pid, folder, before)
    status = driver.poll()
    run = run or _run_of(driver.pid, folder, before)
    if status and not run:
        said = log.read_bytes()[begins:].decode(errors="replace").strip()
        raise HostError(f"the driver ended with {status} before its run began: {said}")
    return DetachedDriver(pid=driver.pid, log=log, run=run, status=status)


def _run_of(pid: int, folder: SweepFolder, before: Collection[str]) -> str:
    """Return the id of the run of a driver of this host: by its heartbeat, or its new ledger."""
    here = socket.gethostname()
    for run, beat in heartbeats(folder.store).items():
        if (beat.host, beat.pid, beat.folder) == (here, pid, folder.name):
            return run
    fresh = set(folder.store.list(folder.ledger)) - set(before)
    return Path(min(fresh)).stem if fresh else ""
