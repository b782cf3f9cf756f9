"""Values of a sweep file that the command line sets: `--set recipe.epochs=2`."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysweep.errors import SpecError
from raysweep.sweep.faults import one_line, short
from raysweep.sweep.scalars import dump
from raysweep.sweep.spec import PLURAL
from raysweep.sweep.yaml import Path_, SweepText, parse_value

EXAMPLE = "--set seeds=3 or --set recipe.epochs=2"
_SINGULAR = {plural: axis for axis, plural in PLURAL.items()}


def check_yaml(file: Path, overrides: Sequence[str]) -> None:
    """Refuse overrides for a Python sweep file.

    Raises:
        SpecError: names the option, the reason and the remedy.
    """
    if overrides:
        raise SpecError(
            f"{option(overrides[0])}: {file} is a Python sweep file, a program that computes its "
            f"values, so there is no value in it to set; change it there, or let it read the "
            f"value from os.environ"
        )


def option(override: str) -> str:
    """Return an override as it stands on the command line, on one line."""
    return f"--set {shlex.quote(one_line(override))}"


def with_overrides(text: SweepText, overrides: Sequence[str]) -> SweepText:
    """Return the text of a sweep file in which some values are set, the last one of each.

    Raises:
        SpecError: if a override is no `KEY=VALUE`, or its path does not fit the file.
    """
    for override in overrides:
        name, given, value = override.partition("=")
        if not given or not all(name.split(".")):
            raise SpecError(
                f"{option(override)}: must be KEY=VALUE, the KEY a path of fields divided by "
                f"dots; write for example {EXAMPLE}"
            )
        text = _set(text, override, name.split("."), parse_value(option(override), value))
    return text


def _set(text: SweepText, override: str, names: list[str], value: Any) -> SweepText:
    values = copy.deepcopy(text.values)
    names = [_spelled(names[0], values), *names[1:]]
    here: Any = values
    path: Path_ = ()
    for name in names:
        place = _place(here, path, name, override)
        path = (*path, place)
        if len(path) == len(names):
            here[place] = value
        else:
            inner = here.get(place) if isinstance(here, dict) else here[place]
            here[place] = here = _opened(inner, path, names[len(path) :], override)

    def kept(other: Path_) -> bool:
        return other[: len(path)] != path

    return replace(
        text, values=values,
        lines={other: line for other, line in text.lines.items() if kept(other)},
        options={o: s for o, s in text.options.items() if kept(o)} | {path: option(override)},
    )  # fmt: skip


def _spelled(field: str, values: dict[str, Any]) -> str:
    """Return a field as the file spells it: an axis has a singular and a plural."""
    other = PLURAL.get(field) or _SINGULAR.get(field, field)
    return other if other in values and field not in values else field


def _place(here: Any, path: Path_, name: str, override: str) -> str | int:
    """Return the key of a mapping, or the number of a list's entry, that a name stands for."""
    if not isinstance(here, list):
        return name
    if name.isdecimal() and int(name) < len(here):
        return int(name)
    where = _dotted(path)
    entries = ", ".join(f"{where}.{n} is {_shown(entry)}" for n, entry in enumerate(here[:8]))
    raise SpecError(
        f"{option(override)}: {where} is a list of {len(here)}, whose entries are named by number, "
        f"got {name!r}; {entries}"
    )


def _opened(inner: Any, path: Path_, names: list[str], override: str) -> Any:
    """Return the list or mapping at a path, in which the next name is to be found."""
    where, following = _dotted(path), names[0]
    axis = _SINGULAR.get(str(path[0]), str(path[0]))
    is_entry = axis in PLURAL and (len(path) == 1 or (isinstance(path[1], int) and len(path) == 2))
    if isinstance(inner, str) and is_entry:
        inner = {"base": inner} if axis == "recipe" else {inner: {}}
    if inner is None and not following.isdecimal():
        inner = {}
    if not isinstance(inner, dict | list):
        raise SpecError(
            f"{option(override)}: {where} is {short(inner)}, which holds no {following!r}; set it "
            f"whole: --set {where}=VALUE"
        )
    is_method = is_entry and axis != "recipe" and isinstance(inner, dict)
    if is_method and inner and following not in inner:
        names_there = ", ".join(inner)
        raise SpecError(
            f"{option(override)}: {where} is {names_there}, and its parameters stand below the "
            f"name, got {following!r}; write --set {where}.{next(iter(inner))}."
            f"{'.'.join(names)}=VALUE, or another entry: --set {where}=NAME"
        )
    return inner


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))


def _shown(entry: Any) -> str:
    """Return the name of a method's entry, or the text of any other value."""
    return ", ".join(entry) if isinstance(entry, dict) else short(entry)


def as_yaml(text: SweepText, overrides: Sequence[str]) -> str:
    """Return YAML that loads to the same sweep as a text with its overrides."""
    given = " ".join(map(option, overrides)).replace("\n", " ")
    return f"# {text.file}, with {given}\n{dump(text.values)}"
