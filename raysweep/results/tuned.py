"""The content of `tuned.json`: what a tuning run leaves, and its one JSON form.

The columns `tuned_<metric>`, `default_<metric>` and `oracle_<metric>`, with `_low` and `_high` of
the first, are written and read here alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from pydantic import ValidationError

from raysweep.errors import StoreError
from raysweep.identity import Json
from raysweep.results.json_fields import Fields, packed_parameters, packed_value, parameter_value
from raysweep.sweep.ranges import Parameters, ParameterValue
from raysweep.sweep.tuning import METRICS, Labels, MetricName, Metrics, Tune

NOTHING = "nothing"  # the held-out part of a search that holds out nothing
CandidateState = Literal["complete", "pruned", "fail", "running", "waiting"]


@dataclass(frozen=True, kw_only=True)
class TunedMetric:
    """One metric on what was held out, with three sets of parameters.

    Attributes:
        tuned: with those that the search chose.
        default: with the method's own.
        oracle: with the best, for what was held out, of all that was tried.
        interval: beside `tuned`, (low, high); none in a row of means.
    """

    tuned: float
    default: float
    oracle: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class TunedRow:
    """One search and point of its Pareto front, reported where it was held out; or a mean of rows.

    Attributes:
        defense: label of the defense.
        labels: which labels the search was allowed to see.
        held_out: the part that was left out, `NOTHING`, or `mean of <count>`.
        point: number on the Pareto front, the best by the first objective is 0.
        parameters: what the search chose; empty in a mean.
        tried: how many candidates the search evaluated.
        seconds, gpu_seconds: that the stages of all its candidates took.
        note: why there are no better parameters, or what is to be said beside; else empty.
        metrics: what is reported; empty if the method's own parameters never ran.
        kept_own: whether nothing was found, so that the parameters are the method's own; written
            only where it is so.
    """

    defense: str
    labels: Labels
    held_out: str
    point: int
    parameters: Parameters
    tried: int
    seconds: float
    gpu_seconds: float
    note: str
    metrics: Mapping[MetricName, TunedMetric] = field(default_factory=dict)
    kept_own: bool = False

    def columns(self) -> dict[str, float]:
        """Return the metrics as a table's columns: `tuned_tpr`, `default_tpr`, `tuned_tpr_low`."""
        every = self.metrics.items()
        intervals = {name: one.interval for name, one in every if one.interval is not None}
        if not intervals:  # a mean is written metric by metric
            return {
                f"{who}_{name}": value
                for name, one in every
                for who, value in _compared(one).items()
            }
        columns = {
            f"{who}_{name}": _compared(one)[who]
            for who in ("tuned", "default", "oracle")
            for name, one in every
        }
        for name, (low, high) in intervals.items():
            columns |= {f"tuned_{name}_low": low, f"tuned_{name}_high": high}
        return columns

    def pack(self) -> dict[str, Json]:
        """Return the row as JSON."""
        return {
            "defense": self.defense, "labels": self.labels, "held_out": self.held_out,
            "point": self.point, "parameters": packed_parameters(self.parameters),
            "tried": self.tried, "seconds": self.seconds, "gpu_seconds": self.gpu_seconds,
            "note": self.note, **({"kept_own": True} if self.kept_own else {}), **self.columns(),
        }  # fmt: skip

    @classmethod
    def unpack(cls, given: Json, where: str = "row") -> TunedRow:
        """Return the row that was packed.

        Raises:
            StoreError: if it is damaged; the message names the field, below `where`.
        """
        fields = Fields(given, where)
        row = cls(
            defense=fields.text("defense"), labels=fields.one_of("labels", get_args(Labels)),
            held_out=fields.text("held_out"), point=fields.count("point"),
            parameters=fields.parameters("parameters"), tried=fields.count("tried"),
            seconds=fields.number("seconds"), gpu_seconds=fields.number("gpu_seconds"),
            note=fields.text("note"), metrics=_metrics(fields),
            kept_own="kept_own" in fields.given and fields.one_of("kept_own", (True,)),
        )  # fmt: skip
        return fields.read_as(row)


