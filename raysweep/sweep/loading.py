"""Sweep files → `Sweep`: axes are opened, methods made, every fault named with its line."""

from __future__ import annotations

import itertools
import json
import runpy
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from raysweep import methods
from raysweep.errors import SpecError
from raysweep.methods import ROLES, Method, paths_of
from raysweep.methods.recipe import Recipe, resolved
from raysweep.paths import starting_at
from raysweep.sweep.faults import line_in, near, python_faults, rule, short
from raysweep.sweep.overrides import as_yaml, check_yaml, with_overrides
from raysweep.sweep.resources import Resources
from raysweep.sweep.searching import tuning_faults
from raysweep.sweep.spec import AXES, MOST_SEEDS, PLURAL, Sweep, Track
from raysweep.sweep.trials import trials
from raysweep.sweep.tuning import Tune
from raysweep.sweep.yaml import Path_, SweepText, file_name, parse, read_yaml

FIELDS = (
    "name", "question", *AXES, *PLURAL.values(), "seeds", "exclude", "resources", "track", "tune",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoadedSweep:
    """A sweep and the text that describes it.

    Attributes:
        sweep: what is to be run.
        text: the sweep file as written; with overrides of the command line, YAML that holds them.
    """

    sweep: Sweep
    text: str


def load_sweep(file: Path) -> Sweep:
    """Read a sweep file, `.yaml`, `.yml`, or `.py` (which defines `sweep`); `-`: standard input.

    Raises:
        SpecError: one line per fault: `file:line: field: got value; rule; remedy`.
    """
    return read_sweep(file).sweep


def read_sweep(file: Path, overrides: Sequence[str] = ()) -> LoadedSweep:
    """Read a sweep file as `load_sweep` does, change some of its values, and keep its text.

    Args:
        file: the sweep file.
        overrides: `KEY=VALUE`, each a path of a value, such as `recipe.epochs`, and a YAML value.

    Raises:
        SpecError: one line per fault; a value that was set is named with its option.
    """
    with starting_at(file.parent):
        if file.suffix == ".py" and not file.is_dir():
            check_yaml(file, overrides)
            return LoadedSweep(sweep=_run_python(file), text=file.read_text())
        text = read_yaml(file)
        changed = with_overrides(parse(file_name(file), text), overrides)
        return LoadedSweep(
            sweep=from_text(changed), text=as_yaml(changed, overrides) if overrides else text
        )


def from_text(text: SweepText) -> Sweep:
    """Return the sweep that parsed YAML describes."""
    return _Loader(text).sweep()


def _run_python(file: Path) -> Sweep:
    try:
        sweep = runpy.run_path(str(file)).get("sweep")
    except ValidationError as error:
        raise SpecError("\n".join(python_faults(file, error))) from None
    except OSError as error:
        raise SpecError(f"{file}: cannot be read ({error})") from None
    except SpecError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a user's file does wrong is told
        raise SpecError(f"{file}:{line_in(file, error)}: {type(error).__name__}: {error}") from None
    if not isinstance(sweep, Sweep):
        raise SpecError(
            f"{file}:1: must define `sweep`, a raysweep.Sweep, got {type(sweep).__name__}"
        )
    lost = [
        f"{file}:1: {role}.{number}.{value.name}.{field}: {message}"
        for role in ROLES
        for number, value in enumerate(getattr(sweep, role))
        for field, message in _lost_paths(value)
    ]
    if lost:
        raise SpecError("\n".join(lost))
    return sweep


def _lost_paths(value: Any) -> Iterator[tuple[str, str]]:
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


class _Loader:
    """Collects faults over the whole file, then raises them together."""

    def __init__(self, text: SweepText) -> None:
        self.text = text
        self.faults: list[str] = []

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
            for path, message in tuning_faults(sweep.tune, sweep.defenses) if sweep.tune else ():
                self.fault(("tune", *path), message)
        except ValidationError as error:
            for fault in error.errors():
                if fault["type"] == "too_short" and fault["input"]:
                    continue  # Its entries have faults, which are told.
                path = tuple(fault["loc"])
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
                self.text.error((), str(error))
            ) from None  # fmt: skip
        if self.faults:
            raise SpecError("\n".join(self.faults))
        return sweep

    def _plain(self) -> dict[str, Any]:
        values, given = self.text.values, {}
        seeds = values.get("seeds", [0])
        whole = isinstance(seeds, int) and not isinstance(seeds, bool) and 1 <= seeds <= MOST_SEEDS
        listed = isinstance(seeds, list) and all(
            isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds
        )
        if not (whole or (listed and seeds)):
            self.fault(
                ("seeds",),
                f"must be a number of seeds or a list of them, at most {MOST_SEEDS:,}, "
                f"got {short(seeds)}",
            )
        else:
            given["seeds"] = seeds
        for field, kind in (("resources", Resources), ("track", Track), ("tune", Tune)):
            if field in values:
                given[field] = self._model(kind, values[field], (field,))
        exclude = values.get("exclude", [])
        if not isinstance(exclude, list) or not all(isinstance(e, dict) for e in exclude):
            self.fault(("exclude",), f"must be a list of mappings, got {short(exclude)}")
        else:
            given["exclude"] = [e["where"] if list(e) == ["where"] else e for e in exclude]
        return given

    def _model(self, kind: type[BaseModel], values: Any, path: Path_) -> Any:
        """Validate a mapping; faults name their own lines."""
        if not isinstance(values, dict):
            self.fault(path, f"must be a mapping, got {short(values)}")
            return None
        try:
            return kind.model_validate_json(json.dumps(values))
        except (TypeError, ValueError) as error:
            if not isinstance(error, ValidationError):
                self.fault(path, f"must be plain values, got {short(values)}")
                return None
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
            self.fault(where, f"unknown field, got {short(fault['input'])}; {hint}")
        else:
            self.fault(where, f"{rule(fault)}, got {short(fault['input'])}")

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
        return values

    def _entry(self, axis: str, path: Path_, entry: Any) -> Iterator[Any]:
        if axis == "recipe":
            yield from self._recipes(path, entry)
            return
        role: Any = PLURAL[axis]
        if isinstance(entry, dict) and (named := _named_by_field(role, entry)):
            yield from self._open(named, entry, path)
            return
        if isinstance(entry, dict) and len(entry) > 1 and path == (axis,):
            entries = [(name, params) for name, params in entry.items()]
        elif isinstance(entry, dict) and len(entry) == 1:
            entries = list(entry.items())
        elif isinstance(entry, str):
            entries = [(entry, {})]
        else:
            hint = "; write none" if entry is None else f"; for example {axis}: [name]"
            if isinstance(entry, dict) and entry:
                hint = f"; each entry has a dash: - {next(iter(entry))}: {{parameter: value}}"
            self.fault(
                path, f"must be a name or {{name: {{parameters}}}}, got {short(entry)}{hint}"
            )
            return
        for name, params in entries:
            try:
                kind: type[Method] = methods.load(role, name)
            except SpecError as error:
                self.fault(path, str(error))
                continue
            inner = (*path, name) if isinstance(entry, dict) else path
            yield from self._open(kind, params or {}, inner)

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
            lost = list(_lost_paths(value))
            for name, message in lost:
                self.fault((*path, name), message)
            if value is not None and not lost:
                yield value
            elif len(self.faults) > before + 20:
                return
