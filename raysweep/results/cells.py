"""Cells of a sweep's table, one per arena, attack, rate and defense, with honest intervals; pure.

A cell holds the trials that differ in their seed alone. One trial has the interval of the inputs
that its model was tested on, several have that of their models, and a mean over attacks that of the
families of attacks: forms and rates of one attack are one family, and no family weighs more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from raysweep.metrics.intervals import Estimate, of_attacks, of_seeds
from raysweep.metrics.names import cases
from raysweep.results.grouping import finished, numbers, setting_column, texts

CELL = ("arena", "attack", "rate", "defense")
FAMILY = "attack_name"
SETTING = ("arena", "attack", "rate", "seed")  # the trials that differ in their defense alone
DER = "der"
VALUE = "value"


def estimate(part: pd.DataFrame, metric: str) -> Estimate:
    """Return the mean of a metric over rows of one defense in one arena, and its interval.

    Rows in which it is undefined do not count. Rows of one cell are averaged over seeds; rows of
    several over the rates and forms of each family of attacks, then over families.
    """
    part = part.assign(**{VALUE: _finite(numbers(part, metric))}).dropna(subset=VALUE)
    cells = [column for column in CELL[1:3] if column in part and part[column].nunique() > 1]
    if not cells:
        return of_seeds(part[VALUE].tolist(), numbers(part, cases(metric)).tolist())
    means = part.groupby([FAMILY, *cells], sort=False)[VALUE].mean()
    families = means.groupby(level=0, sort=False).mean()
    if len(families) > 1:
        return of_attacks(families.tolist())
    return Estimate(
        value=float(means.mean()), low=np.nan, high=np.nan, n=len(means), unit="rates",
        values=tuple(means.tolist()),
    )  # fmt: skip


def defined(part: pd.DataFrame, metric: str) -> int:
    """Return the number of rows in which a metric is defined."""
    return int(_finite(numbers(part, metric)).notna().sum())


def _finite(values: pd.Series[float]) -> pd.Series[float]:
    return values.replace([np.inf, -np.inf], np.nan)


def with_arena(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows, numbered anew, with the columns `arena` and `der`, and badges as text."""
    rows = rows.reset_index(drop=True)
    merged = rows.assign(arena=setting_column(rows), badges=texts(rows, "badges"))
    return merged.assign(**{DER: der_column(merged)})


def der_column(rows: pd.DataFrame) -> pd.Series[float]:
    """Return the defense effectiveness rating of each row, within [0, 1]; `none` has 0.5.

    DER = (max(0, fall of ASR) - max(0, fall of CA) + 1) / 2, where both fall from the undefended
    trial of the same setting (M. Zhu et al., ICCV 2023); NaN where that did not finish.

    Args:
        rows: with the column `arena`.
    """
    done = finished(rows)
    alone = done[done["defense_name"] == "none"].drop_duplicates(list(SETTING))
    places = pd.MultiIndex.from_frame(rows[list(SETTING)])
    falls = []
    for metric in ("asr", "ca"):
        before = pd.Series(
            numbers(alone, metric).to_numpy(), pd.MultiIndex.from_frame(alone[list(SETTING)])
        ).reindex(places)
        falls.append(before.to_numpy(float) - numbers(rows, metric).to_numpy(float))
    asr, ca = (np.where(np.isnan(fall), np.nan, np.maximum(fall, 0)) for fall in falls)
    return pd.Series((asr - ca + 1) / 2, index=rows.index, dtype=float)


def cells(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return one row per arena, attack, rate and defense, whatever failed.

    Columns: arena, attack (its label), rate, defense (its label), kind, badges, n_trials,
    n_finished, and for each metric m (`der` is one): m, m_low and m_high (within [0, 1]; NaN where
    no interval is honest), m_n (how many of the unit), m_unit ("inputs", "seeds" or "") and
    m_values (the value of each trial).
    """
    columns = [*CELL, "kind", "badges", "n_trials", "n_finished"]
    columns += [m + end for m in metrics for end in ("", "_low", "_high", "_n", "_unit", "_values")]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    table = []
    for group, part in with_arena(rows).groupby(list(CELL), sort=False, dropna=False):
        done = finished(part)
        entry = dict(zip(CELL, group, strict=True)) | {
            "kind": part["kind"].iloc[0], "badges": part["badges"].iloc[0],
            "n_trials": len(part), "n_finished": len(done),
        }  # fmt: skip
        for metric in metrics:
            found = estimate(done, metric)
            entry |= {
                metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high,
                f"{metric}_n": found.n, f"{metric}_unit": found.unit,
                f"{metric}_values": found.values,
            }  # fmt: skip
        table.append(entry)
    return pd.DataFrame(table, columns=columns)
