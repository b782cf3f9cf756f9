"""A method is a file: its name is the file's name, its configuration is the one class inside.

Method modules are imported whenever a sweep is planned. They import NumPy freely, and torch,
torchvision, scikit-learn and scipy only inside the functions that compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysweep.errors import PlanError, StageError
from raysweep.identity import digest, files_digest
from raysweep.paths import holds_path


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

    def content_files(self) -> list[Path]:
        """Return the files and folders that `content_digest` is of."""
        return [path for _, path in paths_of(self)]

    def modules(self) -> frozenset[str]:
        """Return the names of the Python modules that hosts must have the same source of."""
        return frozenset({type(self).__module__})

    @property
    def label(self) -> str:
        """The name, followed by the parameters it has that differ from their defaults."""
        return self.labeled(self.name)

    def labeled(self, name: str, leave_out: frozenset[str] = frozenset()) -> str:
        """Return some name, followed by the parameters that differ from their defaults.

        Args:
            name: what the label begins with.
            leave_out: parameters that the name says already.
        """
        changed = []
        for field, info in type(self).model_fields.items():
            if field in leave_out or field == "rate" or field not in self.__dict__:
                continue
            value = getattr(self, field)
            if value != info.get_default(call_default_factory=True):
                changed.append(f"{field}={_shown(self, field, value)}")
        changed += [f"{field}={value}" for field, value in (self.model_extra or {}).items()]
        return f"{name}({', '.join(changed)})" if changed else name

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
