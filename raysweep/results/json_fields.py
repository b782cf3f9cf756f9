"""Reads stored JSON field by field: what is missing or of another type is said by its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol, TypeVar, cast

from raysweep.errors import StoreError
from raysweep.identity import Json
from raysweep.sweep.ranges import Parameters, ParameterValue
from raysweep.sweep.tuning import METRICS, MetricName

T = TypeVar("T")


class Packed(Protocol):
    """An object with a JSON form."""

    def pack(self) -> dict[str, Json]:
        """Return the object as JSON."""


P = TypeVar("P", bound=Packed)


class Fields:
    """The fields of a JSON mapping.

    Each method raises a StoreError that names the field, if it is missing or of another type.
    """

    def __init__(self, given: Json, where: str) -> None:
        if not isinstance(given, dict):
            refuse(where, "a mapping", given)
        self.given: Mapping[str, Json] = given
        self.where = where

    def at(self, name: str) -> str:
        """Return the place of a field, for messages."""
        return f"{self.where}.{name}" if self.where else name

    def get(self, name: str) -> Json:
        """Return a field as it is."""
        if name not in self.given:
            raise StoreError(f"{self.at(name)} is missing")
        return self.given[name]

    def text(self, name: str) -> str:
        """Return a field that is text."""
        given = self.get(name)
        return given if isinstance(given, str) else refuse(self.at(name), "text", given)

    def one_of(self, name: str, allowed: tuple[T, ...]) -> T:
        """Return a field that is one of the allowed values."""
        given = self.get(name)
        known = [one for one in allowed if one == given]
        return known[0] if known else refuse(self.at(name), f"one of {allowed}", given)

    def count(self, name: str) -> int:
        """Return a field that is a whole number."""
        given = self.get(name)
        if not isinstance(given, int) or isinstance(given, bool):
            refuse(self.at(name), "a whole number", given)
        return given

    def number(self, name: str) -> float:
        """Return a field that is a number."""
        given = self.get(name)
        if not isinstance(given, int | float) or isinstance(given, bool):
            refuse(self.at(name), "a number", given)
        return given

    def mapping(self, name: str) -> Fields:
        """Return a reader of a field that is a mapping."""
        return Fields(self.get(name), self.at(name))

    def parameters(self, name: str) -> Parameters:
        """Return a mapping of parameters to values; lists become tuples."""
        inner = self.mapping(name)
        return {key: parameter_value(value, inner.at(key)) for key, value in inner.given.items()}

    def numbers(self, name: str) -> dict[str, float]:
        """Return a mapping of any names to numbers."""
        inner = self.mapping(name)
        return {key: inner.number(key) for key in inner.given}

    def metrics(self, name: str) -> dict[MetricName, float]:
        """Return a mapping of metrics to numbers."""
        inner = self.mapping(name)
        names: dict[str, MetricName] = {metric: metric for metric in METRICS}
        for key in inner.given:
            if key not in names:
                refuse(self.at(name), f"a mapping of metrics ({', '.join(METRICS)})", key)
        return {names[key]: inner.number(key) for key in inner.given}

    def several(self, name: str, unpack: Callable[[Json, str], T]) -> tuple[T, ...]:
        """Return the items of a list, each unpacked from its JSON and its place."""
        given = self.get(name)
        if not isinstance(given, list):
            refuse(self.at(name), "a list", given)
        return tuple(unpack(one, f"{self.at(name)}[{n}]") for n, one in enumerate(given))

    def read_as(self, made: P) -> P:
        """Return an object made of the fields, once it is sure that it packs every one of them."""
        for name in self.given.keys() - made.pack().keys():
            raise StoreError(f"{self.at(name)} is unknown")
        return made


def parameter_value(given: Json, where: str) -> ParameterValue:
    """Return the value of a parameter; lists become tuples."""
    if isinstance(given, dict):
        refuse(where, "a value or a list of values", given)
    if isinstance(given, list):
        return tuple(parameter_value(one, f"{where}[{number}]") for number, one in enumerate(given))
    return cast("ParameterValue", given)


def packed_value(value: ParameterValue) -> Json:
    """Return the JSON of a parameter's value; tuples become lists."""
    return [packed_value(one) for one in value] if isinstance(value, tuple) else value


def packed_parameters(parameters: Parameters) -> dict[str, Json]:
    """Return the JSON of parameters."""
    return {name: packed_value(value) for name, value in parameters.items()}


def refuse(where: str, wanted: str, given: Json) -> NoReturn:
    """Raise an error that names a field, its rule and its value."""
    raise StoreError(f"{where or 'the whole'} must be {wanted}, got {json.dumps(given)[:60]}")
