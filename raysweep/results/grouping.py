"""Columns by which rows of trials are grouped, and the attacks that failed; pure.

An arena is what rows must share to be compared: dataset, model, and every training parameter in
which they differ.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from raysweep.results.columns import PARAMETERS

ARENA = ("dataset", "model")
EVASIONS = "adversarial examples"  # what an arena is called where test inputs alone are attacked
FAILED_BELOW = 0.5  # undefended ASR, and its excess over the trigger's on the clean model


def texts(rows: pd.DataFrame, column: str) -> pd.Series[str]:
    """Return a column as text; empty where a cell is missing, or there is no such column."""
    if column not in rows:
        return pd.Series("", index=rows.index, dtype="str")
    cells = rows[column].astype(object)
    return cells.where(cells.notna(), "").map(str)


def numbers(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """Return a column as floats; NaN where a cell is missing or no number, or there is none."""
    if column not in rows:
        return pd.Series(np.nan, index=rows.index)
    return pd.to_numeric(rows[column], errors="coerce")


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
    return texts(rows, "evades") == "True"


def attacked(rows: pd.DataFrame) -> pd.Series[bool]:
    """Return the mask of rows of an attack that was made: with poison, or by evasion."""
    return (numbers(rows, "rate") > 0) | evasions(rows)


def setting_column(rows: pd.DataFrame) -> pd.Series[str]:
    """Return the columns that rows must share to be averaged, attack and defense apart.

    Dataset, model, and every training parameter in which the rows differ: only seeds are averaged.
    Evasions are apart from backdoors: a detector may hold against the one and not the other.
    """
    parts = [texts(rows, name) for name in ARENA]
    for name, column in PARAMETERS["recipe"].within(rows.columns).items():
        if rows[column].dtype != object and rows[column].nunique(dropna=False) < 2:
            continue
        own = texts(rows, column)
        if own.nunique() > 1:
            parts.append(f"{name} " + own)
    parts.append(evasions(rows).map({True: EVASIONS, False: ""}))
    names = [" · ".join(filter(None, line)) for line in zip(*parts, strict=True)]
    return pd.Series(names, index=rows.index, dtype="str")


def undefended(rows: pd.DataFrame, arenas: pd.Series[str]) -> pd.Series[float]:
    """Return the mean ASR without a defense of each row's attack in its setting, as fractions.

    Attacks are judged in each arena apart; NaN where no undefended trial finished, or none attacks.

    Args:
        rows: of trials.
        arenas: their `setting_column`.
    """
    if rows.empty:
        return pd.Series([], index=rows.index, dtype=float)
    cell = arenas + "\0" + attack_column(rows)
    alone = finished(rows)
    alone = alone[(alone["defense_name"] == "none") & attacked(alone)]
    return cell.map(numbers(alone, "asr").groupby(cell[alone.index]).mean()).astype(float)


def floor_column(rows: pd.DataFrame, arenas: pd.Series[str]) -> pd.Series[float]:
    """Return the ASR of each row's trigger on the clean model; NaN where rate 0 was not run.

    Args:
        rows: of trials.
        arenas: their `setting_column`.
    """
    known = floors(rows, arenas)
    cells = zip(arenas, rows["attack"], strict=True)
    values = [known.get((str(arena), str(attack)), math.nan) for arena, attack in cells]
    return pd.Series(values, index=rows.index, dtype=float)


def failed_mask(rows: pd.DataFrame, arenas: pd.Series[str]) -> pd.Series[bool]:
    """Return the mask of rows of an attack that failed in their setting.

    Its undefended ASR is under 50 %, or no 50 points above what its trigger achieves on the clean
    model: a trigger that fools every model needs no backdoor.

    Args:
        rows: of trials.
        arenas: their `setting_column`.
    """
    return _failed(undefended(rows, arenas), floor_column(rows, arenas))


def _failed(asr: pd.Series[float], floor: pd.Series[float]) -> pd.Series[bool]:
    return (asr < FAILED_BELOW) | (asr - floor < FAILED_BELOW)


def failure_text(asr: float, *, evades: bool, floor: float = math.nan) -> str:
    """Return the finding that an attack failed, in words."""
    if asr >= FAILED_BELOW:
        return (
            f"the trigger fools a clean model too: undefended ASR {100 * asr:.0f} %, "
            f"ASR₀ {100 * floor:.0f} %"
        )
    what = "the changed inputs seldom fool the model" if evades else "the trigger was not learned"
    return f"{what}: undefended ASR {100 * asr:.0f} %"


def failure_texts(rows: pd.DataFrame, arenas: pd.Series[str]) -> pd.Series[str]:
    """Return the finding in words for each row of an attack that failed; empty for the others.

    Args:
        rows: of trials.
        arenas: their `setting_column`.
    """
    asr, floor = undefended(rows, arenas), floor_column(rows, arenas)
    columns = _failed(asr, floor), asr, evasions(rows), floor
    texts = [
        failure_text(asr, evades=bool(evades), floor=floor) if failed else ""
        for failed, asr, evades, floor in zip(*columns, strict=True)
    ]
    return pd.Series(texts, index=rows.index, dtype="str")


def failed_attacks(rows: pd.DataFrame) -> dict[str, str]:
    """Return the name of each attack that failed → the finding; named with its arena if several."""
    names, arenas = attack_column(rows), setting_column(rows)
    if arenas.nunique() > 1:
        names = names + " (" + arenas + ")"
    found = failure_texts(rows, arenas)
    return {name: text for name, text in zip(names, found, strict=True) if text}


def floors(rows: pd.DataFrame, arenas: pd.Series[str]) -> dict[tuple[str, str], float]:
    """Return (arena, attack label) → ASR of its trigger on the clean model: trials at rate 0.

    Args:
        rows: of trials.
        arenas: their `setting_column`.
    """
    done = finished(rows)
    at_zero = (numbers(done, "rate") == 0) & ~evasions(done)
    zero = done[at_zero & (done["defense_name"] == "none")]
    means = numbers(zero, "asr").groupby([arenas[zero.index], zero["attack"]]).mean().dropna()
    named = means.reset_index().itertuples(index=False)
    return {(str(arena), str(attack)): float(value) for arena, attack, value in named}
