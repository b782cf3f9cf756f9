"""The field by which a stage that would run differs from the nearest stored one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raysweep.identity import Json, kind_of
from raysweep.methods import by_content
from raysweep.results.table import read_table
from raysweep.stages.stage import Stage
from raysweep.store import Manifest, Store

LOOKED_AT = 1000  # stored stages of a kind
SAMPLE = 50  # stages of a kind that would run
_DIGEST = re.compile(r"(?:[a-z]+-)?[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first field in which two keys of a kind differ.

    Attributes:
        field: a path such as `recipe.epochs`; `input poison` for an input; `version` for that of
            the stage kind.
        stored: its value in the nearest stored stage; None if it has no such field.
        planned: its value in the stage that would run; None if it has no such field.
    """

    field: str
    stored: Json
    planned: Json

    def __str__(self) -> str:
        if self.field == "source":
            return "the files of the dataset are others"
        if any(_DIGEST.fullmatch(str(value)) for value in (self.stored, self.planned)):
            return f"{self.field} is another"
        return f"{self.field} {_shown(self.stored)} → {_shown(self.planned)}"


def _shown(value: Json) -> str:
    return "absent" if value is None else str(value)


def nearest(
    stages: Sequence[Stage], stored: Iterable[str], store: Store, sweep: str
) -> Difference | None:
    """Return the difference between stages of a kind and the stored stage that is nearest to them.

    Args:
        stages: stages of one kind that would run.
        stored: keys of everything that is stored.
        store: where it is stored.
        sweep: the name whose records are looked at first.
    """
    if not stages:
        return None
    keys = _likely(stages, {key for key in stored if kind_of(key) == stages[0].kind}, store, sweep)
    known = [_fields(one) for one in store.manifests(keys)[0].values()]
    found: list[list[Difference]] = []
    for stage in stages[:SAMPLE]:
        planned = _flat([stage.work.VERSION, by_content(stage.params), stage.inputs])
        found += [_differences(before, planned) for before in known if before]
    return min(found, key=len)[0] if found else None


def _likely(stages: Sequence[Stage], alike: set[str], store: Store, sweep: str) -> list[str]:
    """Return stored keys of a kind: first those of the sweep's records, of the same methods."""
    table = read_table(store, sweep, "stages") if len(alike) > LOOKED_AT else None
    own: set[str] = set()
    if table is not None:
        same = table["method"].isin({stage.method for stage in stages})
        own = alike.intersection(table["key"][same].map(str))
    return [*sorted(own), *sorted(alike - own)][:LOOKED_AT]


def _fields(manifest: Manifest) -> dict[str, Json]:
    """Return the fields of a stored key; none if they were not recorded."""
    identity = manifest.info.get("identity")
    return _flat(identity) if isinstance(identity, list) and len(identity) == 3 else {}


def _flat(identity: Sequence[Json]) -> dict[str, Json]:
    version, params, inputs = identity
    flat: dict[str, Json] = {"version": version}
    for name, value in params.items() if isinstance(params, Mapping) else ():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        flat |= {f"{name}.{part}".rstrip("."): one for part, one in parts}
    read = inputs if isinstance(inputs, Mapping) else {}
    return flat | {f"input {role}": key for role, key in read.items()}


def _differences(stored: Mapping[str, Json], planned: Mapping[str, Json]) -> list[Difference]:
    fields = dict.fromkeys([*planned, *stored])
    return [
        Difference(field=field, stored=stored.get(field), planned=planned.get(field))
        for field in fields
        if stored.get(field) != planned.get(field)
    ]
