"""Settings of the W&B client: nobody is asked, nothing is collected, every wait has its end."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raysweep.sweep.spec import Track

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline"]
CONNECT_SECONDS = 20
UPLOAD_SECONDS = 60.0
RETRIES = 3
# A run's summary holds the digest of what the run says: this very content arrived, no earlier one.
MARK = "raysweep_mark"
EXIT_CODES = {"finished": 0, "failed": 1, "running": 0}
# What they hold is told with the run itself: three requests a run are saved.
NOT_SENT = ("config.yaml", "wandb-summary.json", "wandb-metadata.json", "output.log")
_ADDING = threading.Lock()


def set_up(mode: Mode, track: Track, folder: Path) -> None:
    """Give wandb the settings of all runs: nothing is collected or printed, and all ends in time.

    Given with each run, they would take a fifth of the time: wandb checks all its settings anew for
    each that it is given.

    Args:
        mode: whether runs are sent, or kept.
        track: their project and entity.
        folder: where their files are.
    """
    import wandb

    wanted = {
        "console": "off", "silent": True, "disable_git": True, "disable_code": True,
        "save_code": False, "x_disable_stats": True, "x_disable_meta": True,
        "x_disable_machine_info": True, "x_save_requirements": False, "x_disable_viewer": True,
        "ignore_globs": NOT_SENT, "symlink": mode == "offline",
        # wandb remembers the server that a process named first.
        "base_url": os.environ.get("WANDB_BASE_URL") or None,
        "mode": mode, "project": track.project, "entity": track.entity, "root_dir": str(folder),
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
    given = {name: value for name, value in wanted.items() if name in known and value is not None}
    wandb.setup(wandb.Settings(**given))
    # It tells the logs of all runs that are open of every step of each.
    logging.getLogger("wandb").setLevel(logging.WARNING)


def share_memory() -> None:
    """Let several threads make and read artifacts.

    wandb remembers the latest ones, and makes room for one more in steps: a thread that adds one
    between those of another loses a key, and the run with it. The lock is held for these steps
    alone; to hold it while an artifact is logged would make each thread wait for the server's
    answers to all others.
    """
    try:
        from wandb.sdk.artifacts import artifact_instance_cache as memories
        from wandb.sdk.lib.capped_dict import CappedDict
    except ImportError:  # A version that remembers in another way.
        return

    class Shared(CappedDict):  # type: ignore[misc]
        def __setitem__(self, key: str, value: wandb.Artifact) -> None:
            with _ADDING:
                super().__setitem__(key, value)

    with _ADDING:
        for memory in vars(memories).values():
            if type(memory) is CappedDict:
                memory.__class__ = Shared


@contextlib.contextmanager
def unattended(**variables: str) -> Iterator[None]:
    """Give wandb no terminal to ask at: a sweep must not wait for a key at night.

    It tells nobody else of its own errors, either: that takes three requests a run.
    """
    stdin, quiet = sys.stdin, {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    with Path(os.devnull).open(encoding="utf-8") as nothing, _environment({**quiet, **variables}):
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
