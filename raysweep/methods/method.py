"""A method is a file: its name is the file's name, its configuration is the one class inside.

`available` scans for methods without importing them; `load` imports one. Third parties add theirs
with entry points in the groups `raysweep.attacks`, `raysweep.defenses`, `raysweep.datasets` and
`raysweep.models`; the entry point's name must be the name of the module that it names.

Method modules are imported whenever a sweep is planned. They import NumPy freely, and torch,
torchvision, scikit-learn and scipy only inside the functions that compute.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import json
import socket
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysweep.errors import FilesError, PlanError, SpecError, StageError
from raysweep.identity import digest, files_digest
from raysweep.paths import holds_path

Role = Literal["attacks", "defenses", "datasets", "models"]
ROLES: tuple[Role, ...] = get_args(Role)


class Method(BaseModel):
    """An attack, defense, dataset or model: frozen, typed, validated hyperparameters.

    Class variables:
        VERSION: raised whenever results change; part of the identity of every stage that runs it.
        BADGES: what a table must say about it, for example `oracle: poison mask`.
        INSTEAD: the parameters that a stage's key may leave out, each with what the stage reads in
            its place; they need defaults. A method restored without one has no value of it, and
            never the default.
        TOY: parameters that make it quick on a toy; the tests of all methods run it with them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="strings")
    VERSION: ClassVar[int] = 1
    BADGES: ClassVar[tuple[str, ...]] = ()
    INSTEAD: ClassVar[Mapping[str, str]] = {}
    TOY: ClassVar[Mapping[str, Any]] = {}

    if not TYPE_CHECKING:  # else type checkers would take any attribute for one of a method

        def __getattr__(self, name: str) -> Any:
            if name not in self.INSTEAD:
                return super().__getattr__(name)
            raise StageError(
                f"method {self.name}: {name} has no value in this stage, whose key leaves it out; "
                f"read {self.INSTEAD[name]}"
            )

    @field_validator("*")
    @classmethod
    def _can_be_recorded(cls, value: Any) -> Any:
        if isinstance(value, int) and value.bit_length() > 63:
            raise ValueError(f"must be at most {2**63 - 1}, which records hold (63 bits)")
        return value

    @property
    def name(self) -> str:
        """The method's name: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    def params(self, *, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return every parameter, defaults included, as JSON values."""
        return self.model_dump(mode="json", exclude=set(leave_out))

    def identity(self, *, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the JSON values that `restore` rebuilds it from; keys take them `by_content`."""
        content = self.content_digest()
        led_to = {"content_digest": content} if content else {}
        identity = {"name": self.name, "version": self.VERSION, **led_to}
        return identity | self.params(leave_out=leave_out)

    def content_digest(self) -> str:
        """Return a digest of all files that the paths lead to, or "" if there is no path.

        It stands for the paths in keys. A method returns "" if its parameters, or the plan, already
        identify its content.

        Raises:
            PlanError: if a path leads to nothing.
        """
        return _digest_of_paths(self)

    @property
    def label(self) -> str:
        """The name, followed by the parameters it has that differ from their defaults."""
        changed = []
        for field, info in type(self).model_fields.items():
            if field == "rate" or field not in self.__dict__:
                continue
            value = getattr(self, field)
            if value != info.get_default(call_default_factory=True):
                changed.append(f"{field}={_shown(self, field, value)}")
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def without(self, fields: Iterable[str]) -> Self:
        """Return a copy that has no value of some parameters, of which `INSTEAD` tells.

        Whoever reads one of them meets a `StageError`; in all else the copy is a method: it has an
        identity and a label, it can be compared, hashed, copied and pickled.
        """
        copy = self.model_copy()
        for field in fields:
            del copy.__dict__[field]
        return copy

    def badges(self) -> tuple[str, ...]:
        """Return the badges that apply with these parameters."""
        return self.BADGES


def decision(default: Any, *, search: Mapping[str, Any] | None = None, **rules: Any) -> Any:
    """Declare a decision parameter: it is read by `decide` alone and never changes a score.

    `search` is the range that tuning takes if a sweep file names none, as in W&B's sweep files:
    `{"min": 0.001, "max": 0.3, "distribution": "log_uniform_values"}`, or `{"values": [...]}`.
    """
    extra: dict[str, Any] = {"role": "decision"}
    if search is not None:
        extra["search"] = dict(search)
    return Field(default, json_schema_extra=extra, **rules)


def searched(default: Any, search: Mapping[str, Any], **rules: Any) -> Any:
    """Declare a parameter that changes scores or models, with the range that tuning may take."""
    return Field(default, json_schema_extra={"search": dict(search)}, **rules)


def log_range(low: float, high: float) -> dict[str, Any]:
    """Return a suggested range whose logarithm is searched evenly."""
    return {"min": low, "max": high, "distribution": "log_uniform_values"}


def reduction(default: Any, *, search: Mapping[str, Any] | None = None, **rules: Any) -> Any:
    """Declare a parameter that `run` reads but no `shard` does: changing it keeps the shards."""
    extra: dict[str, Any] = {"role": "reduction"}
    if search is not None:
        extra["search"] = dict(search)
    return Field(default, json_schema_extra=extra, **rules)


def decision_fields(method: type[Method]) -> frozenset[str]:
    """Return the names of a method's decision parameters."""
    return _fields(method, "decision")


def reduction_fields(method: type[Method]) -> frozenset[str]:
    """Return the names of the parameters that a method's shards never see."""
    return _fields(method, "reduction")


def search_ranges(method: type[Method]) -> dict[str, dict[str, Any]]:
    """Return the ranges that a method suggests for its parameters."""
    return {
        name: dict(info.json_schema_extra["search"])  # type: ignore[arg-type]
        for name, info in method.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and "search" in info.json_schema_extra
    }


def _fields(method: type[Method], role: str) -> frozenset[str]:
    return frozenset(
        name
        for name, info in method.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("role") == role
    )


@cache
def path_fields(method: type[Method]) -> frozenset[str]:
    """Return the names of the fields that hold a `DataPath`, or may hold one."""
    return frozenset(
        name
        for name, info in method.model_fields.items()
        if holds_path(info.annotation, info.metadata)
    )


def by_content(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as they enter keys: without paths, since a digest of the files is there.

    Args:
        params: identities by `dataset`, `model`, `attack` and `defense`; anything else is kept.
    """
    content = dict(params)
    for role in ROLES:
        axis = role[:-1]
        if axis in content and (fields := path_fields(load(role, content[axis]["name"]))):
            content[axis] = {k: v for k, v in content[axis].items() if k not in fields}
    return content


def paths_of(method: Method) -> list[tuple[str, Path]]:
    """Return the field and the path of every `DataPath` of a method."""
    return [
        (field, path)
        for field in sorted(path_fields(type(method)))
        for path in _each(getattr(method, field))
    ]


def _each(value: Any) -> list[Path]:
    values = value if isinstance(value, tuple | list) else [value]
    return [Path(part) for part in values if part is not None]


def _shown(method: Method, field: str, value: Any) -> str:
    """Return a value's text in a label; of a path its last part, which is the same everywhere."""
    if field not in path_fields(type(method)):
        return str(value)
    return ", ".join(path.name for path in _each(value))


def _digest_of_paths(method: Method) -> str:
    parts = []
    for field, path in paths_of(method):
        if not path.exists():
            raise PlanError(f"{method.name}: {field} must be there, got {str(path)!r}")
        files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
        parts += [field, *(str(file.relative_to(path)) for file in files), files_digest(files)]
    return digest("\n".join(parts)) if parts else ""


@cache
def available(role: Role) -> dict[str, str]:
    """Return name → module of every method of a role, found without importing any."""
    folder = Path(__file__).parent.parent / role
    modules = {
        path.stem: f"raysweep.{role}.{path.stem}"
        for path in sorted(folder.glob("*.py"))
        if not path.stem.startswith("_")
    }
    for point in importlib.metadata.entry_points(group=f"raysweep.{role}"):
        modules.setdefault(point.name, point.module)
    return dict(sorted(modules.items()))


@cache
def load(role: Role, name: str) -> type[Method]:
    """Import a method's class.

    Raises:
        SpecError: if there is no such method; the message names the nearest one.
    """
    modules = available(role)
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SpecError(f"unknown {role[:-1]} {name!r}{hint} (known: {', '.join(modules)})")
    module = importlib.import_module(modules[name])
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise SpecError(
            f"{module.__name__} must define exactly one {role[:-1]} class, found "
            f"{[c.__name__ for c in classes]}"
        )
    return classes[0]


def restore(role: Role, identity: dict[str, Any]) -> Any:
    """Rebuild a method from `identity()`, as a stage does that received it as JSON.

    Of the parameters in `INSTEAD` it has those that the identity holds.

    Raises:
        SpecError: if there is no such method.
        StageError: if the method here has another version: it would give other results.
        FilesError: if its paths lead to something else on this host than where it was planned.
    """
    params = {k: v for k, v in identity.items() if k not in ("name", "version", "content_digest")}
    kind = load(role, identity["name"])
    check_version(kind, "VERSION", identity["version"])
    method: Method = kind.model_validate_json(json.dumps(params))
    if "content_digest" in identity:
        _check_paths(method, identity["content_digest"])
    return method.without(kind.INSTEAD.keys() - params.keys())


def check_version(method: type[Method], which: str, asked: int) -> None:
    """Refuse a method whose `VERSION`, or other class variable, is not the one in a stage's key.

    Raises:
        StageError: names the method, both versions, and the remedy.
    """
    have = getattr(method, which)
    if have != asked:
        name = method.__module__.rpartition(".")[2]
        raise StageError(
            f"method {name}: the stage was planned with {which} {asked}, and {name} has {which} "
            f"{have} on host {socket.gethostname()}; run the same code there as where the sweep "
            f"was launched, or launch again to plan with {have}"
        )


def _check_paths(method: Method, planned: str) -> None:
    try:
        same = method.content_digest() == planned
    except PlanError as error:
        raise FilesError(str(error)) from None
    if not same:
        where = ", ".join(str(path) for _, path in paths_of(method))
        raise FilesError(
            f"{method.name}: {where} differs from what was planned; give all hosts the same files, "
            f"or plan again if they have changed"
        )
