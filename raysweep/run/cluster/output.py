"""The standard output and errors of a stage, kept in a file of its host.

The file outlives a process that is killed. It begins with the key of the stage that writes it, and
its end is kept alone where a stage writes much.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT_BYTES = 64 << 10
MOST_BYTES = 1 << 20
LEFT_SECONDS = 600.0  # a driver of this host has read it by then
RUNS = "raysweep-output"
_C = ctypes.CDLL(None)  # the C library of this process, whose buffers are not Python's
_STREAMS = (1, 2)  # of the process: what C code writes is kept too
HEADING = "--- standard output and errors of the stage (the last of it) ---"


def file_of(ticket: str) -> Path:
    """Return the file of the output of a batch on this host, from the batch's ticket."""
    return Path(tempfile.gettempdir()) / f"{RUNS}-{ticket.replace('/', '-')}.out"


class Output:
    """Takes the output of one stage after another."""

    def __init__(self, place: Path) -> None:
        """Begin a file; where none can be written, nothing is kept."""
        self._place = place
        self._key = b""
        self._file = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
        with contextlib.suppress(OSError):
            self._file = os.open(place, flags, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)  # as long as the process lives

    @contextmanager
    def taking(self, key: str) -> Iterator[None]:
        """Take what this process writes inside the block, as the output of a stage."""
        self._key = key.encode() + b"\n"
        try:
            os.ftruncate(self._file, 0)
            os.write(self._file, self._key)
        except OSError:  # no file, or no room for it
            yield
            return
        _flush()
        before = [os.dup(stream) for stream in _STREAMS]
        for stream in _STREAMS:
            os.dup2(self._file, stream)
        try:
            yield
        finally:
            _flush()
            for stream, copy in zip(_STREAMS, before, strict=True):
                os.dup2(copy, stream)
                os.close(copy)

    def last(self) -> str:
        """Return the end of the current stage's output."""
        with contextlib.suppress(OSError):
            size = os.fstat(self._file).st_size - len(self._key)
            kept = min(max(size, 0), KEPT_BYTES)
            raw = os.pread(self._file, kept, len(self._key) + max(size, 0) - kept)
            return raw.decode(errors="replace")
        return ""

    @property
    def size(self) -> int:
        """The number of bytes that the file holds."""
        with contextlib.suppress(OSError):
            return os.fstat(self._file).st_size
        return 0

    def bound(self) -> None:
        """Keep the end alone where the file has grown large."""
        if self.size > MOST_BYTES:
            end = self.last().encode()
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
                os.write(self._file, self._key + end)

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            os.close(self._file)
            self._place.unlink()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk; a stream that was closed
            stream.flush()
    _C.fflush(None)


def left_by(place: Path) -> tuple[str, str] | None:
    """Return the stage at work and the end of its output, as a dead process left them; once."""
    try:
        raw = place.read_bytes()
        place.unlink()
    except OSError:
        return None
    key, _, text = raw.partition(b"\n")
    return key.decode(errors="replace"), text[-KEPT_BYTES:].decode(errors="replace")


def remove_left() -> None:
    """Remove what processes of this host left that have died, and no driver could read."""
    for place in Path(tempfile.gettempdir()).glob(f"{RUNS}-*.out"):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile, or in use
            file = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(file).st_mtime > LEFT_SECONDS:
                    place.unlink()
            finally:
                os.close(file)


def with_output(trace: str, output: str) -> str:
    """Return the text of a failure's log: the trace, then the output, if there was any."""
    return f"{trace.rstrip()}\n\n{HEADING}\n{output}" if output.strip() else trace