def _compared(one: TunedMetric) -> dict[str, float]:
    return {"tuned": one.tuned, "default": one.default, "oracle": one.oracle}


def _metrics(fields: Fields) -> dict[MetricName, TunedMetric]:
    """Return the metrics of a row, in the order of its columns."""
    columns: dict[str, MetricName] = {f"tuned_{name}": name for name in METRICS}
    metrics = {}
    for name in [columns[column] for column in fields.given if column in columns]:
        low, high = f"tuned_{name}_low", f"tuned_{name}_high"
        known = low in fields.given
        metrics[name] = TunedMetric(
            tuned=fields.number(f"tuned_{name}"), default=fields.number(f"default_{name}"),
            oracle=fields.number(f"oracle_{name}"),
            interval=(fields.number(low), fields.number(high)) if known else None,
        )  # fmt: skip
    return metrics


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
        """Return the candidate that was packed, as `TunedRow.unpack` does."""
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
        """Return the curve that was packed, as `TunedRow.unpack` does."""
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
    """

    defense: str
    held_out: str
    history: tuple[CandidateRow, ...] | None = None
    importance: Mapping[str, float] | None = None
    curve: DecisionCurve | None = None

    def pack(self) -> dict[str, Json]:
        """Return the account as JSON."""
        packed: dict[str, Json] = {"defense": self.defense, "held_out": self.held_out}
        if self.history is not None:
            packed["history"] = [one.pack() for one in self.history]
        if self.importance is not None:
            packed["importance"] = {**self.importance}
        return packed | {"curve": None if self.curve is None else self.curve.pack()}

    @classmethod
    def unpack(cls, given: Json, where: str = "search") -> SearchAccount:
        """Return the account that was packed, as `TunedRow.unpack` does."""
        fields = Fields(given, where)
        curve = fields.given.get("curve")
        studied, weighed = "history" in fields.given, "importance" in fields.given
        account = cls(
            defense=fields.text("defense"), held_out=fields.text("held_out"),
            history=fields.several("history", CandidateRow.unpack) if studied else None,
            importance=fields.numbers("importance") if weighed else None,
            curve=None if curve is None else DecisionCurve.unpack(curve, f"{where}.curve"),
        )  # fmt: skip
        return fields.read_as(account)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The results of a tuning run: the content of `tuned.json`.

    Attributes:
        settings: the sweep file's `tune` section.
        rows: one per search and point of its front.
        means: one per defense, over what was held out.
        searches: how each search went.
    """

    settings: Tune
    rows: tuple[TunedRow, ...]
    means: tuple[TunedRow, ...]
    searches: tuple[SearchAccount, ...]

    def pack(self) -> bytes:
        """Return the bytes of `tuned.json`."""
        packed = {
            "settings": self.settings.model_dump(mode="json"),
            "rows": [row.pack() for row in self.rows],
            "means": [row.pack() for row in self.means],
            "searches": [search.pack() for search in self.searches],
        }
        return json.dumps(packed, indent=1).encode()

    @classmethod
    def unpack(cls, text: bytes, where: str = "tuned.json") -> Tuned:
        """Return the tuning that was packed.

        Args:
            text: the bytes of `tuned.json`.
            where: its path or URI, for the message.

        Raises:
            StoreError: if it is damaged; the message names the field.
        """
        try:
            fields = Fields(json.loads(text), "")
            return cls(
                settings=_settings(fields.get("settings")),
                rows=fields.several("rows", TunedRow.unpack),
                means=fields.several("means", TunedRow.unpack) if "means" in fields.given else (),
                searches=fields.several("searches", SearchAccount.unpack),
            )
        except (ValueError, RecursionError, StoreError) as error:
            detail = error if isinstance(error, StoreError) else "it is no JSON"
            raise StoreError(
                f"{where} is damaged: {detail}; tune the sweep again to write it anew"
            ) from None


def _settings(given: Json) -> Tune:
    try:
        return Tune.model_validate_json(json.dumps(given))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in ("settings", *first["loc"]))
        raise StoreError(f"{at}: {first['msg']}") from None
