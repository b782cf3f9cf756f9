"""Messages between the driver and a worker: a batch of stages, and its results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from raysweep.environment import Environment
from raysweep.provenance import Code
from raysweep.run.limits import Limit
from raysweep.stages.stage import Packed, Result

# Of dataclasses too; `asdict` would copy all that they hold.
_JSON = json.JSONEncoder(default=lambda one: {f.name: getattr(one, f.name) for f in fields(one)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Stages for one worker, and the settings to run them with.

    A host reads `code`, `ticket` and `refusing` in the packed form, before it imports
    anything of raysweep.

    Attributes:
        resource: the class of its stages, `cpu` or `gpu`.
        code: what the driver runs; a host with any other code refuses the batch.
        ticket: where a worker says that it ended before it began the batch, in Ray's key-value
            store.
        refusing: the prefix under which hosts say there why they refuse.
        prefix: of everything that is said there of the run.
        trial: Tune's trial that the batch is.
        limits: key of a stage → the longest that it may run.
        larger: resources that its worker takes beyond, or in place of, those of the class.
        lacking: the prefix under which they say there which files they lack.
        marker: path of a file in the store by which hosts know that it is the same.
        gpus: the share of a GPU that each stage holds.
        store: URI of the store.
        environment: the driver's settings.
        provenance: what artifacts record of the run.
        refused: ids of the nodes that the batch must not go to.
        stages: none where a worker is to be started and nothing is ready yet.
    """

    resource: str
    code: Code
    ticket: str
    refusing: str
    prefix: str
    trial: str
    limits: Mapping[str, Limit]
    larger: Mapping[str, float]
    lacking: str
    marker: str
    gpus: float
    store: str
    environment: Environment
    provenance: Mapping[str, str]
    refused: tuple[str, ...]
    stages: tuple[Packed, ...]

    def pack(self) -> dict[str, str]:
        """Return the batch as Tune's config: field → text, JSON where the field is no text."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {n: v if isinstance(v, str) else _JSON.encode(v) for n, v in given.items()}

    @classmethod
    def unpack(cls, config: Mapping[str, str]) -> Batch:
        """Return the batch that a config was packed from."""
        code, environment = json.loads(config["code"]), json.loads(config["environment"])
        return cls(
            resource=config["resource"],
            code=Code(**{**code, "modules": tuple(code["modules"])}),
            ticket=config["ticket"],
            refusing=config["refusing"],
            prefix=config["prefix"],
            trial=config["trial"],
            limits={k: Limit(**v) for k, v in json.loads(config["limits"]).items()},
            larger=json.loads(config["larger"]),
            lacking=config["lacking"],
            marker=config["marker"],
            gpus=json.loads(config["gpus"]),
            store=config["store"],
            environment=Environment(**{**environment, "secrets": tuple(environment["secrets"])}),
            provenance=json.loads(config["provenance"]),
            refused=tuple(json.loads(config["refused"])),
            stages=tuple(Packed(**stage) for stage in json.loads(config["stages"])),
        )


def pack_results(results: Iterable[Result]) -> str:
    """Return results as text."""
    return _JSON.encode([*results])


def unpack_results(text: str) -> list[Result]:
    """Return the results that a text was packed from."""
    return [Result(**result) for result in json.loads(text)]
