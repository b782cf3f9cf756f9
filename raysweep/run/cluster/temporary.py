"""A folder for the files of a Ray that is started here, since its sockets need short paths."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

# A socket's path has at most 107 bytes on Linux and 103 on macOS, and that of Ray's longest is
# /session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store below its folder.
_SOCKET = 103
_BELOW = len("/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store.12345")


def short_folder() -> str | None:
    """Return a short folder of this user for Ray's files; None where Ray's own is short enough.

    Ray's own is `ray` in RAY_TMPDIR, or in the folder for temporary files, which TMPDIR names.
    """
    own = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    if len(os.fsencode(own)) + _BELOW <= _SOCKET:
        return None
    folder = Path("/tmp") / f"raysweep-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None  # Ray then says what is wrong with its own.
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not mine or found.st_mode & 0o022:
        return None
    return str(folder / "ray")  # Ray makes it, and opens it to everybody
