"""The range of one tuned parameter, in the words of W&B's sweep files.

What only weights a random draw (normal forms, probabilities) is refused with the range to write
instead: a search covers a range, and its samplers learn by themselves where to look.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    field_validator,
    model_serializer,
    model_validator,
)

from raysweep.methods.value import Value

Scalar = bool | int | float | str | None
ParameterValue = Scalar | tuple["ParameterValue", ...]
Parameters = Mapping[str, ParameterValue]
Number = int | float
Distribution = Literal[
    "uniform", "log_uniform_values", "int_uniform", "q_uniform", "q_log_uniform_values",
    "categorical", "constant",
]  # fmt: skip
QUANTIZED = ("q_uniform", "q_log_uniform_values")
LOGARITHMIC = ("log_uniform_values", "q_log_uniform_values")
MOST = 2**53  # up to which whole numbers are numbers of Optuna and of JSON, too
DIGITS = 12  # of a multiple of `q`: 3 · 0.1 is 0.3


def plain(value: Any) -> Any:
    """Return a value of a parameter, its lists as tuples.

    Raises:
        ValueError: if it is neither a number, text, true, false, null, nor a list of such.
    """
    if isinstance(value, list | tuple):
        return tuple(plain(one) for one in value)
    if not isinstance(value, Scalar):
        raise ValueError("must be a number, text, true, false or null, or a list of such")
    return _bounded(value)


def _bounded(given: Any) -> Any:
    if isinstance(given, int | float) and not -MOST <= given <= MOST:  # NaN, too
        raise ValueError(f"must be a number from -{MOST} to {MOST}")
    return given


def _number(given: Any) -> Any:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ValueError("must be a number")
    return _bounded(given)


Bound = Annotated[int | float, BeforeValidator(_number)]
Plain = Annotated[Any, BeforeValidator(plain)]


def _conditions(given: Any) -> Any:
    """Return conditions, a single value as the only one that is allowed."""
    if not isinstance(given, Mapping):
        return given
    return {
        name: plain(values) if isinstance(values, list | tuple) else (plain(values),)
        for name, values in given.items()
    }


class Range(Value):
    """The values of one parameter that are searched, as W&B's sweep files write them.

    From `min` to `max`, the listed `values`, or the one `value`; without any of them, the method's
    own suggestion.
    """

    value: Plain = Field(None, description="the only value")
    values: tuple[Plain, ...] | None = Field(None, min_length=1, description="the only values")
    min: Bound | None = Field(None, description="the lowest value; whole numbers if max is one too")
    max: Bound | None = Field(None, description="the highest value")
    q: Annotated[Bound, Field(gt=0)] = Field(
        1, description="of q_uniform and q_log_uniform_values: multiples of it alone"
    )
    step: Annotated[Bound, Field(gt=0)] | None = Field(
        None, description="from min in steps of it, instead of every value"
    )
    distribution: Distribution = Field(
        "uniform",
        description="log_uniform_values searches the logarithm evenly, q_uniform multiples of q",
    )
    when: Annotated[dict[str, tuple[Plain, ...]], BeforeValidator(_conditions)] = Field(
        {},
        description="other parameter → its values with which this one is searched, such as "
        "{rule: sprt}; else it keeps the defense's own value",
    )

    _written: tuple[str, ...] = PrivateAttr(())

    @field_validator("values", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="wrap")
    @classmethod
    def _in_order(cls, given: Any, handler: ModelWrapValidatorHandler[Range]) -> Range:
        if isinstance(given, Mapping):
            _refuse_draws(given)
        made = handler(given)
        if isinstance(given, Mapping):
            made._written = tuple(given)
        return made

    @model_validator(mode="after")
    def _holds_something(self) -> Range:
        given = self.model_fields_set - {"when"}
        if given & {"value", "values"}:
            self._check_listed(given)
        elif given:
            self._check_span(given)
        return self

    def _check_listed(self, given: set[str]) -> None:
        if "values" in given and self.values is None:
            raise ValueError("values must be a list, such as [0.1, 0.2]")
        field = "value" if "value" in given else "values"
        word = {"value": "constant", "values": "categorical"}[field]
        others = given - {field, "distribution"}
        if others or ("distribution" in given and self.distribution != word):
            raise ValueError(
                f"takes {field} alone, or min, max and distribution; {field} is {word}"
            )

    def _check_span(self, given: set[str]) -> None:
        if self.min is None or self.max is None or not self.min < self.max:
            raise ValueError(f"needs min below max, or values, got {self.min} and {self.max}")
        if self.distribution in ("categorical", "constant"):
            raise ValueError(f"{self.distribution} takes values, or value, and no min and max")
        if self.log and self.min <= 0:
            raise ValueError(f"needs min above 0 for {self.distribution}, got {self.min}")
        whole = isinstance(self.min, int) and isinstance(self.max, int)
        if self.distribution == "int_uniform" and not whole:
            raise ValueError(f"needs whole min and max for int_uniform, got {self.min}, {self.max}")
        if "q" in given and self.distribution not in QUANTIZED:
            raise ValueError(f"q goes with {' or '.join(QUANTIZED)}; take step, or one of them")
        if self.step is not None and self.distribution not in ("uniform", "int_uniform"):
            raise ValueError(f"step goes with uniform and int_uniform, not {self.distribution}")
        if not self.multiples(2):
            raise ValueError(f"holds no multiple of q, {self.q}, from {self.min} to {self.max}")

    @model_serializer
    def pack(self) -> dict[str, Any]:
        """Return the fields as they were written, in their order."""
        return {name: getattr(self, name) for name in self._written}

    @property
    def suggested(self) -> bool:
        """Whether the method's own suggestion is to be searched."""
        return not self.model_fields_set - {"when"}

    @property
    def listed(self) -> tuple[ParameterValue, ...] | None:
        """The only values; none of a range from `min` to `max`."""
        return (self.value,) if "value" in self.model_fields_set else self.values

    @property
    def log(self) -> bool:
        """Whether the logarithm is searched evenly."""
        return self.distribution in LOGARITHMIC

    @property
    def span(self) -> tuple[int, int] | tuple[float, float]:
        """The lowest and the highest value: of whole numbers if both are, else floats."""
        assert self.min is not None and self.max is not None, "listed values have no span"
        low, high = self.min, self.max
        if self.spacing is not None:
            origin, spacing = self._origin, self.spacing
            low = self._multiple(math.ceil(round((low - origin) / spacing, 9)))
            high = self._multiple(math.floor(round((high - origin) / spacing, 9)))
        if isinstance(low, int) and isinstance(high, int):
            return low, high
        return float(low), float(high)

    @property
    def spacing(self) -> Number | None:
        """The distance of neighboring values; none where every number of the span is one."""
        return self.q if self.distribution in QUANTIZED else self.step

    @property
    def _origin(self) -> Number:
        """The value from which the distances count: 0 of multiples of `q`, `min` of steps."""
        assert self.min is not None
        return 0 if self.distribution in QUANTIZED else self.min

    def _multiple(self, number: int) -> Number:
        assert self.spacing is not None
        value = self._origin + number * self.spacing
        return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")

    def multiples(self, most: int) -> list[Number]:
        """Return the first values of a span that has a spacing; of others its ends."""
        low, high = self.span
        if self.spacing is None:
            return [low, high]
        first = round((low - self._origin) / self.spacing)
        last = round((high - self._origin) / self.spacing)
        return [self._multiple(number) for number in range(first, min(last, first + most - 1) + 1)]

    def nearest(self, value: Number) -> Number:
        """Return the value of the span that is nearest to a number."""
        if self.spacing is None:
            return value
        low, high = self.span
        inner = self._multiple(round((value - self._origin) / self.spacing))
        return min(max(inner, low), high)

    def applies(self, parameters: Parameters) -> bool:
        """Return whether the conditions on other parameters are met."""
        return all(parameters.get(name) in allowed for name, allowed in self.when.items())


