"""The columns of the records, named once: one row per trial, one per stage.

The row of a trial holds, in this order:

    who          which trial it is: the fields of `Who`
    parameters   `<part>.<parameter>` for every part of the trial, e.g. `recipe.epochs`
    status       whether it finished, and what went wrong: the fields of `Status`
    metrics      what its evaluation measured: the names of `metrics.judgment`, and its counts
    origin       where and when it was evaluated: the fields of `Origin`
    found        `found.<fact>`: what its attack and its defense measured of their own runs
    costs        the fields of `Costs`
    keys         `key_<role>`: the artifacts that its numbers come from

The poison rate is the column `rate`. Attacks have it among their parameters, too, so that a row
holds the same number once more as `attack.rate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from raysweep.metrics.names import Family
from raysweep.metrics.parts import Metric
from raysweep.sweep.spec import AXES

Cell = str | int | float | bool | None
TrialStatus = Literal["ok", "pending", "failed", "upstream_failed"]
StageStatus = Literal["done", "cached", "pending", "failed", "upstream_failed"]
KEYS = Family("key_")
FOUND = Family("found.")
PARAMETERS = {part: Family(f"{part}.") for part in AXES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """The columns that say of which trial a row is.

    Attributes:
        sweep: name of the sweep.
        trial: a digest of everything that the user chose.
        dataset, model: labels, parameters included.
        attack, attack_name: label and method.
        rate: poison rate, of the training set.
        evades: whether the attack changes test inputs alone.
        target: the class that triggered inputs are to be given.
        defense, defense_name: label and method.
        kind: of the defense.
        badges: what attack and defense assume, joined by commas.
        seed: of the trial.
    """

    sweep: str
    trial: str
    dataset: str
    model: str
    attack: str
    attack_name: str
    rate: float
    evades: bool
    target: int
    defense: str
    defense_name: str
    kind: str
    badges: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Whether a trial finished.

    Attributes:
        status: `ok` if it has metrics.
        error: what went wrong.
        error_stage: key of the stage where it did.
        log: file of that stage's log on this machine.
    """

    status: TrialStatus
    error: str = ""
    error_stage: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The origin of a trial's evaluation: host, commit, seconds since 1970."""

    host: str
    git_commit: str
    finished_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds that a trial took.

    Attributes:
        own_seconds: of stages that only this trial uses.
        shared_seconds: its even part of stages that several use.
        standalone_seconds: of everything that it needs, as if it were run by itself.
        gpu_seconds: of GPUs, its even part of shared stages.
    """

    own_seconds: float
    shared_seconds: float
    standalone_seconds: float
    gpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One row of the records.

    Attributes:
        parameters: part → parameter → value; lists and mappings as JSON.
        metrics: as the evaluation packed them; empty before it.
        origin: none before the evaluation.
        found: fact → number, of attack and defense; none where it is not finite.
        keys: role → key of the stage, in the order of work.
    """

    who: Who
    parameters: Mapping[str, Mapping[str, Cell]]
    status: Status
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    origin: Origin | None = None
    found: Mapping[str, float | None] = field(default_factory=dict)
    costs: Costs
    keys: Mapping[str, str]

    def pack(self) -> dict[str, Cell]:
        """Return the row as it is stored: column → value."""
        parameters = {
            PARAMETERS[part].of(name): value
            for part, own in self.parameters.items()
            for name, value in own.items()
        }
        return {
            **asdict(self.who),
            **parameters,
            **asdict(self.status),
            **self.metrics,
            **(asdict(self.origin) if self.origin else {}),
            **{FOUND.of(fact): value for fact, value in self.found.items()},
            **asdict(self.costs),
            **{KEYS.of(role): key for role, key in self.keys.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One row of the table of stages.

    Attributes:
        key, kind, method: of the stage.
        status: `done` if this launch computed it, `cached` if it was stored before.
        seconds, gpu_seconds: that it took; 0 if it is not stored.
        trials: how many need it.
        host: where it ran.
        error, log: of a stage that failed.
        device_name: name of the processor or GPU that it ran on.
        peak_memory_bytes: the most memory that its process held on the host meanwhile.
        peak_gpu_memory_bytes: the most that it held on the GPU; none without a GPU.
        queue_seconds: how long it waited, from its inputs' being stored to its beginning; none
            where this launch did not run it.

    What is not known is none, and an empty name: of stages from before it was recorded.
    """

    key: str
    kind: str
    method: str
    status: StageStatus
    seconds: float
    gpu_seconds: float
    trials: int
    host: str
    error: str
    log: str = ""
    device_name: str = ""
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    queue_seconds: float | None = None


WHO, STATUS, ORIGIN, COSTS, STAGE = (
    tuple(column.name for column in fields(group))
    for group in (Who, Status, Origin, Costs, StageRow)
)
# Without these a file is no table of ours; the others came later or need not be there.
TRIAL_REQUIRED = frozenset((*WHO, *STATUS)) - {"sweep", "evades"}
STAGE_REQUIRED = frozenset(STAGE) - {
    "log", "device_name", "peak_memory_bytes", "peak_gpu_memory_bytes", "queue_seconds",
}  # fmt: skip


def is_parameter(column: str) -> bool:
    """Return whether a column holds a parameter of a part of the trial."""
    part, dot, _ = column.partition(".")
    return bool(dot) and part in PARAMETERS
