"""Parsed YAML → `Sweep`: axes are opened, methods made, every fault named with its line."""

from __future__ import annotations

import itertools
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from raysweep import methods
from raysweep.errors import SpecError
from raysweep.methods import Method, paths_of
from raysweep.methods.recipe import Recipe, resolved
from raysweep.sweep.faults import near, rule, short, whole, with_whole
from raysweep.sweep.race import Race
from raysweep.sweep.resources import Resources
from raysweep.sweep.searching import tuning_faults
from raysweep.sweep.spec import AXES, MOST_SEEDS, PLURAL, Sweep, Track
from raysweep.sweep.trials import trials
from raysweep.sweep.tuning import Tune
from raysweep.sweep.yaml import Path_, SweepText

FIELDS = (
    "name", "question", *AXES, *PLURAL.values(), "seeds", "exclude", "resources", "track", "tune",
)  # fmt: skip


def from_text(text: SweepText) -> Sweep:
    """Return the sweep that parsed YAML describes.

    Raises:
        SpecError: one line per fault.
    """
    return opened(text)[0]


def opened(text: SweepText) -> tuple[Sweep, dict[str, list[Path_]]]:
    """Return the sweep that parsed YAML describes, and the entry that each value is from.

    Returns:
        The sweep, and axis, such as `attacks` → the paths of the entries, in the axis's order.

    Raises:
        SpecError: one line per fault.
    """
    loader = _Loader(text)
    return loader.sweep(), loader.origins


