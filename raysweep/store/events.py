"""The lines of a ledger: one class per kind, which packs itself to JSON.

The fields stand in the order of the line. A field that is None is left out of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

LATEST = 1e11  # seconds since 1970 that still are a date


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """The part that all kinds share.

    Attributes:
        t: seconds since 1970; 0 until a ledger has written the line.
    """

    t: Annotated[float, Field(ge=0, lt=LATEST)] = 0

    def pack(self) -> bytes:
        """Return the line as JSON, without its end."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        present = {name: value for name, value in values.items() if value is not None}
        return json.dumps(present, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(_Line):
    """A run begins: how many trials and stages there are, and how many stages are stored."""

    event: Literal["start"] = "start"
    trials: int
    stages: int
    cached: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch(_Line):
    """Stages are handed out; `ready` counts the stages that could be handed out next."""

    event: Literal["dispatch"] = "dispatch"
    keys: tuple[str, ...]
    ready: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(_Line):
    """A stage is stored: how long it took, and in which process; pid 0 if that is not known."""

    event: Literal["done"] = "done"
    key: str
    seconds: float
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(_Line):
    """A stage has failed for good."""

    event: Literal["failed"] = "failed"
    key: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamFailed(_Line):
    """A stage cannot run, since another one, the cause, has failed."""

    event: Literal["upstream_failed"] = "upstream_failed"
    key: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(_Line):
    """An attempt at a stage came to nothing; the error may be the key of a damaged input."""

    event: Literal["retry"] = "retry"
    key: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged(_Line):
    """A stored artifact cannot be read and is discarded."""

    event: Literal["damaged"] = "damaged"
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(_Line):
    """A stored result counts: its input ran again, the same, or another driver has stored it."""

    event: Literal["kept"] = "kept"
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grow(_Line):
    """New stages: from an outcome that trials waited for, or with new trials (then no key)."""

    event: Literal["grow"] = "grow"
    key: str
    stages: int
    cached: int | None = None
    trials: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(_Line):
    """A remark for the user beside the results."""

    event: Literal["note"] = "note"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateEnd(_Line):
    """The end of a candidate of an Optuna study, enough to enter it into a new study.

    Attributes:
        study: name of the study.
        tied: digest of what the study is evaluated on.
        params: parameter → value.
        values: one per objective; None where it is undefined.
        constraints: constraint as text → by how much it is exceeded.
        attrs: attributes of the trial.
        state: Optuna's name of the trial's state.
    """

    event: Literal["told"] = "told"
    study: str
    tied: str
    params: Mapping[str, Any]
    values: tuple[float | None, ...]
    constraints: Mapping[str, float]
    attrs: Mapping[str, Any]
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End(_Line):
    """A run has come to its end; whether everything was run that can be run."""

    event: Literal["end"] = "end"
    complete: bool


Event = (
    Start
    | Dispatch
    | Done
    | Failed
    | UpstreamFailed
    | Retry
    | Damaged
    | Kept
    | Grow
    | Note
    | CandidateEnd
    | End
)
_EVENT: TypeAdapter[Event] = TypeAdapter(
    Annotated[Event, Field(discriminator="event")], config=ConfigDict(strict=True)
)


def unpack(line: bytes) -> Event | None:
    """Return the event of a line; None if it is none, of an unknown kind, or lacks something."""
    try:
        event = _EVENT.validate_json(line)
    except ValidationError:
        return None
    return event if event.t else None
