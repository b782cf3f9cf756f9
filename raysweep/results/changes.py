"""Changes between two sweeps: trials of the same setting and defense, paired; pure.

A trial of one sweep meets its like in the other where dataset, model, attack, rate, defense and
seed have the same labels, and so has every training parameter that differs within one of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from raysweep.metrics.names import INPUT
from raysweep.metrics.pairs import holm
from raysweep.results.cells import SETTING
from raysweep.results.columns import KEYS, PARAMETERS, is_parameter
from raysweep.results.comparison import Contrast, contrast, difference_bounds, pairs
from raysweep.results.grouping import ARENA, attacked, texts

SIDES = ("first", "second")
COMPARED = ("ca", "asr", "ra", "tpr", "fpr", INPUT.of("tpr"), INPUT.of("fpr"))
TRIAL = (*SETTING, "defense")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The changes from a first sweep to a second one.

    Attributes:
        names: of the two sweeps.
        trials: how many each has.
        both: how many trials each has that meet their like in the other.
        same: how many of these were evaluated by the very same artifact in both.
        only_first, only_second: names of the trials that have no like, in order.
        parameters: one row per parameter that differs between likes: parameter, first, second,
            trials (how many).
        cells: one row per cell and metric: arena, attack, rate, defense, metric, first, second
            (means), difference (second - first), low, high, n (how many pairs). The interval is of
            the pairs of seeds; of one or two, the widest of the inputs of single models.
        defenses: one row per arena, defense and metric over all attacks: the attributes of
            `Contrast`, and `holm`, p after Holm's correction over the defenses.
    """

    names: tuple[str, str]
    trials: tuple[int, int]
    both: int
    same: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    parameters: pd.DataFrame
    cells: pd.DataFrame
    defenses: pd.DataFrame


def changes(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]) -> Changes:
    """Return the changes from the rows of one sweep to those of another."""
    varying = [
        column for column in dict.fromkeys((*first.columns, *second.columns))
        if column in PARAMETERS["recipe"].within([column]).values()
        and any(texts(rows, column).nunique() > 1 for rows in (first, second))
    ]  # fmt: skip
    sides = [_named(rows, varying) for rows in (first, second)]
    known = [set(_ids(rows)) for rows in sides]
    likes = [rows[_ids(rows).isin(known[1 - n])] for n, rows in enumerate(sides)]
    paired = likes[0].merge(likes[1], on=list(TRIAL), suffixes=("_first", "_second"))
    key = KEYS.of("evaluate")
    keys = [paired[name] for side in SIDES if (name := f"{key}_{side}") in paired]
    same = int(((keys[0] == keys[1]) & keys[0].notna()).sum()) if len(keys) == 2 else 0
    alone = [rows[~_ids(rows).isin(known[1 - n])] for n, rows in enumerate(sides)]
    joined = pd.concat([rows.assign(side=side) for side, rows in zip(SIDES, likes, strict=True)])
    return Changes(
        names=names, trials=(len(first), len(second)), both=len(paired), same=same,
        only_first=tuple(_ids(alone[0])), only_second=tuple(_ids(alone[1])),
        parameters=_parameters(paired), cells=_cells(joined), defenses=_defenses(joined),
    )  # fmt: skip


def _named(rows: pd.DataFrame, varying: list[str]) -> pd.DataFrame:
    """Return rows with an arena that both sweeps name alike."""
    parts = [texts(rows, column) for column in ARENA]
    parts += [f"{column} " + texts(rows, column) for column in varying]
    arena = parts[0]
    for part in parts[1:]:
        arena = arena + " · " + part
    return rows.assign(arena=arena).drop_duplicates(list(TRIAL))


def _ids(rows: pd.DataFrame) -> pd.Series[str]:
    """Return the name of each trial: all that it must share with its like."""
    columns = [texts(rows, name) for name in ("arena", "attack", "rate", "defense", "seed")]
    names = [f"{a} · {b} @ {r} · {d} · seed {s}" for a, b, r, d, s in zip(*columns, strict=True)]
    return pd.Series(names, index=rows.index, dtype="str")


def _parameters(paired: pd.DataFrame) -> pd.DataFrame:
    """Return the parameters in which likes differ."""
    table = []
    for left in (name for name in paired.columns if str(name).endswith("_first")):
        column = str(left).removesuffix("_first")
        if not is_parameter(column):
            continue
        values = texts(paired, str(left)), texts(paired, f"{column}_second")
        both = pd.DataFrame({"first": values[0], "second": values[1]})
        for (one, other), own in both[values[0] != values[1]].groupby(["first", "second"]):
            table.append({"parameter": column, "first": one, "second": other, "trials": len(own)})
    return pd.DataFrame(table, columns=["parameter", "first", "second", "trials"])


def _cells(joined: pd.DataFrame) -> pd.DataFrame:
    """Return the change of each metric in each cell that both sweeps have finished trials of."""
    by = ["arena", "attack", "rate", "defense"]
    table: list[dict[str, object]] = []
    for group, part in joined.groupby(by, sort=False):
        sided = part.assign(defense=part["side"])
        for metric in COMPARED:
            found = pairs(sided, "second", "first", metric)
            if found.empty:
                continue
            low, high = difference_bounds(found)
            table.append(dict(zip(by, group, strict=True)) | {
                "metric": metric, "first": found["other"].mean(), "second": found["one"].mean(),
                "difference": found["difference"].mean(), "low": low, "high": high,
                "n": len(found),
            })  # fmt: skip
    columns = [*by, "metric", "first", "second", "difference", "low", "high", "n"]
    return pd.DataFrame(table, columns=columns)


def _defenses(joined: pd.DataFrame) -> pd.DataFrame:
    """Return the change of each metric by defense, over the attacks that both sweeps made."""
    table: list[dict[str, object]] = []
    for arena, part in joined[attacked(joined)].groupby("arena", sort=False):
        for metric in COMPARED:
            found = [
                (str(defense), contrast(own.assign(defense=own["side"]), "second", "first", metric))
                for defense, own in part.groupby("defense", sort=False)
            ]
            found = [(defense, one) for defense, one in found if one.n]
            corrected = holm([one.p for _, one in found])
            for (defense, one), p in zip(found, corrected, strict=True):
                table.append({"arena": arena, "defense": defense, **vars(one), "holm": p})
    columns = ["arena", "defense", *Contrast.__dataclass_fields__, "holm"]
    return pd.DataFrame(table, columns=columns)
