"""Comparisons of defenses, paired by setting: (arena, attack, rate, seed); pure.

Two defenses meet the same victim in a setting, so that their difference there has the victim's luck
taken out. Differences over six families of attacks or more are tested over families, and speak of
attacks like these; over fewer they are tested over settings, and speak of these attacks alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from raysweep.arrays import Floats
from raysweep.metrics.intervals import (
    FEWEST_FAMILIES,
    LEVEL,
    NONE,
    Bounds,
    difference,
    of_model,
    paired_interval,
    stratified_interval,
)
from raysweep.metrics.names import cases
from raysweep.metrics.pairs import holm, ranked, sign_flips
from raysweep.results.cells import DER, FAMILY, SETTING, with_arena
from raysweep.results.grouping import attacked, failed_mask, finished, numbers

FAMILIES = 6  # from which a test over families can reach 5 %: 2 / 2^6 is 3 %
RESAMPLES = 1000
MODELS = ("one", "one_n", "other", "other_n")
Unit = Literal["attacks", "settings"]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The paired difference of two defenses in one metric, `one - other`.

    Attributes:
        one, other: labels of the defenses.
        metric: its name.
        value, low, high: mean and 95 % interval; NaN where none is honest.
        p: of the sign-flip permutation test, two-sided; NaN without a pair.
        n, unit: how many independent pairs, of "attacks" (families) or "settings".
    """

    one: str
    other: str
    metric: str
    value: float
    low: float
    high: float
    p: float
    n: int
    unit: Unit

    @property
    def words(self) -> str:
        """The test in words."""
        over = (
            f"{self.n} families of attacks" if self.unit == "attacks"
            else f"{self.n} settings of these attacks"
        )  # fmt: skip
        return f"paired sign-flip permutation test over {over}"


def pairs(part: pd.DataFrame, one: str, other: str, metric: str) -> pd.DataFrame:
    """Return the settings that both defenses finished, with a metric of each.

    Columns: arena, attack, rate, seed, attack_name, one, other, one_n, other_n (inputs behind each
    value; NaN where it is no share) and difference, `one - other`.

    Args:
        part: rows with the columns of `with_arena`.
        one, other: labels of the defenses.
        metric: the column to compare.
    """
    done = finished(part)
    found, others = _met(done, one, metric), _met(done, other, metric)
    lines = [
        (*setting, mine.family, mine.value, mine.n, theirs.value, theirs.n)
        for setting, mine in found.items()
        if (theirs := others.get(setting)) is not None
    ]
    columns = [*SETTING, FAMILY, "one", "one_n", "other", "other_n"]
    paired = pd.DataFrame(lines, columns=columns)
    paired["difference"] = paired["one"].astype(float) - paired["other"].astype(float)
    return paired[paired["difference"].notna()]


class _Met(NamedTuple):
    """The metric of a defense in one setting, and the number of inputs behind it."""

    family: str
    value: float
    n: float


def _met(done: pd.DataFrame, label: str, metric: str) -> dict[tuple[str, str, float, int], _Met]:
    """Return the metric of one defense in each setting; of a repeated one, the first."""
    own = done[done["defense"] == label]
    settings = zip(*(own[name].tolist() for name in SETTING), strict=True)
    values = numbers(own, metric).tolist(), numbers(own, cases(metric)).tolist()
    met: dict[tuple[str, str, float, int], _Met] = {}
    for setting, *found in zip(settings, own[FAMILY].tolist(), *values, strict=True):
        met.setdefault(setting, _Met(*found))
    return met


def contrast(part: pd.DataFrame, one: str, other: str, metric: str) -> Contrast:
    """Return the paired difference of two defenses over the rows of one arena."""
    paired = pairs(part, one, other, metric)
    values, unit = _units(paired)
    low, high = _bounds(paired, values, unit)
    return Contrast(
        one=one, other=other, metric=metric, value=float(values.mean()) if len(values) else np.nan,
        low=low, high=high, p=sign_flips(values), n=len(values), unit=unit,
    )  # fmt: skip


def _units(paired: pd.DataFrame) -> tuple[Floats, Unit]:
    """Return the independent differences: of each family of attacks, or of each setting."""
    if paired[FAMILY].nunique() < FAMILIES:
        return paired["difference"].to_numpy(float), "settings"
    by_cell = paired.groupby([FAMILY, "attack", "rate"])["difference"].mean()
    return by_cell.groupby(level=0).mean().to_numpy(float), "attacks"


def _bounds(paired: pd.DataFrame, values: Floats, unit: Unit) -> Bounds:
    """Return the interval of a mean difference: over families, or over the seeds of each cell."""
    if unit == "attacks":
        return paired_interval(values) if len(values) >= FEWEST_FAMILIES else NONE
    if len(values) == 1:
        return single_bounds(paired[list(MODELS)].to_numpy(float))
    by_cell = paired.groupby(["attack", "rate"])["difference"]
    return stratified_interval([own.to_numpy(float) for _, own in by_cell])


