"""Identity: canonical JSON, stage keys, and digests of source files.

A key is a hash of everything that a result depends on. A value with no canonical JSON form is an
error, never a guess: `str(object)` would give one configuration two keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from raysweep import paths
from raysweep.errors import PlanError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Stamp: TypeAlias = tuple[int, ...]
SCHEMA = 1
RECENT_NS = 2 * 10**9  # the coarsest clock of a common file system ticks every two seconds
KEPT_BYTES = 1 << 22  # of a memory file that is kept in memory; parsed, it takes some times as much
_SHA = re.compile(r"[0-9a-f]{64}")
_READ: dict[Path, tuple[Stamp, dict[str, tuple[Stamp, str]]]] = {}  # memory files of this process


def canonical(value: Any) -> str:
    """Return the one JSON text of a value made of dicts, lists, strings, numbers, bools and None.

    Raises:
        PlanError: for anything else, for NaN and infinities, and for keys that are no strings.
    """

    def refuse(other: Any) -> Any:
        raise PlanError(
            f"{type(other).__name__} value {other!r} has no canonical form; "
            f"use strings, numbers, booleans, lists or mappings"
        )

    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=refuse
        )
    except (ValueError, TypeError) as error:
        raise PlanError(f"{value!r} has no canonical form: {error}") from None


def digest(data: bytes | str) -> str:
    """Return 32 hexadecimal digits (128 bits of BLAKE2b) of some bytes."""
    raw = data.encode() if isinstance(data, str) else data
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def stage_key(kind: str, version: int, params: Any, inputs: Any) -> str:
    """Return `kind-<32 digits>`: the key of a stage."""
    return f"{kind}-{digest(canonical([SCHEMA, kind, version, params, inputs]))}"


def kind_of(key: str) -> str:
    """Return the stage kind of a key."""
    return key.partition("-")[0]


def cache_folder() -> Path:
    """Return the cache folder: RAYSWEEP_CACHE, else the user's cache."""
    return paths.setting("RAYSWEEP_CACHE") or Path.home() / ".cache" / "raysweep"


def files_digest(files: list[Path]) -> str:
    """Return one digest of the bytes of files, in order.

    Digests are remembered by path and stamp, so that only changed files are read again. A file that
    has just changed is read each time: a second change within the same tick of the clock would
    leave its stamp as it is.

    Raises:
        PlanError: if a file cannot be read.
    """
    memory_file = cache_folder() / "digests.json"
    memory = _remembered(memory_file)
    learnt: dict[str, tuple[Stamp, str]] = {}
    parts = []
    for file in files:
        try:
            before, path = stamp(file), str(file.resolve())
            known = memory.get(path)
            if known is None or known[0] != before:
                with file.open("rb") as stream:
                    known = before, hashlib.file_digest(stream, "sha256").hexdigest()
                if time.time_ns() - before[-1] > RECENT_NS and stamp(file) == before:
                    learnt[path] = known
        except OSError as error:
            raise PlanError(f"{file}: cannot be read ({error.strerror})") from None
        parts.append(known[1])
    if learnt:
        _remember(memory_file, memory | learnt)
    return digest("\n".join(parts))


def stamp(file: Path) -> Stamp:
    """Return the facts of a file that change when it is written: size, times, inode and device.

    The last is the time of the last change of content or facts, which no program can set.
    """
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_dev, facts.st_ctime_ns


def _remembered(file: Path) -> dict[str, tuple[Stamp, str]]:
    """Return stamp and digest by path of a memory file; other values are left out.

    It is parsed again where it has changed, or is large.
    """
    try:
        at = stamp(file)
        if file in _READ and _READ[file][0] == at:
            return _READ[file][1]
        memory = json.loads(file.read_text("utf-8"))
        entries = memory.items()
    except (OSError, ValueError, RecursionError, AttributeError):
        return {}
    found = {
        path: (tuple(entry[0]), entry[1]) for path, entry in entries
        if isinstance(entry, list) and len(entry) == 2
        and isinstance(entry[0], list) and isinstance(entry[1], str) and _SHA.fullmatch(entry[1])
    }  # fmt: skip
    if at[0] <= KEPT_BYTES and time.time_ns() - at[-1] > RECENT_NS:
        _READ[file] = at, found
    return found


def _remember(file: Path, memory: dict[str, tuple[Stamp, str]]) -> None:
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(memory), "utf-8")
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):  # Only a cache: the next plan reads the files again.
            temporary.unlink()


def finite_or_none(value: float) -> float | None:
    """Return the value, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None
