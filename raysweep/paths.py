"""Paths that a user writes: resolved once, in the driver, since workers stand in other folders.

A path in a sweep file starts at the file's folder; on the command line, in an environment variable
or in a Python session, at the working directory. `~` and `$NAME` are written out everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Final, get_args

from pydantic import AfterValidator

# First bytes of what is left in place of a file that was to be downloaded.
_INSTEAD = {
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file itself: git lfs pull",
    b"<": "is a web page; download the file itself",
}
_START: ContextVar[Path | None] = ContextVar("start", default=None)


@contextmanager
def starting_at(folder: Path) -> Iterator[None]:
    """Let relative paths start at a folder; without this they start at the working directory."""
    before = _START.set(Path(_from_root(str(folder), Path())))
    try:
        yield
    finally:
        _START.reset(before)


def resolved(path: str) -> str:
    """Return a path from the root, without `~`, `$NAME`, `.` and `..`; links stay as they are.

    A path that is resolved already stays as it is.

    Raises:
        ValueError: if the path is empty.
    """
    if not path:
        raise ValueError("must be a path, got none")
    return _from_root(path, _START.get() or Path())


def setting(variable: str) -> Path | None:
    """Return the path that an environment variable holds, or None if it is not set or empty."""
    given = os.environ.get(variable)
    return Path(_from_root(given, Path())) if given else None


def placeholder(head: bytes) -> str:
    """Return the kind of what lies in place of a file, and the remedy; "" if nothing tells.

    Args:
        head: the first bytes of the file.
    """
    if not head:
        return "is empty: its download was cut off; copy it again"
    start = head.lstrip()
    return next((fault for sign, fault in _INSTEAD.items() if start.startswith(sign)), "")


def _from_root(path: str, start: Path) -> str:
    written_out = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111
    return os.path.abspath(start / written_out)  # noqa: PTH100


_MARK: Final = AfterValidator(resolved)
DataPath = Annotated[str, _MARK]
"""A method's field that holds a path: resolved when the method is made, and never in a key."""


def holds_path(annotation: Any, metadata: Any = ()) -> bool:
    """Return whether a field is a `DataPath`, or may hold one: `DataPath | None`, tuples of them.

    Args:
        annotation: the field's type.
        metadata: the annotations of the field that pydantic keeps apart from its type.
    """
    if _MARK in (*metadata, *getattr(annotation, "__metadata__", ())):
        return True
    return any(holds_path(part) for part in get_args(annotation))
