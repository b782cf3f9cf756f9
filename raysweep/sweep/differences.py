"""The differences of two sweeps of one name in the rows that they give."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysweep.errors import SpecError
from raysweep.methods import ROLES, Role, load, path_fields
from raysweep.sweep.spec import AXES, PLURAL, Sweep, restored, to_plain

# What decides which rows a sweep has; a name, a question or a tracker changes none.
ROWS = (*(PLURAL[axis] for axis in AXES), "seeds", "exclude")
SHOWN = 3


def differences(before: Mapping[str, Any], sweep: Sweep) -> list[str]:
    """Return a line for each axis in which the rows of a sweep differ from a recorded sweep's."""
    with contextlib.suppress(SpecError):  # a method is gone: as it was written down
        before = to_plain(restored(before))  # parameters that are new since have their defaults
    was, now, lines = deciding(before), deciding(to_plain(sweep)), []
    for field in ROWS:
        old, new = was[field], now[field]
        if isinstance(old, Mapping) or isinstance(new, Mapping):  # the rules of a race
            lines += [f"{field}: was {_told(old)}, is {_told(new)}"] if old != new else []
            continue
        old = old if isinstance(old, list) else []
        lost, gained = ([e for e in a if e not in b] for a, b in ((old, new), (new, old)))
        parts = [
            f"{word} {_shown(some, [*lost, *gained])}"
            for word, some in (("gained", gained), ("lost", lost))
            if some
        ]
        if parts or old != new:
            lines.append(f"{field}: {', '.join(parts) or 'in another order'}")
    return lines


def _told(seeds: Any) -> str:
    """Return seeds as people write them: their number, or the rules of a race."""
    return str(len(seeds)) if isinstance(seeds, list) else json.dumps(seeds).replace('"', "")


def deciding(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that decide the rows of a sweep; of paths only the last part.

    A project that was moved thus has the same rows; their keys tell whether its files changed.
    """
    fields = {field: sweep.get(field) for field in ROWS}
    for role in ROLES:
        if isinstance(entries := fields[role], list):
            fields[role] = [_without_folders(role, entry) for entry in entries]
    return fields


def _without_folders(role: Role, entry: Any) -> Any:
    name, params = _flat(entry)
    try:
        fields = path_fields(load(role, name)) & params.keys()
    except (SpecError, ImportError):  # it is gone: as it was written down
        return entry
    return {name: {**params, **{field: _last(params[field]) for field in fields}}}


def _last(path: Any) -> Any:
    if isinstance(path, list):
        return [_last(part) for part in path]
    return Path(path).name if isinstance(path, str) else path


def _shown(entries: list[Any], among: list[Any]) -> str:
    """Return the text of an axis's entries: methods with the parameters in which they differ."""
    every = [_flat(entry) for entry in among]
    shown = []
    for name, params in map(_flat, entries[:SHOWN]):
        like = [other for known, other in every if known == name]
        differing = [
            f"{field}={value}"
            for field, value in params.items()
            if any(other.get(field) != value for other in like)
        ]
        shown.append(f"{name}({', '.join(differing)})" if differing else name)
    more = len(entries) - SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _flat(entry: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and parameters of an entry of any axis."""
    if not isinstance(entry, dict):
        return str(entry), {}
    if len(entry) == 1 and isinstance(params := next(iter(entry.values())), dict):
        return str(next(iter(entry))), params
    return "recipe" if "epochs" in entry else "where", entry
