"""The `tune` section of a sweep file: what is searched, objectives, constraints, and labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from raysweep.methods.value import Value

MetricName = Literal[
    "tpr",
    "fpr",
    "youden",
    "auroc",
    "ap",
    "tpr_at_1fpr",
    "ca",
    "asr",
    "ra",
    "seconds",
    "gpu_seconds",
]
Metrics = Mapping[MetricName, float]
Scalar = bool | int | float | str | None
ParameterValue = Scalar | tuple["ParameterValue", ...]
Parameters = Mapping[str, ParameterValue]
Goal = Literal["maximize", "minimize"]
CostName = Literal["seconds", "gpu_seconds"]
Labels = Literal["clean_only", "transfer", "oracle"]

# What stored scores answer for, what needs a model that was trained after the decision, and costs.
REPLAYED: tuple[MetricName, ...] = ("tpr", "fpr", "youden", "auroc", "ap", "tpr_at_1fpr")
RANKED: frozenset[MetricName] = frozenset({"auroc", "ap", "tpr_at_1fpr"})  # alike for all decisions
EVALUATED: tuple[MetricName, ...] = ("ca", "asr", "ra")
COSTS: tuple[CostName, ...] = ("seconds", "gpu_seconds")
METRICS: tuple[MetricName, ...] = (*REPLAYED, *EVALUATED, *COSTS)
SMALLER_IS_BETTER: frozenset[MetricName] = frozenset({"fpr", "asr", *COSTS})

MOST = 2**53  # up to which whole numbers are numbers of Optuna and of JSON, too
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
            better = "minimize" if given.get("name") in SMALLER_IS_BETTER else "maximize"
            return {**given, "goal": better}
        return given

    def loss(self, metrics: Metrics) -> float:
        """Return the metric so that smaller is better; NaN is worse than everything."""
        value = metrics[self.name]
        if math.isnan(value):
            return math.inf
        return value if self.goal == "minimize" else -value


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
        """Return by how much it is broken; at most 0 where it holds, or nothing is known."""
        value = values[self.metric]
        if math.isnan(value):
            return 0.0
        return value - self.bound if self.sign == "<=" else self.bound - value


def _bounded(given: Any) -> Any:
    if isinstance(given, int | float) and not -MOST <= given <= MOST:  # NaN, too
        raise ValueError(f"must be a number from -{MOST} to {MOST}")
    return given


def _number(given: Any) -> Any:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ValueError("must be a number")
    return _bounded(given)


def _scalar(given: Any) -> Any:
    if not isinstance(given, Scalar):
        raise ValueError("must be a number, text, true, false or null")
    return _bounded(given)


Bound = Annotated[int | float, BeforeValidator(_number)]


class Range(Value):
    """The values of one parameter that are searched, as W&B's sweep files write them.

    From `min` to `max`, or the listed `values`; without either, the method's own suggestion.
    """

    min: Bound | None = Field(None, description="the lowest value; whole numbers if max is one too")
    max: Bound | None = Field(None, description="the highest value")
    values: tuple[Annotated[Scalar, BeforeValidator(_scalar)], ...] | None = Field(
        None, min_length=1, description="the only values"
    )
    distribution: Literal["uniform", "log_uniform_values"] = Field(
        "uniform", description="log_uniform_values searches the logarithm evenly"
    )

    _written: tuple[str, ...] = PrivateAttr(())

    @field_validator("values", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="wrap")
    @classmethod
    def _in_order(cls, given: Any, handler: ModelWrapValidatorHandler[Range]) -> Range:
        made = handler(given)
        if isinstance(given, Mapping):
            made._written = tuple(given)
        return made

    @model_validator(mode="after")
    def _holds_something(self) -> Range:
        if self.values is not None:
            if len(self.model_fields_set) > 1:
                raise ValueError("takes values alone, or min, max and distribution")
        elif self.model_fields_set:
            if self.min is None or self.max is None or not self.min < self.max:
                raise ValueError(f"needs min below max, or values, got {self.min} and {self.max}")
            if self.log and self.min <= 0:
                raise ValueError(f"needs min above 0 for log_uniform_values, got {self.min}")
        return self

    @model_serializer
    def pack(self) -> dict[str, Scalar | tuple[Scalar, ...]]:
        """Return the fields as they were written, in their order."""
        return {name: getattr(self, name) for name in self._written}

    @property
    def suggested(self) -> bool:
        """Whether the method's own suggestion is to be searched."""
        return not self.model_fields_set

    @property
    def log(self) -> bool:
        """Whether the logarithm is searched evenly."""
        return self.distribution == "log_uniform_values"

    @property
    def span(self) -> tuple[int, int] | tuple[float, float]:
        """The lowest and the highest value: of whole numbers if both are, else floats."""
        assert self.min is not None and self.max is not None, "listed values have no span"
        if isinstance(self.min, int) and isinstance(self.max, int):
            return self.min, self.max
        return float(self.min), float(self.max)


class Tune(Value):
    """The search for a better defense: its ranges, its goals, and the labels that it may see."""

    parameters: dict[str, dict[str, Range]] = Field(
        {}, description="defense → parameter → {min, max, distribution}, {values}, or {}: its own"
    )
    metric: Annotated[tuple[Objective, ...], WithJsonSchema(_SEVERAL)] = Field(
        (Objective(name="tpr", goal="maximize"),),
        min_length=1,
        description="what is improved: a metric, {name, goal}, or a list of them (Pareto front)",
    )
    constraints: tuple[str, ...] = Field(("fpr <= 0.05",), description="such as fpr <= 0.05")
    over: Literal["mean", "worst"] = Field("mean", description="of the instances")
    labels: Labels = Field("transfer", description="what the search may see")
    hold_out: Literal["attack", "dataset", "rate", "seed"] = Field(
        "attack", description="what is left out, one after the other"
    )
    sampler: Literal["tpe", "gp", "random", "grid", "cmaes", "nsga2"] = Field(
        "tpe", description="Optuna's"
    )
    pruner: Literal["none", "median", "hyperband", "wilcoxon"] = Field(
        "none",
        description="Optuna's, over instances: a bad candidate is not run on all (wilcoxon: > 4)",
    )
    trials: int = Field(200, ge=1, le=1_000_000, description="candidates of each Optuna study")
    seed: int = Field(0, ge=0, lt=2**31, description="of the sampler")

    @field_validator("metric", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        listed = value if isinstance(value, list | tuple) else [value]
        return tuple(Objective.model_validate(one) for one in listed)

    @field_validator("constraints", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value)

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
        if self.sampler == "cmaes" and (self.constraints or len(self.metric) > 1):
            raise ValueError(
                "sampler cmaes takes one metric and no constraints; take tpe, gp or nsga2, or set "
                "constraints: []"
            )
        return self