def single_bounds(models: Floats, level: float = LEVEL) -> Bounds:
    """Return the widest bounds of the differences of single models, each from its own inputs.

    NaN where a value is no share of inputs, or there are no pairs.

    Args:
        models: (pairs, 4): share and inputs of the one, share and inputs of the other.
        level: of confidence.
    """
    found = [
        difference(of_model(one, n, level), of_model(other, m, level))
        for one, n, other, m in models
    ]
    if not found or any(math.isnan(low) for low, _ in found):
        return NONE
    return min(low for low, _ in found), max(high for _, high in found)


def difference_bounds(models: Floats, level: float = LEVEL) -> Bounds:
    """Return the bounds of a mean difference within one cell, of pairs as `single_bounds` has them.

    Over three seeds or more, unless all differ by the same; else the widest of the single models'.
    """
    low, high = paired_interval(models[:, 0] - models[:, 2], level)
    return single_bounds(models, level) if math.isnan(low) else (low, high)


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that defenses are compared on: attacked, by attacks that worked."""
    merged = with_arena(rows)
    return merged[attacked(merged) & ~failed_mask(merged, merged["arena"])]


def contrasts(
    rows: pd.DataFrame, others: Sequence[str], metrics: Sequence[str] = ("asr", "ca", DER)
) -> pd.DataFrame:
    """Return the paired differences of every defense against some, in each arena.

    Columns: arena, then the attributes of `Contrast`, and `holm`: p after Holm's correction over
    all defenses that are compared with the same other one in the same metric and arena.

    Args:
        rows: of one sweep, one row per trial.
        others: labels of the defenses that are compared with, such as `none`.
        metrics: columns of records, or `der`.
    """
    table: list[dict[str, object]] = []
    for arena, part in judged(rows).groupby("arena", sort=False):
        defenses = list(dict.fromkeys(part["defense"]))
        for other in (label for label in others if label in defenses):
            for metric in metrics:
                own = [contrast(part, one, other, metric) for one in defenses if one != other]
                for found, corrected in zip(own, holm([c.p for c in own]), strict=True):
                    table.append({"arena": arena, **vars(found), "holm": corrected})
    columns = ["arena", *Contrast.__dataclass_fields__, "holm"]
    return pd.DataFrame(table, columns=columns)


def common_settings(part: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric by setting (rows) and defense (columns), of settings that all finished."""
    done = finished(part)
    indexed = done.assign(value=numbers(done, metric)).drop_duplicates([*SETTING, "defense"])
    table = indexed.pivot(index=[FAMILY, *SETTING], columns="defense", values="value")
    return table[list(dict.fromkeys(done["defense"]))].dropna()


def ranks(rows: pd.DataFrame, metric: str = DER) -> pd.DataFrame:
    """Return the mean ranks of defenses over settings, as a critical-difference diagram draws them.

    Defenses that met every setting of their arena that any met. Columns: arena, defense, rank (the
    mean, 1 the best), n (settings), p (Friedman's test), critical (the difference of mean ranks
    from which two differ, by Nemenyi), rank_low and rank_high (of the order by means, 95 % range
    where families of attacks are drawn again) and first (the share of draws in which it is first).
    """
    table: list[dict[str, object]] = []
    for arena, part in judged(rows).groupby("arena", sort=False):
        done = finished(part)
        met = done.groupby("defense", sort=False)["trial"].size()
        values = common_settings(done[done["defense"].isin(met[met == met.max()].index)], metric)
        if values.shape[1] < 2 or values.empty:
            continue
        sign = -1.0 if metric in ("asr", "fpr") else 1.0
        found = ranked(sign * values.to_numpy(float))
        low, high, first = _stability(sign * values)
        for n, defense in enumerate(values.columns):
            table.append({
                "arena": arena, "defense": defense, "rank": found.ranks[n], "n": found.blocks,
                "p": found.p, "critical": found.critical, "rank_low": low[n], "rank_high": high[n],
                "first": first[n],
            })  # fmt: skip
    columns = ["arena", "defense", "rank", "n", "p", "critical", "rank_low", "rank_high", "first"]
    return pd.DataFrame(table, columns=columns)


def _stability(values: pd.DataFrame) -> tuple[Floats, Floats, Floats]:
    """Return the 95 % range of each one's place, and how often it is first, over drawn attacks."""
    from scipy import stats

    means = values.groupby(level=0, sort=False).mean().to_numpy(float)
    drawn = np.random.default_rng(0).integers(0, len(means), (RESAMPLES, len(means)))
    places = stats.rankdata(-means[drawn].mean(1), axis=1, method="min")
    low, high = np.quantile(places, [0.025, 0.975], axis=0)
    return low, high, (places == 1).mean(0)