def lost_paths(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the fields of a method whose paths lead to nothing, each with a message."""
    for field, path in paths_of(value) if isinstance(value, Method) else ():
        if not path.exists():
            yield (
                field,
                (
                    f"must be there, got {str(path)!r}; a relative path starts at the sweep file's "
                    f"folder"
                ),
            )


def takes_list(annotation: Any) -> bool:
    """Return whether a field's own type is a sequence, so that a flat list is one value."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(takes_list(part) for part in typing.get_args(annotation))
    return typing.get_origin(annotation) in (tuple, list)


def _named_by_field(role: methods.Role, entry: dict[str, Any]) -> type[Method] | None:
    """Return the method that an entry names by a parameter: {module: "nets:Net", head: fc}."""
    known = methods.available(role)
    for name, value in entry.items():
        listed = value if isinstance(value, list) else [value]
        if name in known and all(isinstance(one, str) for one in listed):
            try:
                kind = methods.load(role, name)
            except SpecError:
                return None  # said with its line where it is named
            return kind if name in kind.model_fields else None
    return None


def _entry_hint(role: methods.Role, entry: Any) -> str:
    """Return the likely slip behind an entry that is neither a name nor one name's parameters."""
    axis = role[:-1]
    if entry is None:
        return "write none"
    if not isinstance(entry, dict) or not entry:
        return f"for example {axis}: [name]"
    name, *others = entry
    try:
        own = methods.load(role, name).model_fields
    except SpecError:
        own = {}
    if entry[name] is None and others and all(other in own for other in others):
        values = ", ".join(f"{other}: {short(entry[other])}" for other in others)
        return f"parameters stand deeper than the name: {name}: {{{values}}}"
    return (
        f"each entry has a dash: - {name}: {{parameter: value}}, below {axis}s:, and its "
        f"parameters stand deeper than its name"
    )


class _Loader:
    """Collects faults over the whole file, then raises them together."""

    def __init__(self, text: SweepText) -> None:
        self.text = text
        self.faults: list[str] = []
        self.origins: dict[str, list[Path_]] = {}

    def fault(self, path: Path_, message: str) -> None:
        self.faults.append(self.text.error(path, message))

    def sweep(self) -> Sweep:
        values = self.text.values
        given: dict[str, Any] = {}
        for field in values:
            if field not in FIELDS:
                self.fault((field,), f"unknown field; {near(field, FIELDS)}")
        for axis, plural in PLURAL.items():
            field = axis if axis in values else plural
            if axis in values and plural in values:
                self.fault((plural,), f"{axis} and {plural} are both given; keep one")
            elif field in values:
                given[plural] = self._axis(axis, field)
            elif axis != "recipe":
                self.fault((), f"{plural} must be given: one {axis} or a list")
        for field in ("name", "question"):
            if field in values:
                given[field] = values[field]
        given |= self._plain()
        if self.faults:
            raise SpecError("\n".join(self.faults))
        return self._made(given)

    def _made(self, given: dict[str, Any]) -> Sweep:
        try:
            sweep = Sweep.model_validate(given)
            trials(sweep)
            parts = (sweep.defenses, sweep.attacks, sweep.datasets)
            for path, message in tuning_faults(sweep.tune, *parts) if sweep.tune else ():
                self.fault(("tune", *path), message)
        except ValidationError as error:
            for fault in error.errors():
                if fault["type"] == "too_short" and fault["input"]:
                    continue  # Its entries have faults, which are told.
                path = tuple(fault["loc"]) or self._named(str(fault["msg"]))
                shown = "" if fault["type"] in ("missing", "value_error") else (
                    f", got {short(fault['input'])}"
                )  # fmt: skip
                self.fault(path, rule(fault) + shown)
            raise SpecError("\n".join(self.faults)) from None
        except SpecError as error:
            field, _, message = str(error).partition(": ")
            name, _, number = field.partition(".")
            raise SpecError(
                self.text.error((name, int(number)), message) if number.isdigit() else
                self.text.error(("exclude",), str(error))
            ) from None  # fmt: skip
        if self.faults:
            raise SpecError("\n".join(self.faults))
        return sweep

    def _named(self, message: str) -> Path_:
        """Return the path of the first field of the file that a message names, else the top."""
        words = re.findall(r"\w+", message)
        return next(((word,) for word in words if word in self.text.values), ())

    def _plain(self) -> dict[str, Any]:
        values, given = self.text.values, {}
        seeds = values.get("seeds", [0])
        seeds = [whole(s) for s in seeds] if isinstance(seeds, list) else whole(seeds)
        number = isinstance(seeds, int) and not isinstance(seeds, bool) and 1 <= seeds <= MOST_SEEDS
        listed = isinstance(seeds, list) and all(
            isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds
        )
        if isinstance(seeds, dict):
            given["seeds"] = self._model(Race, seeds, ("seeds",))
        elif not (number or (listed and seeds)):
            self.fault(
                ("seeds",),
                f"must be a number of seeds or a list of them, at most {MOST_SEEDS:,}, without "
                f"quotes, got {short(seeds)}",
            )
        else:
            given["seeds"] = seeds
        for field, kind in (("resources", Resources), ("track", Track), ("tune", Tune)):
            if field in values:
                given[field] = self._model(kind, values[field], (field,))
        exclude = values.get("exclude", [])
        every = exclude if isinstance(exclude, list) else [None]
        found = [e["where"] if isinstance(e, dict) and [*e] == ["where"] else e for e in every]
        if not all(isinstance(e, dict) for e in found):
            rule = "must be a list of mappings, such as [{attack: badnets}]"
            self.fault(("exclude",), f"{rule}, got {short(exclude)}")
        else:
            given["exclude"] = found
        return given

    def _model(self, kind: type[BaseModel], values: Any, path: Path_) -> Any:
        """Validate a mapping; faults name their own lines."""
        if not isinstance(values, dict):
            self.fault(path, f"must be a mapping, got {short(values)}")
            return None
        try:
            return kind.model_validate_json(json.dumps(values))
        except ValidationError as error:
            if (counted := with_whole(values, error.errors())) is not values:
                return self._model(kind, counted, path)
            for fault in error.errors():
                self._translate(kind, fault, path)
            return None

    def _translate(self, kind: type[BaseModel], fault: Any, path: Path_) -> None:
        inner = tuple(
            p for p in fault["loc"] if isinstance(p, int) or not str(p).startswith("func")
        )
        where = (*path, *inner)
        if fault["type"] == "extra_forbidden":
            owner: Any = kind
            for part in inner[:-1]:  # a field of a model, or a key of a mapping of models
                fields = getattr(owner, "model_fields", None)
                owner = fields[str(part)].annotation if fields else get_args(owner)[-1]
            hint = near(inner[-1], owner.model_fields)
            if ":" in str(inner[-1]):
                hint = "a colon is followed by a space"
            self.fault(where, f"unknown field, got {short(fault['input'])}; {hint}")
        else:
            told = rule(fault)
            got = "" if ", got " in told else f", got {short(fault['input'])}"
            self.fault(where, told + got)

    def _axis(self, axis: str, field: str) -> list[Any]:
        listed = self.text.values[field]
        path: Path_ = (field,)
        if isinstance(listed, list) and not listed:
            self.fault(path, "is an empty axis; name at least one value or remove the field")
        entries = (
            [((field, n), entry) for n, entry in enumerate(listed)]
            if isinstance(listed, list) else [(path, listed)]
        )  # fmt: skip
        values: list[Any] = []
        first: list[Path_] = []
        for where, entry in entries:
            for value in self._entry(axis, where, entry):
                if value in values:
                    line = self.text.line(first[values.index(value)])
                    shown = getattr(value, "label", axis)
                    self.fault(where, f"duplicate: {shown} is on line {line} already; keep one")
                values.append(value)
                first.append(where)
        self.origins[PLURAL[axis]] = first
        return values

    def _entry(self, axis: str, path: Path_, entry: Any) -> Iterator[Any]:
        if axis == "recipe":
            yield from self._recipes(path, entry)
            return
        role: Any = PLURAL[axis]
        if isinstance(entry, dict) and (named := _named_by_field(role, entry)):
            yield from self._open(named, entry, path)
            return
        if not isinstance(entry, str) and not (isinstance(entry, dict) and len(entry) == 1):
            hint = _entry_hint(role, entry)
            self.fault(
                path, f"must be a name or {{name: {{parameters}}}}, got {short(entry)}; {hint}"
            )
            return
        name, params = (entry, None) if isinstance(entry, str) else next(iter(entry.items()))
        try:
            kind: type[Method] = methods.load(role, name)
        except SpecError as error:
            dash = (
                "; each entry of a list has a dash and a space, or a comma after it in brackets"
                if len(name.split()) > 1 or name.startswith("-") else ""
            )  # fmt: skip
            self.fault(path, f"{error}{dash}")
            return
        inner = (*path, name) if isinstance(entry, dict) else path
        yield from self._open(kind, {} if params is None else params, inner)

    def _recipes(self, path: Path_, entry: Any) -> Iterator[Any]:
        """Yield recipes: a name, parameters, or parameters on a `base`, which may be an axis."""
        if not isinstance(entry, str | dict):
            self.fault(path, f"must be a name or {{base: name, parameters}}, got {short(entry)}")
            return
        given: dict[str, Any] = {"base": entry} if isinstance(entry, str) else entry
        bases = given["base"] if isinstance(given.get("base"), list) else [given.get("base")]
        for base in bases:
            try:
                values = resolved({**given, "base": base}) if "base" in given else given
            except SpecError as error:
                self.fault((*path, "base"), str(error))
                continue
            yield from self._open(Recipe, values, path)

    def _open(self, kind: type[BaseModel], params: Any, path: Path_) -> Iterator[Any]:
        """Yield one value for each point of the product of the parameters that are lists."""
        if not isinstance(params, dict):
            self.fault(path, f"parameters must be a mapping, got {short(params)}")
            return
        axes = []
        for name, value in params.items():
            field = kind.model_fields.get(name)
            own = field is not None and takes_list(field.annotation)
            nested = isinstance(value, list) and any(isinstance(v, list | None) for v in value)
            if isinstance(value, list) and (not own or nested):
                if not value:
                    self.fault((*path, name), "is an empty axis; name at least one value")
                axes.append([(name, v) for v in value])
            else:
                axes.append([(name, value)])
        before = len(self.faults)
        for point in itertools.product(*axes):
            value = self._model(kind, dict(point), path)
            lost = list(lost_paths(value))
            for name, message in lost:
                self.fault((*path, name), message)
            if value is not None and not lost:
                yield value
            elif len(self.faults) > before + 20:
                return
