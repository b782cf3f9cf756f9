"""The heartbeat of a driver: a small file in the store that says what the driver does now.

A driver writes it every few seconds, with a count that rises. A reader that sees the count stand
still for several of those spans, by the reader's own clock, takes the driver for dead: clocks of
two hosts are never compared. A request to stop is a file beside it, which the driver finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from raysweep.store.store import Store

BEAT_SECONDS = 2.0
BEATS_UNTIL_DEAD = 8
DRIVERS = "drivers"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStage:
    """A stage that a worker performs now.

    Attributes:
        key: of the stage.
        host: where it runs.
        pid: of the worker process there.
        device: where it computes, `cpu` or `cuda`.
        seconds: how long it has run.
        fraction: how much of it is done, from 0 to 1; 0 while that is not told.
        doing: what it does now; empty while that is not told.
    """

    key: str
    host: str
    pid: int
    device: str
    seconds: float
    fraction: float = 0.0
    doing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindCount:
    """The stages of one kind in a run.

    Attributes:
        wanted: how many the plan has by now.
        stored: how many of them are stored, and count.
        failed: how many have failed, or wait for one that has.
        out: how many are handed out to workers.
        ran: how many this run has finished.
        seconds: that those took together.
    """

    wanted: int
    stored: int
    failed: int
    out: int
    ran: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The state that a driver tells of itself.

    Attributes:
        run: id of the run; its ledger has the same name.
        folder: name of the sweep's folder, `name`, or `name/tune` of a tuning run.
        host: where the driver runs.
        pid: of the driver there.
        machine: the running kernel and the namespace in which `pid` counts; empty if not known.
        count: rises with every heartbeat.
        state: whether stages are handed out, or the run was told to stop, or has ended.
        started: when the run began, in seconds since 1970 by the driver's clock; to show only.
        held: keys of the stages that this driver has claimed: they are handed out.
        kinds: stage kind → its numbers.
        running: the stages that workers perform now.
        left_seconds: how long the rest will take; None while too few stages were timed.
    """

    run: str
    folder: str
    host: str
    pid: int
    count: int
    state: Literal["running", "stopping", "ended"]
    started: float
    machine: str = ""
    held: tuple[str, ...] = ()
    kinds: Mapping[str, KindCount] = field(default_factory=dict)
    running: tuple[RunningStage, ...] = ()
    left_seconds: float | None = None

    def pack(self) -> bytes:
        """Return the heartbeat as JSON."""
        return _HEARTBEAT.dump_json(self)


_HEARTBEAT = TypeAdapter(Heartbeat)


def unpack(raw: bytes) -> Heartbeat | None:
    """Return the heartbeat that bytes hold; None if they hold none."""
    try:
        return _HEARTBEAT.validate_json(raw, strict=True)
    except ValidationError:
        return None


def path_of(run: str) -> str:
    """Return the path of a driver's heartbeat."""
    return f"{DRIVERS}/{run}.json"


def stop_path_of(run: str) -> str:
    """Return the path of the request that a driver should stop."""
    return f"{DRIVERS}/{run}.stop"


def raw_heartbeats(store: Store) -> dict[str, bytes]:
    """Return the heartbeats of all drivers that have left one, by run, as they stand there.

    They say nothing on who of them is alive: `liveness.Drivers` does, after several looks.
    """
    runs = (path.removeprefix(f"{DRIVERS}/") for path in store.list(DRIVERS))
    names = [run.removesuffix(".json") for run in runs if run.endswith(".json")]
    found = {run: store.read(path_of(run)) for run in names}
    return {run: raw for run, raw in found.items() if raw is not None}


def heartbeats(store: Store) -> dict[str, Heartbeat]:
    """Return the heartbeats of all drivers that have left one, by run, without damaged ones."""
    beats = {run: unpack(raw) for run, raw in raw_heartbeats(store).items()}
    return {run: beat for run, beat in beats.items() if beat is not None}
