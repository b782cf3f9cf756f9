"""The answer to the question of a sweep, for each arena and attack; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from raysweep.metrics.intervals import Estimate
from raysweep.metrics.names import cases
from raysweep.reports.tables import interval_text, percent
from raysweep.results.cells import with_arena
from raysweep.results.columns import PARAMETERS, WHO
from raysweep.results.findings import HELD_ASR, HELD_LOSS, Finding, findings, overall
from raysweep.results.grouping import finished, floors

RULE = (
    f"A defense holds where, at every rate, the 95 % interval of the ASR ends at or under "
    f"{100 * HELD_ASR:g} % and that of the lost clean accuracy at or under "
    f"{100 * HELD_LOSS:g} points."
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """The answer on one attack.

    Attributes:
        attack: its label.
        undefended: ASR without a defense, in percent, with interval and n.
        clean: ASR of its trigger on a clean model, in percent; empty if rate 0 was not run.
        failed: why the attack failed; empty if it worked.
        groups: what is said of defenses → their labels.
    """

    attack: str
    undefended: str
    clean: str
    failed: str
    groups: dict[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer on one arena: the best defense if one can be named, and a line for each attack."""

    arena: str
    best: str
    test: str
    among: Sequence[str]
    lines: Sequence[Line]

    @property
    def sentence(self) -> str:
        """Whether one defense is the best, in a sentence."""
        return "" if self.best or not self.among else "No defense is shown to be the best."


def columns(found: Sequence[Answer]) -> list[str]:
    """Return the columns of the answer: each statement that holds of some defense."""
    lines = [line for one in found for line in one.lines]
    return [
        said
        for said in dict.fromkeys(said for line in lines for said in line.groups)
        if any(line.groups.get(said) for line in lines)
    ]


def answers(rows: pd.DataFrame) -> list[Answer]:
    """Return the answer on each arena that has been attacked; none without finished trials."""
    if rows.empty or finished(rows).empty:
        return []
    rows = _narrow(rows)
    every, known = findings(rows), {one.arena: one for one in overall(rows)}
    met = with_arena(rows)
    floor = floors(met, met["arena"])
    groups = met[met["defense_name"] != "none"].groupby(["arena", "attack"], sort=False)
    labels = {
        (str(arena), str(attack)): list(map(str, part["defense"].unique()))
        for (arena, attack), part in groups
    }
    out = []
    for arena in dict.fromkeys(one.arena for one in every):
        found = known.get(arena)
        lines = [
            _line(one, floor.get((arena, one.attack)), labels.get((arena, one.attack), []))
            for one in every
            if one.arena == arena
        ]
        out.append(
            Answer(
                arena=arena, best=found.best if found else "", test=found.test if found else "",
                among=found.among if found else (), lines=lines,
            )
        )  # fmt: skip
    return out


def _narrow(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that findings are made of; records have a hundred more."""
    metrics = [name for metric in ("asr", "ca") for name in (metric, cases(metric))]
    recipe = PARAMETERS["recipe"].within(rows.columns).values()
    own = rows[[name for name in (*WHO, "status", *metrics, *recipe) if name in rows]]
    # Rows are chosen a thousand times, and columns of objects are chosen from faster.
    texts = [name for name, dtype in own.dtypes.items() if dtype == "str"]
    return own.astype(dict.fromkeys(texts, object))


def _line(found: Finding, floor: float | None, labels: Sequence[str]) -> Line:
    named = {*found.holds, *found.indistinct, *found.worse, *found.untested}
    groups = {
        "holds": found.holds,
        "only lowers the ASR": [one for one in labels if one not in named],
        "not distinguishable from none": found.indistinct,
        "worse than none": found.worse, "not measured at every rate": found.untested,
    }  # fmt: skip
    undefended = "not measured" if found.undefended is None else measured(found.undefended)
    return Line(
        attack=found.attack, undefended=undefended, failed=found.failed,
        clean="" if floor is None else f"{percent(floor)} %",
        groups={} if found.failed else groups,
    )  # fmt: skip


def measured(one: Estimate) -> str:
    """Return an estimate in percent, with its interval or its values, and n."""
    value = interval_text(one.value, one.low, one.high, one.values)
    return f"{value} %, n = {one.n} {one.unit}".strip()
