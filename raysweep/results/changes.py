"""Changes between two sweeps: trials of the same setting and defense, paired; pure.

A trial of one sweep meets its like in the other where dataset, model, attack, rate, defense and
seed have the same labels, and so has every training parameter that differs within one of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from raysweep.metrics.names import INPUT, cases
from raysweep.metrics.pairs import holm
from raysweep.results.cells import SETTING
from raysweep.results.columns import KEYS, PARAMETERS, is_parameter
from raysweep.results.comparison import Contrast, contrast, difference_bounds
from raysweep.results.grouping import ARENA, EVASIONS, attacked, evasions, numbers, texts

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
        same: how many of these finished and were evaluated by the very same artifact in both.
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


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The trials of two sweeps, told apart by whether they have a like in the other.

    Attributes:
        rows: of each sweep the trials that have one, with the column `arena`; like beside like.
        alone: of each sweep the trials that have none, with the column `arena`.
    """

    rows: tuple[pd.DataFrame, pd.DataFrame]
    alone: tuple[pd.DataFrame, pd.DataFrame]

    @property
    def finished(self) -> pd.Series[bool]:
        """The mask of the likes of which both have finished."""
        first, second = self.rows
        return (first["status"] == "ok") & (second["status"] == "ok")

    @classmethod
    def read(cls, first: pd.DataFrame, second: pd.DataFrame) -> Pairs:
        """Return the likes among the rows of two sweeps."""
        varying = [
            column for column in dict.fromkeys((*first.columns, *second.columns))
            if column in PARAMETERS["recipe"].within([column]).values()
            and any(texts(rows, column).nunique() > 1 for rows in (first, second))
        ]  # fmt: skip
        one, other = (_named(rows, varying) for rows in (first, second))
        ids = _ids(one), _ids(other)
        places = pd.Series(range(len(one)), index=ids[0])
        common = ids[1].isin(ids[0])
        rows = one.iloc[places[ids[1][common]]], other[common]
        return cls(
            rows=(rows[0].reset_index(drop=True), rows[1].reset_index(drop=True)),
            alone=(one[~ids[0].isin(ids[1])], other[~common]),
        )


def changes(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]) -> Changes:
    """Return the changes from the rows of one sweep to those of another."""
    return of_pairs(Pairs.read(first, second), (len(first), len(second)), names)


def of_pairs(pairs: Pairs, trials: tuple[int, int], names: tuple[str, str]) -> Changes:
    """Return the changes between the trials of two sweeps.

    Args:
        pairs: the trials of both sweeps.
        trials: how many each sweep has.
        names: of the sweeps.
    """
    key = KEYS.of("evaluate")
    keys = [rows[key] for rows in pairs.rows if key in rows]
    alike = (keys[0] == keys[1]) & keys[0].notna() & pairs.finished if len(keys) == 2 else None
    only_first, only_second = (tuple(_ids(rows)) for rows in pairs.alone)
    return Changes(
        names=names, trials=trials, both=len(pairs.rows[0]),
        same=0 if alike is None else int(alike.sum()), only_first=only_first,
        only_second=only_second, parameters=_parameters(pairs), cells=_cells(pairs),
        defenses=_defenses(pairs),
    )  # fmt: skip


def _named(rows: pd.DataFrame, varying: list[str]) -> pd.DataFrame:
    """Return rows, one per trial, with an arena that both sweeps name alike."""
    parts = [texts(rows, column) for column in ARENA]
    parts += [f"{column} " + texts(rows, column) for column in varying]
    parts.append(evasions(rows).map({True: EVASIONS, False: ""}))
    arena = [" · ".join(filter(None, line)) for line in zip(*parts, strict=True)]
    named = rows.assign(arena=pd.Series(arena, index=rows.index, dtype="str"))
    return named.drop_duplicates(list(TRIAL)).reset_index(drop=True)


def _ids(rows: pd.DataFrame) -> pd.Series[str]:
    """Return the name of each trial: all that it must share with its like."""
    columns = [texts(rows, name) for name in ("arena", "attack", "rate", "defense", "seed")]
    ids = [f"{a} · {b} @ {r} · {d} · seed {s}" for a, b, r, d, s in zip(*columns, strict=True)]
    return pd.Series(ids, index=rows.index, dtype="str")


def _parameters(pairs: Pairs) -> pd.DataFrame:
    """Return the parameters in which likes differ."""
    table = []
    first, second = pairs.rows
    for column in filter(is_parameter, dict.fromkeys((*first, *second))):
        both = pd.DataFrame({"first": texts(first, column), "second": texts(second, column)})
        differing = both[both["first"] != both["second"]]
        for (one, other), own in differing.groupby(["first", "second"]):
            table.append({"parameter": column, "first": one, "second": other, "trials": len(own)})
    return pd.DataFrame(table, columns=["parameter", "first", "second", "trials"])


def _cells(pairs: Pairs) -> pd.DataFrame:
    """Return the change of each metric in each cell that both sweeps have finished trials of."""
    by = ["arena", "attack", "rate", "defense"]
    first, second = (rows[pairs.finished].reset_index(drop=True) for rows in pairs.rows)
    table: list[dict[str, object]] = []
    for metric in COMPARED:
        models = np.stack(
            [numbers(side, c).to_numpy(float) for side in (second, first)
             for c in (metric, cases(metric))], 1,
        )  # fmt: skip
        known = ~np.isnan(models[:, 0] - models[:, 2])
        for group, rows in second[known].groupby(by, sort=False).indices.items():
            own = models[known][rows]
            low, high = difference_bounds(own)
            table.append(dict(zip(by, cast("tuple[object, ...]", group), strict=True)) | {
                "metric": metric, "first": own[:, 2].mean(), "second": own[:, 0].mean(),
                "difference": (own[:, 0] - own[:, 2]).mean(), "low": low, "high": high,
                "n": len(own),
            })  # fmt: skip
    columns = [*by, "metric", "first", "second", "difference", "low", "high", "n"]
    return pd.DataFrame(table, columns=columns)


def _defenses(pairs: Pairs) -> pd.DataFrame:
    """Return the change of each metric by defense, over the attacks that both sweeps made."""
    own = {*TRIAL, "attack_name", "status", "evades", *COMPARED, *map(cases, COMPARED)}
    joined = pd.concat(
        [rows[[column for column in rows if column in own]].assign(side=side)
         for side, rows in zip(SIDES, pairs.rows, strict=True)]
    )  # fmt: skip
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
