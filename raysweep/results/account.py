"""The account of a search: its candidates, importances, and the curve of a threshold, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from raysweep.identity import Json
from raysweep.results.json_fields import Fields, packed_parameters, packed_value, parameter_value
from raysweep.sweep.ranges import Parameters, ParameterValue
from raysweep.sweep.tuning import Metrics

NOTHING = "nothing"  # the held-out part of a search that holds out nothing
CandidateState = Literal["complete", "pruned", "fail", "running", "waiting"]


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """One candidate of a search's study.

    Attributes:
        number: in the order of asking.
        state: how it ended.
        parameters: outer ones, and the decision parameters that were best with them.
        metrics: over the instances that the search saw; empty if it failed.
        seconds: from asking to telling; none if it has not ended.
    """

    number: int
    state: CandidateState
    parameters: Parameters
    metrics: Metrics
    seconds: float | None = None

    def pack(self) -> dict[str, Json]:
        """Return the candidate as JSON."""
        return {
            "number": self.number, "state": self.state,
            "parameters": packed_parameters(self.parameters),
            "metrics": {str(name): value for name, value in self.metrics.items()},
            "seconds": self.seconds,
        }  # fmt: skip

    @classmethod
    def unpack(cls, given: Json, where: str = "candidate") -> CandidateRow:
        """Return the candidate that was packed, as `Tuned.unpack` does."""
        fields = Fields(given, where)
        ended = fields.given.get("seconds") is not None
        candidate = cls(
            number=fields.count("number"), state=fields.one_of("state", get_args(CandidateState)),
            parameters=fields.parameters("parameters"),
            metrics=fields.metrics("metrics"),
            seconds=fields.number("seconds") if ended else None,
        )  # fmt: skip
        return fields.read_as(candidate)


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """TPR and FPR at one value of a decision parameter, where the search is reported on."""

    value: float
    tpr: float
    fpr: float


@dataclass(frozen=True, kw_only=True)
class DecisionCurve:
    """TPR and FPR against the one decision parameter that was searched, and its chosen value."""

    parameter: str
    chosen: ParameterValue
    points: tuple[CurvePoint, ...]

    def pack(self) -> dict[str, Json]:
        """Return the curve as JSON."""
        points: list[Json] = [{"value": p.value, "tpr": p.tpr, "fpr": p.fpr} for p in self.points]
        return {"parameter": self.parameter, "chosen": packed_value(self.chosen), "points": points}

    @classmethod
    def unpack(cls, given: Json, where: str = "curve") -> DecisionCurve:
        """Return the curve that was packed, as `Tuned.unpack` does."""
        fields = Fields(given, where)

        def point(one: Json, where: str) -> CurvePoint:
            at = Fields(one, where)
            return CurvePoint(value=at.number("value"), tpr=at.number("tpr"), fpr=at.number("fpr"))

        curve = cls(
            parameter=fields.text("parameter"), points=fields.several("points", point),
            chosen=parameter_value(fields.get("chosen"), f"{where}.chosen"),
        )  # fmt: skip
        return fields.read_as(curve)


@dataclass(frozen=True, kw_only=True)
class SearchAccount:
    """The account of one search.

    Attributes:
        defense: label of the defense.
        held_out: as in its rows.
        history: every candidate of its study; none if it had no study.
        importance: how much each parameter matters; none if it had no study.
        curve: of its only decision parameter; none if it searched others, or nothing was found.
        attack: as in its rows; empty of a defense's search.
    """

    defense: str
    held_out: str
    history: tuple[CandidateRow, ...] | None = None
    importance: Mapping[str, float] | None = None
    curve: DecisionCurve | None = None
    attack: str = ""

    @property
    def subject(self) -> str:
        """The method that was searched, in words; an attack with the defense of its rows."""
        return f"{self.attack} against {self.defense}" if self.attack else self.defense

    @property
    def title(self) -> str:
        """The search in words."""
        known = f", {self.label}" if self.attack else f", {self.held_out} held out"
        return f"{self.subject}{known}"

    @property
    def search(self) -> tuple[str, str, str]:
        """The attack, if one was searched, the defense and what was held out, as its rows have."""
        return self.attack, self.defense, self.label

    @property
    def label(self) -> str:
        """The held-out part of a search, or the knowledge of an attacker."""
        if not self.attack:
            return self.held_out
        return "adaptive" if self.held_out == NOTHING else "transferred"

    def pack(self) -> dict[str, Json]:
        """Return the account as JSON."""
        packed: dict[str, Json] = {"defense": self.defense, "held_out": self.held_out}
        if self.attack:
            packed["attack"] = self.attack
        if self.history is not None:
            packed["history"] = [one.pack() for one in self.history]
        if self.importance is not None:
            packed["importance"] = {**self.importance}
        return packed | {"curve": None if self.curve is None else self.curve.pack()}

    @classmethod
    def unpack(cls, given: Json, where: str = "search") -> SearchAccount:
        """Return the account that was packed, as `Tuned.unpack` does."""
        fields = Fields(given, where)
        curve = fields.given.get("curve")
        studied, weighed = "history" in fields.given, "importance" in fields.given
        account = cls(
            defense=fields.text("defense"), held_out=fields.text("held_out"),
            history=fields.several("history", CandidateRow.unpack) if studied else None,
            importance=fields.numbers("importance") if weighed else None,
            curve=None if curve is None else DecisionCurve.unpack(curve, f"{where}.curve"),
            attack=fields.text("attack") if "attack" in fields.given else "",
        )  # fmt: skip
        return fields.read_as(account)
