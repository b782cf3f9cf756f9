"""Launches of a sweep that is disturbed, and waits that end; a tool for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

WAIT = 180.0  # seconds within which something must go on


def _hearing() -> None:
    """Hear signals, although whoever has started us may ignore them, as a shell does for `&`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Launch:
    """One `raysweep launch` and all that it prints."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path, log: Path):
        self.log = log
        self.allowed = {0}
        self.because: list[str] = []
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment},
                cwd=folder, start_new_session=True, preexec_fn=_hearing,
            )  # fmt: skip

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def allow(self, *codes: int) -> None:
        """Take in with which other exit codes this launch may end."""
        self.allowed.update(codes)

    def faults(self) -> list[str]:
        """Return what a user should not have seen of a launch that has ended."""
        code, said = self.process.returncode, self.said
        found = [f"{word!r} is printed" for word in ("Traceback", "ray::") if word in said]
        if code not in self.allowed:
            last = said.strip().rpartition("\n")[2][:300]
            found.append(f"exit code {code}, expected one of {sorted(self.allowed)}: {last}")
        met = ", ".join(self.because) or "nothing"
        return [f"{self.log.name} (met {met}): {fault}" for fault in found]


class Stuck(AssertionError):
    """Nothing goes on."""


def wait(holds: Callable[[], bool], what: str, seconds: float = WAIT) -> None:
    """Wait for what must come.

    Raises:
        Stuck: if it does not come in time.
    """
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise Stuck(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.05)
