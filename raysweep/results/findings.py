"""Findings of a sweep: which defenses hold which attacks, and whether one is the best; pure.

A defense holds an attack where the upper end of its ASR is at most `HELD_ASR` and the upper end of
the clean accuracy that it costs at most `HELD_LOSS`, at every rate of the attack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from raysweep.arrays import Floats
from raysweep.metrics.intervals import LEVEL, Estimate, of_model, of_seeds
from raysweep.metrics.pairs import holm
from raysweep.results.cells import DER, estimate, with_arena
from raysweep.results.comparison import (
    Contrast,
    common_settings,
    contrast,
    difference_bounds,
    judged,
)
from raysweep.results.grouping import attacked, failure_texts, finished, numbers

HELD_ASR = 0.10
HELD_LOSS = 0.02
ALPHA = 0.05
CONTROL = "control"
UNDEFENDED = "none"
Shares = Floats  # (4,): ASR, its inputs, CA, its inputs
State = Literal["holds", "worse", "indistinct", "better", "untested"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The findings on one attack in one arena, over all its rates.

    Attributes:
        arena, attack: where, and the attack's label.
        undefended: ASR without a defense; none where no undefended trial finished.
        failed: why the attack failed at every rate, in words; empty if it worked at one.
        holds: defenses that hold it.
        worse: defenses whose ASR is above that without a defense.
        indistinct: defenses whose ASR cannot be told from that without a defense.
        untested: defenses without a finished trial at some rate.
    """

    arena: str
    attack: str
    undefended: Estimate | None
    failed: str
    holds: tuple[str, ...]
    worse: tuple[str, ...]
    indistinct: tuple[str, ...]
    untested: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Overall:
    """The best defense of one arena, if the sweep says which it is.

    Attributes:
        arena: where.
        best: label of the defense of the highest DER; empty if it cannot be told from another.
        test: how that was tested, in words: the test, its largest p, n and the correction.
        among: defenses that met every attack and cannot be told from the one of the highest DER,
            that one first.
    """

    arena: str
    best: str
    test: str
    among: tuple[str, ...]


def findings(rows: pd.DataFrame) -> list[Finding]:
    """Return the findings on each attack of each arena, in the order of the rows."""
    if rows.empty:
        return []
    merged = with_arena(rows)
    found = failure_texts(merged, merged["arena"])
    merged = merged.assign(failed=found != "", found=found)
    merged = merged[attacked(merged)]
    return [
        _finding(part) for _, part in merged.groupby(["arena", "attack"], sort=False)
    ]  # fmt: skip


def _finding(part: pd.DataFrame) -> Finding:
    """Return the findings on the rows of one attack in one arena."""
    alone = finished(part[part["defense_name"] == UNDEFENDED])
    worked = part[~part["failed"]]
    failed = part["found"].iloc[0] if worked.empty else ""
    labels = list(dict.fromkeys(part.loc[part["defense_name"] != UNDEFENDED, "defense"]))
    # Bonferroni's, over all that is compared with no defense here.
    level = 1 - (1 - LEVEL) / max(len(labels), 1)
    states = _states(worked, labels, level)
    return Finding(
        arena=str(part["arena"].iloc[0]), attack=str(part["attack"].iloc[0]),
        undefended=None if alone.empty else estimate(alone, "asr"), failed=str(failed),
        holds=_all(states, {"holds"}), worse=_any(states, "worse"),
        indistinct=_all(states, {"indistinct"}), untested=_any(states, "untested"),
    )  # fmt: skip


def _all(states: dict[str, set[State]], wanted: set[State]) -> tuple[str, ...]:
    return tuple(label for label, found in states.items() if found == wanted)


def _any(states: dict[str, set[State]], wanted: State) -> tuple[str, ...]:
    return tuple(label for label, found in states.items() if wanted in found)


def _states(worked: pd.DataFrame, labels: Sequence[str], level: float) -> dict[str, set[State]]:
    """Return the states of each defense at the rates of an attack that worked there."""
    states: dict[str, set[State]] = {label: set() for label in labels}
    for _, part in worked.groupby("rate", sort=False):
        models = _models(part)
        for label in labels:
            found = _state(models.get(label, {}), models.get(UNDEFENDED, {}), level)
            states[label].add(found)
    return states


