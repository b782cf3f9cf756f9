"""Candidates as a ledger remembers them, so that a study can be made anew from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from raysweep.errors import StoreError
from raysweep.identity import Json
from raysweep.results.json_fields import Fields, packed_parameters, refuse
from raysweep.sweep.tuning import Metrics, Parameters

FAILED, METRICS, REPLAYED = "failed", "metrics", "replayed"  # user attributes of Optuna's trials


@dataclass(frozen=True, kw_only=True)
class ToldCandidate:
    """A candidate that has ended.

    Attributes:
        study: its name.
        tied: digest of what the study's candidates are evaluated on.
        parameters: of the outer space.
        values: of the objectives; none where undefined.
        constraints: constraint → by how much it is broken; at most 0 where it holds.
        metrics: that are defined, over the instances.
        replayed: the decision parameters that were best with it.
        failed: why it failed; else empty.
        state: Optuna's, in capitals.
    """

    study: str
    tied: str
    parameters: Parameters
    values: tuple[float | None, ...]
    constraints: Mapping[str, float]
    metrics: Metrics
    replayed: Parameters
    failed: str
    state: str

    def attributes(self) -> dict[str, Json]:
        """Return the user attributes of Optuna's trial."""
        attributes: dict[str, Json] = {
            METRICS: {str(name): value for name, value in self.metrics.items()},
            REPLAYED: packed_parameters(self.replayed),
        }
        return attributes | ({FAILED: self.failed} if self.failed else {})

    def pack(self) -> dict[str, Json]:
        """Return the event as the ledger holds it."""
        return {
            "event": "told", "study": self.study, "tied": self.tied,
            "params": packed_parameters(self.parameters), "values": [*self.values],
            "constraints": {**self.constraints}, "attrs": self.attributes(), "state": self.state,
        }  # fmt: skip

    @classmethod
    def unpack(cls, line: Json) -> ToldCandidate:
        """Return the candidate that was packed.

        Raises:
            StoreError: if the line is damaged.
        """
        fields = Fields(line, "told")
        attributes = fields.mapping("attrs")
        return cls(
            study=fields.text("study"), tied=fields.text("tied"), state=fields.text("state"),
            parameters=fields.parameters("params"),
            values=fields.several("values", _value),
            constraints=fields.numbers("constraints"), metrics=attributes.metrics(METRICS),
            replayed=attributes.parameters(REPLAYED),
            failed=attributes.text(FAILED) if FAILED in attributes.given else "",
        )  # fmt: skip


def _value(given: Json, where: str) -> float | None:
    if given is not None and (not isinstance(given, int | float) or isinstance(given, bool)):
        refuse(where, "a number or null", given)
    return given


def told_candidates(
    lines: Iterable[Mapping[str, Json]], study: str, tied: str
) -> Iterator[ToldCandidate]:
    """Yield the candidates of a study that were evaluated on the same; damaged lines are skipped.

    Args:
        lines: events of a ledger.
        study: its name.
        tied: digest of what its candidates are evaluated on.
    """
    for line in lines:
        if (line.get("event"), line.get("study"), line.get("tied")) == ("told", study, tied):
            with contextlib.suppress(StoreError):
                yield ToldCandidate.unpack(dict(line))
