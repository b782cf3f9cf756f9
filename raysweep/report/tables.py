"""Aggregation over seeds, and the tables that terminal and report show; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from raysweep.metrics import t_interval, wilson

METRICS = ("ca", "asr", "tpr", "fpr")
DETECTION = {"tpr": "input_tpr", "fpr": "input_fpr", "auroc": "input_auroc"}
FAILED_BELOW = 0.5
FEW = 5


def aggregate(rows: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return mean, 95 % interval, n and extremes of metrics over the rows of each group.

    Columns: `by`, and for each metric m: m, m_low, m_high, m_seeds, m_min, m_max. The interval is
    Student's over seeds; a single seed has the Wilson interval of its own n where there is one.
    """
    table = []
    for group, part in rows.groupby(list(by), sort=False, dropna=False):
        entry = dict(zip(by, group if isinstance(group, tuple) else (group,), strict=True))
        for metric in metrics:
            entry |= _summary(part, metric)
        table.append(entry)
    return pd.DataFrame(table)


def _summary(part: pd.DataFrame, metric: str) -> dict[str, float]:
    values = _numbers(part, metric).dropna().to_numpy()
    low = high = math.nan
    if len(values) > 1:
        low, high = t_interval(values)
    elif len(values) == 1 and f"{metric}_n" in part:
        n = _numbers(part, f"{metric}_n")[_numbers(part, metric).notna()].iloc[0]
        if n and not math.isnan(n):
            low, high = wilson(round(values[0] * n), int(n))
    return {
        metric: float(values.mean()) if len(values) else math.nan,
        f"{metric}_low": low,
        f"{metric}_high": high,
        f"{metric}_seeds": len(values),
        f"{metric}_min": float(values.min()) if len(values) else math.nan,
        f"{metric}_max": float(values.max()) if len(values) else math.nan,
    }


def _numbers(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    if column not in rows:
        return pd.Series(np.nan, index=rows.index)
    return pd.to_numeric(rows[column], errors="coerce")


def with_detection(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows in which tpr, fpr and auroc of an input detector stand in the same columns."""
    merged = rows.copy()
    for metric, other in DETECTION.items():
        for suffix in ("", "_n") if metric != "auroc" else ("",):
            merged[metric + suffix] = _numbers(rows, metric + suffix).fillna(
                _numbers(rows, other + suffix)
            )
    return merged


def attack_column(rows: pd.DataFrame) -> pd.Series[str]:
    """Return how an attack is called in a table: its label, and its rate unless it has none."""
    names = [
        label if name == "none" else f"{label} @ {100 * float(rate):g} %"
        for label, name, rate in zip(rows["attack"], rows["attack_name"], rows["rate"], strict=True)
    ]
    return pd.Series(names, index=rows.index, dtype="str")


def failed_attacks(rows: pd.DataFrame) -> set[str]:
    """Return the attacks (as in `attack_column`) whose undefended ASR is under 50 %."""
    alone = rows[(rows["defense_name"] == "none") & (_numbers(rows, "rate") > 0)]
    if alone.empty:
        return set()
    means = _numbers(alone, "asr").groupby(attack_column(alone)).mean()
    return set(means.index[means < FAILED_BELOW])


def percent(value: float) -> str:
    """Return a fraction in percent, or a dash where it is undefined."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def spread(entry: pd.Series[float], metric: str) -> str:
    """Return a mean with what is known of its spread, in percent.

    From five values on: ± half the 95 % interval. Below, where an interval says little: the range.
    """
    mean, low, high = entry[metric], entry[f"{metric}_low"], entry[f"{metric}_high"]
    if math.isnan(mean) or entry[f"{metric}_seeds"] < 2:
        return percent(mean)
    if entry[f"{metric}_seeds"] < FEW:
        least, most = percent(entry[f"{metric}_min"]), percent(entry[f"{metric}_max"])
        return f"{percent(mean)} ({least}–{most})"
    return f"{percent(mean)} ± {100 * (high - low) / 2:.1f}"


def text_table(rows: pd.DataFrame) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return (title, headers, lines) for each dataset, model and attack, for a terminal."""
    tables = []
    if rows.empty:
        return []
    merged = with_detection(rows)
    merged["attack"] = attack_column(rows)
    failed = failed_attacks(rows)
    headers = ["defense", "kind", "CA %", "ASR %", "TPR %", "FPR %", "n", "badges"]
    for group, part in merged.groupby(["dataset", "model", "attack"], sort=False):
        dataset, model, attack = map(str, group)
        note = "; attack failed: undefended ASR under 50 %" if attack in failed else ""
        means = aggregate(part, ["defense", "kind", "badges"], METRICS)
        lines = [
            [str(e["defense"]), str(e["kind"]), *(spread(e, m) for m in METRICS),
             str(e["ca_seeds"]), str(e["badges"])]
            for _, e in means.iterrows()
        ]  # fmt: skip
        tables.append((f"{attack} · {dataset} · {model}{note}", headers, lines))
    return tables