def _refuse_draws(given: Mapping[str, Any]) -> None:
    """Refuse words of W&B that only weight a random draw, or whose bounds are exponents."""
    word = given.get("distribution")
    if word in ("log_uniform", "q_log_uniform", "inv_log_uniform", "inv_log_uniform_values"):
        raise ValueError(_exponents(str(word), given))
    if word in ("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"):
        raise ValueError(_instead_of_normal(str(word), given))
    if "probabilities" in given or word == "categorical_w_probabilities":
        raise ValueError(
            "probabilities weight random draws, and a search tries every listed value as it "
            "learns; leave them out: values alone"
        )


def _exponents(word: str, given: Mapping[str, Any]) -> str:
    """Return why bounds that are exponents are refused, and the same range by its values."""
    instead = f"{'q_' if word.startswith('q_') else ''}log_uniform_values"
    if word.startswith("inv_"):
        return f"{word} is not searched here; write distribution: {instead} with min and max"
    bounds = _numbers(given, "min", "max")
    if not bounds or max(map(abs, bounds)) > 100:
        return f"{word} has exponents of e as bounds; write distribution: {instead} with the values"
    low, high = (f"{math.exp(bound):.4g}" for bound in bounds)
    return (
        f"{word} has exponents of e as bounds in W&B: these are the values {low} to {high}; write "
        f"{{min: {low}, max: {high}, distribution: {instead}}} if they are meant, or the same with "
        f"the values that are"
    )


def _instead_of_normal(word: str, given: Mapping[str, Any]) -> str:
    """Return why a normal form is refused, and the range of its middle 95 %."""
    found = _numbers(given, "mu", "sigma")
    text = f"{word} weights random draws, and a search covers a range; write min and max"
    if "beta" in word or not found or found[1] <= 0 or abs(found[0]) + 2 * found[1] > 100:
        return text
    ends: Iterable[float] = (found[0] - 2 * found[1], found[0] + 2 * found[1])
    log = "log_normal" in word
    low, high = (f"{math.exp(end) if log else end:.4g}" for end in ends)
    quantized = "q_" if word.startswith("q_") else ""
    named = f"{quantized}{'log_uniform_values' if log else 'uniform'}"
    return f"{text}, such as {{min: {low}, max: {high}, distribution: {named}}} (mu ± 2 sigma)"


def _numbers(given: Mapping[str, Any], *names: str) -> list[float]:
    """Return the numbers of some fields; empty unless all are numbers."""
    values = [given.get(name) for name in names]
    known = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return known if len(known) == len(names) else []
