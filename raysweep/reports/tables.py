"""Aggregation over seeds, and the tables that terminal and report show; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import pandas as pd

from raysweep.metrics.names import INPUT, cases
from raysweep.results.cells import DER, defined, estimate, with_arena
from raysweep.results.grouping import attack_column, failure_texts, finished

# TPR and FPR of filters are of training samples, and those of detectors of test inputs.
METRICS = ("ca", "asr", "tpr", "fpr", INPUT.of("tpr"), INPUT.of("fpr"))
SHOWN = dict(
    zip(METRICS, ("CA", "ASR", "TPR", "FPR", "TPR of inputs", "FPR of inputs"), strict=True)
)
TABLED = {"ca": "CA", "asr": "ASR", DER: "DER"} | SHOWN  # of the tables of terminal and formats
MOST_LISTED = 4  # values that are listed one by one; of more, the range


def aggregate(rows: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return mean, 95 % interval, n and extremes of metrics over the rows of each group.

    Rows in which a metric is undefined do not count for it. The interval is that of
    `results.cells.estimate`: of the inputs of one model, of seeds within a cell, or of families of
    attacks where a group holds several.

    Columns: `by`, and for each metric m: m, m_low, m_high, m_n, m_unit, m_values (a tuple),
    m_seeds (how many trials), m_min and m_max of the values.
    """
    table = []
    wanted = {*by, "attack", "attack_name", "rate", *metrics, *map(cases, metrics)}
    rows = rows[[column for column in rows if column in wanted]]
    for group, part in rows.groupby(list(by), sort=False, dropna=False):
        entry = dict(zip(by, group if isinstance(group, tuple) else (group,), strict=True))
        for metric in metrics:
            found = estimate(part, metric)
            entry |= {
                metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high,
                f"{metric}_n": found.n, f"{metric}_unit": found.unit,
                f"{metric}_values": found.values, f"{metric}_seeds": defined(part, metric),
                f"{metric}_min": min(found.values, default=math.nan),
                f"{metric}_max": max(found.values, default=math.nan),
            }  # fmt: skip
        table.append(entry)
    return pd.DataFrame(table)


def words(value: object) -> str:
    """Return a cell as text; empty where it is missing."""
    return "" if value is None or value is pd.NA or value != value else str(value)


def number(value: object) -> float:
    """Return a cell as a float; NaN where it is missing or no number."""
    if isinstance(value, float):
        return float(value)
    found = pd.to_numeric(words(value) or "nan", errors="coerce")
    return float(found)


def short(value: object) -> str:
    """Return the value of a parameter as text, a float with four digits."""
    if isinstance(value, tuple):
        value = _listed(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _listed(values: tuple[object, ...]) -> list[object]:
    return [_listed(one) if isinstance(one, tuple) else one for one in values]


def percent(value: float | None) -> str:
    """Return a fraction in percent, or a dash where it is undefined."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def spread(entry: pd.Series[float], metric: str) -> str:
    """Return a mean with what is known of its spread, in percent: `interval_text` of a cell."""
    mean, low, high = entry[metric], entry[f"{metric}_low"], entry[f"{metric}_high"]
    return interval_text(mean, low, high, cast("Sequence[float]", entry[f"{metric}_values"]))


def interval_text(mean: float, low: float, high: float, values: Sequence[float]) -> str:
    """Return a mean in percent, with [low–high] where it has an interval.

    Where it has none, the values themselves in round brackets, or the range of more than four.
    """
    if not math.isnan(low):
        return f"{percent(mean)} [{percent(low)}–{percent(high)}]"
    if len(values) < 2:
        return percent(mean)
    if len(values) > MOST_LISTED:
        return f"{percent(mean)} ({percent(min(values))}–{percent(max(values))})"
    return f"{percent(mean)} ({', '.join(map(percent, values))})"


def count(part: pd.DataFrame) -> str:
    """Return the number of finished trials as text, and of all trials if some did not finish."""
    done = len(finished(part))
    return str(done) if done == len(part) else f"{done}/{len(part)}"


def text_table(rows: pd.DataFrame) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return (title, headers, lines) for each arena and attack, for a terminal.

    The columns are the same whatever was measured. Cells are `spread`s in percent over seeds; n is
    the number of finished trials.
    """
    if rows.empty:
        return []
    merged = with_arena(rows)
    found = failure_texts(merged, merged["arena"])
    merged["attack"] = attack_column(merged)
    headers = ["defense", "kind", *(f"{title} %" for title in TABLED.values()), "n", "badges"]
    by = ["defense", "kind", "badges"]
    tables = []
    for (arena, attack), part in merged.groupby(["arena", "attack"], sort=False):
        said = f"; {found[part.index[0]]}" if found[part.index[0]] else ""
        means = aggregate(part, by, tuple(TABLED))
        counts = [count(line) for _, line in part.groupby(by, sort=False, dropna=False)]
        lines = [
            [str(e["defense"]), str(e["kind"]), *(spread(e, m) for m in TABLED), n,
             str(e["badges"])]
            for (_, e), n in zip(means.iterrows(), counts, strict=True)
        ]  # fmt: skip
        tables.append((f"{attack} · {arena}{said}", headers, lines))
    return tables
