"""Commands of raysweep that run beside a driver, and take only what stages leave of the machine.

A nice value alone does not do that. Ray gives its workers the nice value 15; and Linux shares a
machine between sessions first, whatever the nice values inside them, so a process in a session of
its own weighs as much as all workers together.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LAST = 19  # nice value of a process, where nothing says that it yields to all others
SLOW, USUAL = 15, 0  # nice values of a session
AGAIN_SECONDS = 0.15  # Linux takes one nice value of a session in 0.1 s


def started(
    words: Sequence[str], storage: str, *, answers: bool = False, waits: bool = True
) -> subprocess.Popen[bytes]:
    """Start a command of raysweep in a session of its own.

    Args:
        words: the command and its options, as they are typed.
        storage: where it finds the sweep. It may be named with a password, which stands on no
            command line.
        answers: whether its standard input and output are pipes; without, it has none.
        waits: whether it leaves the processors to all others, until it is hurried.

    Raises:
        OSError: if there is no room for one more process.
    """
    path = os.pathsep.join(filter(None, sys.path))
    place = subprocess.PIPE if answers else subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-m", "raysweep", *words],
        env={**os.environ, "RAYSWEEP_STORAGE": storage, "PYTHONPATH": path},
        stdin=place, stdout=place, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    if waits:
        with contextlib.suppress(OSError):
            if hasattr(os, "SCHED_IDLE"):
                os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
            else:
                os.setpriority(os.PRIO_PROCESS, process.pid, LAST)
        _weigh(process, SLOW)
    return process


def hurry(process: subprocess.Popen[bytes]) -> None:
    """Let a process and all that it has started compete with other sessions, where Linux allows it.

    Among the processes of its own session, and where a system knows no sessions, it waits on: the
    stages have ended there.
    """
    _weigh(process, USUAL)


def _weigh(process: subprocess.Popen[bytes], nice: int) -> None:
    """Give the whole session of a process a nice value among sessions; best effort."""
    place = Path(f"/proc/{process.pid}/autogroup")
    for pause in (0.0, AGAIN_SECONDS, AGAIN_SECONDS):
        time.sleep(pause)
        try:
            place.write_text(str(nice), encoding="ascii")
        except BlockingIOError:  # Somebody else has just done so.
            continue
        except OSError:
            return
        return
