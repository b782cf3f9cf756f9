"""Candidates as a ledger remembers them, so that a study can be made anew from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.errors import StoreError
from raysweep.identity import Json
from raysweep.results.json_fields import Fields, packed_parameters, refuse
from raysweep.sweep.tuning import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
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

    study: str
    tied: str
    params: Parameters
    values: tuple[float | None, ...]
    constraints: Mapping[str, float]
    attrs: Mapping[str, Any]
    state: str

    def pack(self) -> dict[str, Json]:
        """Return the event as the ledger holds it."""
        return {
            "event": "told", "study": self.study, "tied": self.tied,
            "params": packed_parameters(self.params), "values": [*self.values],
            "constraints": {**self.constraints}, "attrs": {**self.attrs}, "state": self.state,
        }  # fmt: skip

    @classmethod
    def unpack(cls, line: Json) -> Told:
        """Return the candidate that was packed.

        Raises:
            StoreError: if the line is damaged.
        """
        fields = Fields(line, "told")
        return cls(
            study=fields.text("study"), tied=fields.text("tied"), state=fields.text("state"),
            params=fields.parameters("params"), values=fields.several("values", _value),
            constraints=fields.numbers("constraints"), attrs=fields.mapping("attrs").given,
        )  # fmt: skip


def _value(given: Json, where: str) -> float | None:
    if given is not None and (not isinstance(given, int | float) or isinstance(given, bool)):
        refuse(where, "a number or null", given)
    return given


def told_lines(lines: Iterable[Mapping[str, Json]], study: str, tied: str) -> list[Told]:
    """Return the candidates of a study that were evaluated on the same; damaged lines are skipped.

    Args:
        lines: events of a ledger.
        study: name of the study.
        tied: digest of what the study is evaluated on.
    """
    told = []
    for line in lines:
        if (line.get("event"), line.get("study"), line.get("tied")) == ("told", study, tied):
            with contextlib.suppress(StoreError):
                told.append(Told.unpack(dict(line)))
    return told
