"""The content of `tuned.json`: what a tuning run leaves, and its one JSON form.

The columns `tuned_<metric>`, `default_<metric>` and `oracle_<metric>`, with `_low` and `_high` of
the first, are written and read here alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from pydantic import ValidationError

from raysweep.errors import StoreError
from raysweep.identity import Json
from raysweep.results.account import SearchAccount
from raysweep.results.json_fields import Fields, packed_parameters
from raysweep.sweep.ranges import Parameters
from raysweep.sweep.tuning import METRICS, Knowledge, MetricName, Tune


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
class Attacker:
    """The attack of a row that an attacker's search found, and what its numbers rest on.

    Attributes:
        attack: its label and rate, as the sweep file has it.
        seen: the defenses and seeds that the search met.
        measured: the seeds that the row is measured on, and how many settings these are.
        stages: how many stages all candidates of the search needed.
    """

    attack: str
    seen: str
    measured: str
    stages: int

    def pack(self) -> dict[str, Json]:
        """Return the columns that it adds to a row."""
        return {
            "attack": self.attack, "seen": self.seen, "measured": self.measured,
            "stages": self.stages,
        }  # fmt: skip

    @classmethod
    def unpack(cls, fields: Fields) -> Attacker | None:
        """Return the attacker of a row; none in a row of a defense's search."""
        if "attack" not in fields.given:
            return None
        return cls(
            attack=fields.text("attack"), seen=fields.text("seen"),
            measured=fields.text("measured"), stages=fields.count("stages"),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TunedRow:
    """One search and point of its Pareto front, reported where it was held out; or a mean of rows.

    Where an attacker searches, it is reported on one defense, and the attack as the sweep file has
    it has a row of its own.

    Attributes:
        defense: label of the defense.
        labels: which labels the search was allowed to see, or which defenses an attacker knew.
        held_out: the part that was left out, `NOTHING`, or `mean of <count>`.
        point: number on the Pareto front, the best by the first objective is 0.
        parameters: what the search chose; empty in a mean.
        tried: how many candidates the search evaluated.
        seconds, gpu_seconds: that the stages of all its candidates took.
        note: why there are no better parameters, or what is to be said beside; else empty.
        metrics: what is reported; empty if the method's own parameters never ran.
        kept_own: whether nothing was found, so that the parameters are the method's own; written
            only where it is so.
        attacker: only where an attacker searches.
    """

    defense: str
    labels: Knowledge
    held_out: str
    point: int
    parameters: Parameters
    tried: int
    seconds: float
    gpu_seconds: float
    note: str
    metrics: Mapping[MetricName, TunedMetric] = field(default_factory=dict)
    kept_own: bool = False
    attacker: Attacker | None = None

    @property
    def title(self) -> str:
        """The search, and what it is reported on, in words."""
        if self.attacker is None:
            return f"{self.defense}, held out {self.held_out}"
        return f"{self.attacker.attack} against {self.defense}, {self.labels}"

    @property
    def search(self) -> tuple[str, str, str]:
        """The attack, if one was searched, the defense and what was held out, or known."""
        if self.attacker is None:
            return "", self.defense, self.held_out
        return self.attacker.attack, self.defense, self.labels

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
            "note": self.note, **({"kept_own": True} if self.kept_own else {}),
            **(self.attacker.pack() if self.attacker else {}), **self.columns(),
        }  # fmt: skip

    @classmethod
    def unpack(cls, given: Json, where: str = "row") -> TunedRow:
        """Return the row that was packed.

        Raises:
            StoreError: if it is damaged; the message names the field, below `where`.
        """
        fields = Fields(given, where)
        row = cls(
            defense=fields.text("defense"), labels=fields.one_of("labels", get_args(Knowledge)),
            held_out=fields.text("held_out"), point=fields.count("point"),
            parameters=fields.parameters("parameters"), tried=fields.count("tried"),
            seconds=fields.number("seconds"), gpu_seconds=fields.number("gpu_seconds"),
            note=fields.text("note"), metrics=_metrics(fields),
            kept_own="kept_own" in fields.given and fields.one_of("kept_own", (True,)),
            attacker=Attacker.unpack(fields),
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
