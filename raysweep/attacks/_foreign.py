"""The folder that `raysweep import` writes, and the names that other projects give attacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np

from raysweep.errors import FilesError, PlanError
from raysweep.methods.context import Arrays

FILES = ("manifest.json", "arrays.npz", "victim.npz")
# Our name → the name there, of attacks that another project calls otherwise.
BACKDOORBENCH = {
    "badnets": "badnet", "blend": "blended", "dynamic": "inputaware", "issba": "ssba",
    "label_consistent": "lc", "trojan": "trojannn",
}  # fmt: skip
TOOLBOX = {"badnets": "badnet", "issba": "ISSBA", "sig": "SIG", "tact": "TaCT", "wanet": "WaNet"}
OURS = {theirs: ours for names in (BACKDOORBENCH, TOOLBOX) for ours, theirs in names.items()}


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return the notes of an import.

    Raises:
        PlanError: if the folder is none that `raysweep import` wrote, or lacks a file.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        fault = _fault(manifest)
    except (OSError, ValueError, RecursionError) as error:
        fault = str(error)
    if fault:
        raise PlanError(
            f"path must be a folder that `raysweep import` wrote, got {str(folder)!r} ({fault})"
        )
    wanted = FILES if manifest["victim"] else FILES[:2]
    lacking = [name for name in wanted if not (folder / name).is_file()]
    if lacking:
        raise PlanError(
            f"{str(folder)!r} lacks {', '.join(lacking)}; copy the whole folder, or import it again"
        )
    return manifest  # type: ignore[no-any-return]


def _fault(manifest: Any) -> str:
    """Return the fault of a manifest; "" if it has none."""
    if not isinstance(manifest, dict):
        return f"manifest.json must hold a mapping, got {type(manifest).__name__}"
    for name, rule in RULES.items():
        if name not in manifest or not rule(manifest[name]):
            return f"manifest.json: {name} is {str(manifest.get(name))[:60]}"
    total, touched = manifest["train_total"], manifest["poison"] + manifest["cover"]
    return "" if touched <= total else f"manifest.json: {touched} of {total} images are stamped"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list(value: Any, kinds: type | UnionType) -> bool:
    return isinstance(value, list) and all(isinstance(one, kinds) for one in value)


# What each entry of the manifest must be.
RULES: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value == 1,
    "dataset": lambda value: isinstance(value, str),
    "attack": lambda value: isinstance(value, str),
    "train_total": lambda value: _is_count(value) and value > 0,
    "poison": lambda value: _is_count(value) and value > 0,
    "cover": _is_count,
    "target": lambda value: value is None or _is_count(value),
    "sources": lambda value: value is None or _is_list(value, int),
    "triggered": lambda value: isinstance(value, bool | int),
    "victim": lambda value: isinstance(value, bool),
    "mean": lambda value: value is None or _is_list(value, float | int),
    "std": lambda value: value is None or _is_list(value, float | int),
}


def arrays_of(file: Path) -> Arrays:
    """Return the arrays of a file.

    Raises:
        FilesError: if it cannot be read.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: np.array(arrays[name]) for name in arrays.files}
    except Exception as error:  # noqa: BLE001  zip and NumPy raise whatever bytes provoke
        raise FilesError(
            f"{file}: cannot be read ({error}); copy the folder or import it again"
        ) from None


def files_of(folder: Path) -> list[Path]:
    """Return the files of an import that are there."""
    return [file for name in FILES if (file := folder / name).is_file()]
