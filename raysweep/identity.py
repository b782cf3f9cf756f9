"""Identity: canonical JSON, stage keys, and digests of source files.

A key is a hash of everything that a result depends on. A value with no canonical JSON form is an
error, never a guess: `str(object)` would give one configuration two keys.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from raysweep import paths
from raysweep.errors import PlanError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
SCHEMA = 1
_SHA = re.compile(r"[0-9a-f]{64}")


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
    """Return the folder for what can be computed again: RAYSWEEP_CACHE, else the user's cache."""
    return paths.setting("RAYSWEEP_CACHE") or Path.home() / ".cache" / "raysweep"


def files_digest(files: list[Path]) -> str:
    """Return one digest of the bytes of files, in order.

    Digests are remembered by path, size and modification time, so that only changed files are
    read again.
    """
    memory_file = cache_folder() / "digests.json"
    memory = _remembered(memory_file)
    known = len(memory)
    parts = []
    for file in files:
        facts = file.stat()
        entry = f"{file.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
        if entry not in memory:
            with file.open("rb") as stream:
                memory[entry] = hashlib.file_digest(stream, "sha256").hexdigest()
        parts.append(memory[entry])
    if len(memory) != known:
        _remember(memory_file, memory)
    return digest("\n".join(parts))


def _remembered(file: Path) -> dict[str, str]:
    """Return the digests in a memory file; what is no digest is left out."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if _SHA.fullmatch(str(value))}


def _remember(file: Path, memory: dict[str, str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(memory))
        temporary.replace(file)
    except OSError:
        pass  # Only a cache: the next plan reads the files again.


def finite_or_none(value: float) -> float | None:
    """Return the value, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None
