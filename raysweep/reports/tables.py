"""Aggregation over seeds, and the tables that terminal and report show; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from raysweep.metrics.intervals import FEW, t_interval, wilson
from raysweep.metrics.names import INPUT, cases
from raysweep.results.columns import PARAMETERS

# TPR and FPR of filters are of training samples, and those of detectors of test inputs.
METRICS = ("ca", "asr", "tpr", "fpr", INPUT.of("tpr"), INPUT.of("fpr"))
SHOWN = dict(
    zip(METRICS, ("CA", "ASR", "TPR", "FPR", "TPR of inputs", "FPR of inputs"), strict=True)
)
ARENA = ("dataset", "model")
FAILED_BELOW = 0.5


def aggregate(rows: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return mean, 95 % interval, n and extremes of metrics over the rows of each group.

    Rows in which a metric is undefined do not count for it.

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
    given = _numbers(part, metric).replace([np.inf, -np.inf], np.nan)
    values = given.dropna().to_numpy()
    low = high = math.nan
    if len(values) > 1:
        low, high = t_interval(values)
    elif len(values) == 1 and cases(metric) in part:
        n = _numbers(part, cases(metric))[given.notna()].iloc[0]
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


def words(value: object) -> str:
    """Return a cell as text; empty where it is missing."""
    return "" if value is None or value is pd.NA or value != value else str(value)


def number(value: object) -> float:
    """Return a cell as a float; NaN where it is missing or no number."""
    found = pd.to_numeric(words(value) or "nan", errors="coerce")
    return float(found)


def short(value: object) -> str:
    """Return the value of a parameter as text, a float with four digits."""
    if isinstance(value, tuple):
        value = _listed(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _listed(values: tuple[object, ...]) -> list[object]:
    return [_listed(one) if isinstance(one, tuple) else one for one in values]


def finished(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have metrics."""
    return rows[rows["status"] == "ok"] if "status" in rows else rows


def attack_column(rows: pd.DataFrame) -> pd.Series[str]:
    """Return the name of an attack in a table: its label, and its rate unless it has none."""
    columns = rows["attack"], rows["attack_name"], rows["rate"], evasions(rows)
    names = [
        label if name == "none" or evades else f"{label} @ {100 * float(rate):g} %"
        for label, name, rate, evades in zip(*columns, strict=True)
    ]
    return pd.Series(names, index=rows.index, dtype="str")


def trial_names(rows: pd.DataFrame) -> pd.Series[str]:
    """Return the name of each trial as people read it: attack, defense and seed."""
    columns = attack_column(rows), rows["defense"], rows["seed"]
    names = [
        f"{attack} · {defense} · seed {seed}"
        for attack, defense, seed in zip(*columns, strict=True)
    ]
    return pd.Series(names, index=rows.index, dtype="str")


def evasions(rows: pd.DataFrame) -> pd.Series[bool]:
    """Return the mask of rows of attacks on test inputs alone; records without the column: none."""
    if "evades" not in rows:
        return pd.Series(False, index=rows.index)
    return rows["evades"].map(lambda value: words(value) == "True").astype(bool)


def attacked(rows: pd.DataFrame) -> pd.Series[bool]:
    """Return the mask of rows of an attack that was made: with poison, or by evasion."""
    return (_numbers(rows, "rate") > 0) | evasions(rows)


def setting_column(rows: pd.DataFrame) -> pd.Series[str]:
    """Return the columns that rows must share to be averaged, attack and defense apart.

    Dataset, model, and every training parameter in which the rows differ: only seeds are averaged.
    Evasions are apart from backdoors: a detector may hold against the one and not the other.
    """
    parts = [rows[name].map(words) for name in ARENA]
    for name, column in PARAMETERS["recipe"].within(rows.columns).items():
        if rows[column].map(words).nunique() > 1:
            parts.append(rows[column].map(lambda v, n=name: f"{n} {words(v)}"))
    parts.append(evasions(rows).map({True: "adversarial examples", False: ""}))
    names = [" · ".join(filter(None, line)) for line in zip(*parts, strict=True)]
    return pd.Series(names, index=rows.index, dtype="str")


