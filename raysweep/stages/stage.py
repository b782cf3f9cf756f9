"""One unit of work, and what became of an attempt at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raysweep.identity import kind_of

STAGE_VERSIONS = {
    "prepare": 3,
    "poison": 1,
    "train": 1,
    "features": 2,
    "shard": 1,
    "defend": 1,
    "decide": 1,
    "evaluate": 3,
}


Status = Literal["done", "failed", "damaged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One unit of work.

    Attributes:
        key: identity, `kind-<digits>`.
        params: what to do; part of the identity.
        inputs: role → key of an artifact; part of the identity.
        reads: role → key of an artifact whose content `params` already identify (a decision).
        resource: the class `cpu` or `gpu`; never identity.
    """

    key: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    reads: Mapping[str, str]
    resource: str

    @property
    def kind(self) -> str:
        """The stage kind, the key's first word."""
        return kind_of(self.key)

    @property
    def grows(self) -> bool:
        """Whether its outcome may make trials grow new stages, as that of a decision does."""
        return self.kind == "decide"

    @property
    def regrown(self) -> bool:
        """Whether a stage like this may be what an outcome grows, as a training may."""
        return self.kind == "train"

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of everything that must be stored before this stage can run."""
        return (*self.inputs.values(), *self.reads.values())

    @property
    def method(self) -> str:
        """Name of the method at work, for tables and cost estimates."""
        for role in ("defense", "attack", "model", "dataset"):
            if role in self.params:
                return str(self.params[role]["name"])
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one attempt at one stage.

    Attributes:
        damaged: the key of the input that must be recomputed first, if status is `damaged`.
        lasting: whether trying again is pointless, if status is `failed`.
    """

    key: str
    status: Status
    host: str = ""
    seconds: float = 0.0
    pid: int = 0
    error: str = ""
    trace: str = ""
    damaged: str = ""
    lasting: bool = True
