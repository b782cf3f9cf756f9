"""Families of names: a prefix, and a name behind it, written and read in one place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Names that share a prefix: `key_train` and `key_defend` are of the family `key_`."""

    prefix: str

    def of(self, name: str) -> str:
        """Return the family's name for something, e.g. `key_train` for `train`."""
        return self.prefix + name

    def within(self, names: Iterable[object]) -> dict[str, str]:
        """Return the members among some names, in order: what stands behind the prefix → name."""
        every = map(str, names)
        return {name[len(self.prefix) :]: name for name in every if name.startswith(self.prefix)}


INPUT = Family("input_")  # metrics of a detector of inputs
SEPARABILITY = Family("separability_")  # of each space of a defense
HITS = Family("hits_")  # of each test input, behind a share


def cases(metric: str) -> str:
    """Return the name of the number of cases that a metric is a share of."""
    return f"{metric}_n"