def undefended(rows: pd.DataFrame) -> pd.Series[float]:
    """Return the mean ASR without a defense of each row's attack in its setting, as fractions.

    Attacks are judged in each arena apart; NaN where no undefended trial finished, or none attacks.
    """
    if rows.empty:
        return pd.Series([], index=rows.index, dtype=float)
    cell = setting_column(rows) + "\0" + attack_column(rows)
    alone = finished(rows)
    alone = alone[(alone["defense_name"] == "none") & attacked(alone)]
    return cell.map(_numbers(alone, "asr").groupby(cell[alone.index]).mean()).astype(float)


def failed_mask(rows: pd.DataFrame) -> pd.Series[bool]:
    """Return the mask of rows of an attack whose undefended ASR is under 50 % in their setting."""
    return undefended(rows) < FAILED_BELOW


def failure_text(asr: float, *, evades: bool) -> str:
    """Return the finding that an undefended ASR under 50 % is, in words."""
    what = "the changed inputs seldom fool the model" if evades else "the trigger was not learned"
    return f"{what}: undefended ASR {100 * asr:.0f} %"


def failed_attacks(rows: pd.DataFrame) -> dict[str, str]:
    """Return the name of each attack that failed → the finding; named with its arena if several."""
    names, arenas = attack_column(rows), setting_column(rows)
    if arenas.nunique() > 1:
        names = names + " (" + arenas + ")"
    alone, evades = undefended(rows), evasions(rows)
    return {
        names[row]: failure_text(alone[row], evades=bool(evades[row]))
        for row in rows.index[failed_mask(rows)]
    }


def floors(rows: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return (arena, attack label) → ASR of its trigger on the clean model: trials at rate 0."""
    done = finished(rows)
    arenas = setting_column(rows)
    at_zero = (_numbers(done, "rate") == 0) & ~evasions(done)
    zero = done[at_zero & (done["defense_name"] == "none")]
    means = _numbers(zero, "asr").groupby([arenas[zero.index], zero["attack"]]).mean().dropna()
    named = means.reset_index().itertuples(index=False)
    return {(str(arena), str(attack)): float(value) for arena, attack, value in named}


def percent(value: float | None) -> str:
    """Return a fraction in percent, or a dash where it is undefined."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def spread(entry: pd.Series[float], metric: str) -> str:
    """Return a mean with what is known of its spread, in percent.

    From five values on: ± half the 95 % interval. Below, where that says little: the range of the
    values. Of a single one: its Wilson interval, where the number of cases is known.
    """
    mean, low, high = entry[metric], entry[f"{metric}_low"], entry[f"{metric}_high"]
    count = entry[f"{metric}_seeds"]
    if count < 2:
        known = not (math.isnan(mean) or math.isnan(low))
        return percent(mean) + (f" [{percent(low)}–{percent(high)}]" if known else "")
    if count < FEW:
        least, most = percent(entry[f"{metric}_min"]), percent(entry[f"{metric}_max"])
        return f"{percent(mean)} ({least}–{most})"
    return f"{percent(mean)} ± {100 * (high - low) / 2:.1f}"


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
    merged = rows.copy()
    merged["attack"], merged["arena"] = attack_column(rows), setting_column(rows)
    merged["badges"] = merged["badges"].map(words)
    failed = failed_mask(rows)
    alone, evades = undefended(rows), evasions(rows)
    headers = ["defense", "kind", *(f"{title} %" for title in SHOWN.values()), "n", "badges"]
    by = ["defense", "kind", "badges"]
    tables = []
    for (arena, attack), part in merged.groupby(["arena", "attack"], sort=False):
        first = part.index[0]
        said = (
            f"; {failure_text(alone[first], evades=bool(evades[first]))}" if failed[first] else ""
        )
        means = aggregate(part, by, METRICS)
        counts = [count(line) for _, line in part.groupby(by, sort=False, dropna=False)]
        lines = [
            [str(e["defense"]), str(e["kind"]), *(spread(e, m) for m in METRICS), n,
             str(e["badges"])]
            for (_, e), n in zip(means.iterrows(), counts, strict=True)
        ]  # fmt: skip
        tables.append((f"{attack} · {arena}{said}", headers, lines))
    return tables