def _models(part: pd.DataFrame) -> dict[str, dict[int, Shares]]:
    """Return defense → seed → its shares, of the finished trials of one cell with an ASR."""
    done = finished(part)
    done = done[numbers(done, "asr").notna()]
    shares = np.stack([numbers(done, c).to_numpy(float) for c in ("asr", "asr_n", "ca", "ca_n")], 1)
    models: dict[str, dict[int, Shares]] = {}
    for label, seed, own in zip(done["defense"], done["seed"], shares, strict=True):
        models.setdefault(str(label), {})[int(seed)] = own
    return models


def _state(own: dict[int, Shares], alone: dict[int, Shares], level: float) -> State:
    if not own:
        return "untested"
    both = [seed for seed in own if seed in alone]
    pairs = np.array([[*own[seed], *alone[seed]] for seed in both]).reshape(-1, 8)
    lost = difference_bounds(pairs[:, [6, 7, 2, 3]])[1]
    if upper_end([(one[0], one[1]) for one in own.values()]) <= HELD_ASR and lost <= HELD_LOSS:
        return "holds"
    low, high = difference_bounds(pairs[:, [0, 1, 4, 5]], level)
    if math.isnan(low) or low <= 0 <= high:
        return "indistinct"
    return "worse" if low > 0 else "better"


def upper_end(models: Sequence[tuple[float, float]]) -> float:
    """Return the upper end of a share within one cell; of two models, the higher of theirs.

    Args:
        models: (share, number of inputs) of each.
    """
    found = of_seeds([value for value, _ in models], [n for _, n in models])
    if found.bounded:
        return found.high
    ends = [of_model(value, n).high for value, n in models]
    return math.nan if any(map(math.isnan, ends)) else max(ends)


def overall(rows: pd.DataFrame) -> list[Overall]:
    """Return, for each arena in which an attack worked, the best defense if it can be named."""
    if rows.empty:
        return []
    return [_overall(str(arena), part) for arena, part in judged(rows).groupby("arena", sort=False)]


def _overall(arena: str, part: pd.DataFrame) -> Overall:
    met = _met_everything(part)
    compared = part[part["defense"].isin([*met, UNDEFENDED])]
    table = common_settings(compared, DER)
    met = [label for label in met if label in table.columns]
    if not met or table.empty or UNDEFENDED not in table.columns:
        return Overall(arena=arena, best="", test="No defense met every attack.", among=())
    means = table.groupby(level=0).mean().mean()
    top, *rest = sorted(met, key=lambda label: -means[label])
    found = [contrast(compared, top, other, DER) for other in (*rest, UNDEFENDED)]
    corrected = holm([one.p for one in found])
    beaten = [p < ALPHA and one.value > 0 for one, p in zip(found, corrected, strict=True)]
    alike = [label for label, below in zip(rest, beaten, strict=False) if not below]
    named = all(beaten)
    said = _said(top, float(means[top]), found, max(corrected), named)
    return Overall(arena=arena, best=top if named else "", test=said, among=(top, *alike))


def _met_everything(part: pd.DataFrame) -> list[str]:
    """Return the defenses, controls apart, with a finished trial at every attack and rate."""
    every = part.groupby(["attack", "rate"]).ngroups
    done = finished(part)
    met = done[done["kind"] != CONTROL].groupby("defense", sort=False)
    return [
        str(label) for label, own in met if own.groupby(["attack", "rate"]).ngroups == every
    ]  # fmt: skip


def _said(top: str, mean: float, found: Sequence[Contrast], largest: float, named: bool) -> str:
    """Return the test of the highest DER in words: against whom, over what, and its largest p."""
    others = len(found) - 1
    rivals = f"each of the {others} others" if others > 1 else "the other one"
    against = f"that of {rivals} and of no defense" if others else "that of no defense"
    n = min(one.n for one in found)
    few = 2.0 ** (1 - n) * len(found) >= ALPHA
    return (
        f"{top} has the highest mean DER, {mean:.3f}; "
        + ("it is" if named else "it is not shown to be")
        + f" higher than {against} ({found[0].words}; "
        f"largest p = {largest:.2g} after Holm's correction)"
        + (f"; {n} are too few to reach {100 * ALPHA:g} %." if few else ".")
    )
