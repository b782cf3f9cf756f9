"""The description of a sweep beside its records: `sweeps/<place>/sweep.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from raysweep.provenance import git_commit, versions
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Sweep, to_plain

Json = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None
_KINDS: dict[str, type | tuple[type, ...]] = {
    "sweep": dict, "created_at": (int, float), "versions": dict, "concluded": bool,
}  # fmt: skip
_LATEST = 1e11  # seconds since 1970 that still are a date


@dataclass(frozen=True, kw_only=True)
class Description:
    """The description of a sweep; a value that is not known is None.

    Attributes:
        name: of the sweep.
        question: that it is to answer.
        text: the sweep file as written.
        sweep: the sweep as JSON values, every default written out.
        created_at: when it was launched, in seconds since 1970.
        storage: where its artifacts are.
        versions: package → version, where it was launched.
        git_commit: of the checkout that it was launched from; empty if there was none.
        precision: what `auto` stood for where it was launched.
        concluded: whether the records hold the end of the launch.
    """

    name: str | None = None
    question: str | None = None
    text: str | None = None
    sweep: Mapping[str, Any] | None = None
    created_at: float | None = None
    storage: str | None = None
    versions: Mapping[str, str] | None = None
    git_commit: str | None = None
    precision: str | None = None
    concluded: bool | None = None

    def pack(self) -> dict[str, Json]:
        """Return the known values as JSON."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in known.items() if value is not None}

    @classmethod
    def unpack(cls, raw: bytes) -> Description:
        """Return the description in a file's bytes; what is damaged of it is left out."""
        try:
            values = json.loads(raw)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(values, dict):
            return cls()
        known = {
            field.name: values[field.name]
            for field in fields(cls)
            if isinstance(values.get(field.name), _KINDS.get(field.name, str))
        }
        if not 0 <= known.get("created_at", math.nan) < _LATEST:
            known.pop("created_at", None)
        if not all(isinstance(version, str) for version in known.get("versions", {}).values()):
            del known["versions"]
        return cls(**known)


def described(store: Store, place: str) -> Description:
    """Return the description that is stored of a sweep; empty if none is."""
    return Description.unpack(store.read(SweepFolder(store, place).description) or b"{}")


def write_description(store: Store, place: str, description: Description) -> None:
    """Write down what is known of a sweep."""
    data = json.dumps(description.pack(), indent=1).encode()
    store.write(SweepFolder(store, place).description, data, durable=True)


def launched_now(
    sweep: Sweep, text: str, store: Store, precision: str, started: float
) -> Description:
    """Return the description of a sweep that is launched by this process.

    Args:
        sweep: what is run.
        text: the sweep file as written.
        store: where its artifacts are.
        precision: what `auto` stands for.
        started: in seconds since 1970.
    """
    return Description(
        name=sweep.name, question=sweep.question, text=text, sweep=to_plain(sweep),
        created_at=started, storage=store.where(), versions=versions(), git_commit=git_commit(),
        precision=precision, concluded=False,
    )  # fmt: skip


def as_launched(sweep: Sweep, description: Description) -> Sweep:
    """Return a sweep with the precision that `auto` was where it was launched, if that is known."""
    precision = description.precision
    if precision not in ("float32", "bfloat16"):
        return sweep
    recipes = [
        recipe.model_copy(update={"precision": precision}) if recipe.precision == "auto" else recipe
        for recipe in sweep.recipes
    ]
    return sweep.model_copy(update={"recipes": tuple(recipes)})
