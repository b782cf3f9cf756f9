"""The `tune` section of a sweep file: what is searched, objectives, constraints, and labels.

The one who searches is a defender, who improves a defense, or an attacker, who improves an attack
against the defenses of the sweep: what is better for the one is worse for the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from raysweep.methods.value import Value
from raysweep.sweep.ranges import Plain, Range, Scalar

MetricName = Literal[
    "tpr",
    "fpr",
    "youden",
    "auroc",
    "ap",
    "tpr_at_1fpr",
    "false_alarms",
    "verdict_correct",
    "ca",
    "asr",
    "ra",
    "seconds",
    "gpu_seconds",
    "victim_asr",
    "victim_ca",
    "rate",
    "l2",
    "linf",
    "ssim",
]
Metrics = Mapping[MetricName, float]
Goal = Literal["maximize", "minimize"]
CostName = Literal["seconds", "gpu_seconds"]
Who = Literal["defense", "attack"]
Labels = Literal["clean_only", "transfer", "oracle"]
# What parameters rest on: the labels that a defender saw, or the defenses that an attacker knew.
Knowledge = Literal["clean_only", "transfer", "oracle", "default", "adaptive", "transferred"]

# Fields that stored settings have only where they are used.
LATER = ("first", "stop", "report_on", "who", "against", "budget")
# What stored scores answer for, what needs a model that was trained after the decision, and costs.
SCORED: tuple[MetricName, ...] = ("tpr", "fpr", "youden", "auroc", "ap", "tpr_at_1fpr")
WITH_CLEAN: tuple[MetricName, ...] = ("false_alarms", "verdict_correct")  # of trials at rate 0 too
REPLAYED: tuple[MetricName, ...] = (*SCORED, *WITH_CLEAN)
RANKED: frozenset[MetricName] = frozenset({"auroc", "ap", "tpr_at_1fpr"})  # alike for all decisions
EVALUATED: tuple[MetricName, ...] = ("ca", "asr", "ra")
COSTS: tuple[CostName, ...] = ("seconds", "gpu_seconds")
# Of an attack by itself: of the victim that nothing defends, and how far its inputs are changed.
VISIBILITY: tuple[MetricName, ...] = ("l2", "linf", "ssim")
ATTACKED: tuple[MetricName, ...] = ("victim_asr", "victim_ca", "rate", *VISIBILITY)
METRICS: tuple[MetricName, ...] = (*REPLAYED, *EVALUATED, *COSTS, *ATTACKED)
UNBOUNDED: frozenset[MetricName] = frozenset({*COSTS, "l2"})  # every other is a share, or an index
SMALLER_IS_BETTER: Mapping[Who, frozenset[MetricName]] = {
    "defense": frozenset({"fpr", "false_alarms", "asr", *COSTS}),
    "attack": frozenset({
        "tpr", "youden", "auroc", "ap", "tpr_at_1fpr", "verdict_correct", "ra", "rate", "l2",
        "linf", *COSTS,
    }),
}  # fmt: skip

_ONE: dict[str, Any] = {
    "anyOf": [
        {"enum": list(METRICS)},
        {
            "type": "object", "required": ["name"], "additionalProperties": False,
            "properties": {
                "name": {"enum": list(METRICS)}, "goal": {"enum": ["maximize", "minimize"]},
            },
        },
    ]
}  # fmt: skip
_SEVERAL = {"anyOf": [*_ONE["anyOf"], {"type": "array", "items": _ONE, "minItems": 1}]}


class Objective(Value):
    """A metric and its direction."""

    name: MetricName = Field(description="what is improved")
    goal: Goal = Field(description="direction; by default the one that is better")

    @model_validator(mode="before")
    @classmethod
    def _directed(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"name": given}
        if isinstance(given, Mapping) and "goal" not in given:
            return {**given, "goal": better(given.get("name"), "defense")}
        return given

    def loss(self, metrics: Metrics) -> float:
        """Return the metric so that smaller is better; NaN is worse than everything."""
        value = metrics[self.name]
        if math.isnan(value):
            return math.inf
        return value if self.goal == "minimize" else -value


def better(metric: object, who: Who) -> Goal:
    """Return the direction in which a metric is better for the one who searches."""
    return "minimize" if metric in SMALLER_IS_BETTER[who] else "maximize"


def _of_attacker(objective: Any) -> Any:
    """Return an objective as an attacker means it, where no direction is given."""
    if isinstance(objective, str):
        objective = {"name": objective}
    if isinstance(objective, Mapping) and "goal" not in objective:
        return {**objective, "goal": better(objective.get("name"), "attack")}
    return objective


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A bound on a metric, such as `fpr <= 0.05`."""

    metric: MetricName
    sign: Literal["<=", ">="]
    bound: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read `metric <= number` or `metric >= number`.

        Raises:
            ValueError: if it is neither.
        """
        names = "|".join(METRICS)
        match = re.fullmatch(rf"\s*({names})\s*(<=|>=)\s*([0-9.eE+-]+)\s*", text)
        try:
            assert match is not None and math.isfinite(float(match[3]))
            return cls(metric=match[1], sign=match[2], bound=float(match[3]))  # type: ignore[arg-type]
        except (AssertionError, ValueError):
            raise ValueError(
                f"must be like 'fpr <= 0.05' (metrics: {', '.join(METRICS)}), got {text!r}"
            ) from None

    def excess(self, values: Metrics) -> float:
        """Return by how much it is broken; at most 0 where it holds, infinity if it is unknown."""
        value = values[self.metric]
        if math.isnan(value):
            return math.inf
        return value - self.bound if self.sign == "<=" else self.bound - value


class Stop(Value):
    """The ends of a search before its `trials` are used up; whichever comes first."""

    patience: int | None = Field(
        None, ge=1, description="candidates in a row that are no better than the best before them"
    )
    hours: float | None = Field(
        None, gt=0, description="of one run of the driver; what is under way then is finished"
    )
    gpu_hours: float | None = Field(
        None, gt=0, description="of GPU that the candidates of one search have used together"
    )


FirstPoint = dict[str, dict[str, Plain]]
Part = Literal["attack", "dataset", "rate", "seed"]
Held = Part | Literal["defense"]


class Tune(Value):
    """The search for a better defense, or attack: ranges, goals, and the labels that it may see."""

    who: Who = Field(
        "defense", description="who searches; attack: the attacker, against the sweep's defenses"
    )
    against: Literal["own", "tuned"] = Field(
        "own",
        description="the defense that an attacker meets: as written; tuned: its decision answers "
        "each candidate",
    )
    budget: float = Field(
        0.05, ge=0, le=1, description="FPR that a defense may have that answers an attacker"
    )
    parameters: dict[str, dict[str, Range]] = Field(
        {},
        description="defense, or attack → parameter → {min, max, distribution}, {values}, or {}: "
        "its own",
    )
    first: tuple[FirstPoint, ...] = Field(
        (), description="candidates to try first, such as - strip: {overlays: 8}"
    )
    stop: Stop = Field(Stop(), description="ends of a search before all its trials")
    metric: Annotated[tuple[Objective, ...], WithJsonSchema(_SEVERAL)] = Field(
        (Objective(name="tpr", goal="maximize"),),
        min_length=1,
        description="what is improved: a metric, {name, goal}, or a list of them (Pareto front)",
    )
    constraints: tuple[str, ...] = Field(("fpr <= 0.05",), description="such as fpr <= 0.05")
    over: Literal["mean", "worst"] = Field("mean", description="of the instances")
    labels: Labels = Field("transfer", description="what the search may see")
    hold_out: Part = Field(
        "attack", description="what is left out, one after the other; attack: a family of attacks"
    )
    report_on: dict[Part, tuple[Scalar, ...]] = Field(
        {},
        description="a third split, such as {seed: [3, 4]}: no search sees it, all are measured "
        "on it alone",
    )
    sampler: Literal["tpe", "gp", "random", "grid", "nsga2"] = Field(
        "tpe", description="Optuna's; grid cuts every range so that trials cover the space"
    )
    pruner: Literal["none", "median", "hyperband", "wilcoxon"] = Field(
        "none",
        description="Optuna's, over instances: a bad candidate is not run on all (wilcoxon: > 4)",
    )
    trials: int = Field(200, ge=1, le=1_000_000, description="candidates of each Optuna study")
    seed: int = Field(0, ge=0, lt=2**31, description="of the sampler")

    @model_validator(mode="before")
    @classmethod
    def _of_one_side(cls, given: Any) -> Any:
        """Give the objectives of an attacker, whose default is the ASR, its directions."""
        if not isinstance(given, Mapping) or given.get("who") != "attack":
            return given
        metric = given.get("metric", "asr")
        listed = metric if isinstance(metric, list | tuple) else [metric]
        return {**given, "metric": [_of_attacker(one) for one in listed]}

    @field_validator("metric", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        listed = value if isinstance(value, list | tuple) else [value]
        return tuple(Objective.model_validate(one) for one in listed)

    @field_validator("constraints", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value)

    @field_validator("constraints")
    @classmethod
    def _parsed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            Constraint.parse(text)
        return value

    @field_validator("first", mode="before")
    @classmethod
    def _points(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("report_on", mode="before")
    @classmethod
    def _parts(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}

    @model_serializer(mode="wrap")
    def pack(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields as JSON values; those of `LATER` only where they are used.

        Studies are tied to a digest of the fields, and fields that are unused must not change it.
        """
        fields = type(self).model_fields
        packed: dict[str, Any] = handler(self)
        return {
            name: value for name, value in packed.items()
            if name not in LATER or getattr(self, name) != fields[name].default
        }  # fmt: skip

    @property
    def bounds(self) -> tuple[Constraint, ...]:
        """The constraints, parsed."""
        return tuple(Constraint.parse(text) for text in self.constraints)

    @property
    def named_metrics(self) -> tuple[MetricName, ...]:
        """Every metric that is improved or bounded, once."""
        names = [o.name for o in self.metric] + [c.metric for c in self.bounds]
        return tuple(dict.fromkeys(names))

    @property
    def held_out_by(self) -> Held:
        """The axis whose values are left out one after the other: of an attacker, the defense."""
        return "defense" if self.who == "attack" else self.hold_out

    @property
    def needs_models(self) -> bool:
        """Whether a metric needs models that are trained after the decision."""
        return bool({*self.named_metrics} & {*EVALUATED})

    @model_validator(mode="after")
    def _keeps_apart(self) -> Tune:
        budgets = [bound.metric == "fpr" and bound.sign == "<=" for bound in self.bounds]
        if self.labels == "clean_only" and not all(budgets):
            raise ValueError(
                "constraints under labels: clean_only can only be a budget of false alarms, such "
                "as fpr <= 0.05: other metrics need the labels of an attack"
            )
        if self.pruner != "none" and len(self.metric) > 1:
            raise ValueError("pruner works on one metric; set pruner: none, or name one metric")
        if self.stop.patience and len(self.metric) > 1:
            raise ValueError("stop.patience works on one metric; name one, or leave it out")
        return self
