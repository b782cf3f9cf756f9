"""Cells: the trials of one setting, attack, rate and defense, which differ in their seeds alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd

from raysweep.identity import Json
from raysweep.metrics.intervals import NOTHING, Estimate, of_seeds, paired_interval
from raysweep.metrics.names import INPUT, cases
from raysweep.reports.data import column, floats
from raysweep.reports.tables import METRICS, SHOWN, words
from raysweep.results.cells import SETTING, with_arena
from raysweep.results.columns import PARAMETERS
from raysweep.results.grouping import ARENA, attack_column, failure_texts, finished, numbers

LOST = "lost"  # clean accuracy: that of the undefended model of the same seed, less this one
EXTRA = (
    "ca_eligible", "ca_target", "ra", "auroc", INPUT.of("auroc"), "ap", "tpr_at_1fpr",
    "fpr_no_cover", "cover_removal",
)  # fmt: skip
TITLES = {
    "asr": "ASR", LOST: "lost CA", "ca": "CA", "der": "DER", **SHOWN,
    "ca_eligible": "CA of eligible", "ca_target": "CA of target", "ra": "RA", "auroc": "AUROC",
    INPUT.of("auroc"): "AUROC of inputs", "ap": "AP", "tpr_at_1fpr": "TPR@1%FPR",
    "fpr_no_cover": "FPR without covers", "cover_removal": "covers removed",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric of a page's tables.

    Attributes:
        title: plain text.
        signed: whether it is a difference, written in points with its sign.
        shown: whether its column is seen before columns are chosen.
    """

    title: str
    signed: bool = False
    shown: bool = True


MEASURES: Mapping[str, Measure] = {name: Measure(title=title) for name, title in TITLES.items()}
BY = ("arena", "attack", "rate", "defense", "kind", "badges")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """The cells of a sweep.

    Attributes:
        table: one row per cell: `BY`, dataset, model, training (what of the recipe differs),
            family (of the attack), at (the rate as it is read), trials, finished, failed (the
            finding on an attack that failed), and for each metric m: m, m_low, m_high, m_n, m_unit,
            m_values.
        of: the number of the cell of each row of the records.
        rows: the records, with the columns arena, called (the defense by its short name), shown
            (the attack by its short name, with its rate) and cell.
        names: attack or defense → label → short name.
        measures: the metrics that the table may hold, in their order.
        counts: columns of the table that are counts → their titles.
        counted: the noun of what a cell holds.
    """

    table: pd.DataFrame
    of: pd.Series[int]
    rows: pd.DataFrame
    names: dict[str, dict[str, str]]
    measures: Mapping[str, Measure] = field(default_factory=lambda: MEASURES)
    counts: Mapping[str, str] = field(default_factory=dict)
    counted: str = "trials"

    @classmethod
    def read(cls, records: pd.DataFrame) -> Cells:
        """Return the cells of the records of all trials."""
        rows = records.reset_index(drop=True)
        if rows.empty or "attack" not in rows:
            none = pd.Series([0]).iloc[:0]
            empty = pd.DataFrame(columns=[*BY, "dataset", "model", "training", "family", "at",
                                          "trials", "finished", "failed"])  # fmt: skip
            rows = rows.iloc[:0].assign(arena="", called="", shown="", cell=0)
            return cls(table=empty, of=none, rows=rows, names={"attack": {}, "defense": {}})
        rows = with_arena(rows)
        found = failure_texts(rows, rows["arena"])
        names = {part: short_names(rows, part) for part in ("attack", "defense")}
        at = [
            shown.removeprefix(str(attack)).strip()
            for shown, attack in zip(attack_column(rows), rows["attack"], strict=True)
        ]
        rows["called"] = rows["defense"].map(str).map(names["defense"])
        rows["shown"] = (rows["attack"].map(str).map(names["attack"]) + " " + at).str.strip()
        rows[LOST] = _lost(rows)
        rows["cell"] = rows.groupby(list(BY), sort=False, dropna=False).ngroup()
        first = rows.drop_duplicates("cell").reset_index(drop=True)
        table = first[[*BY, *ARENA]].copy()
        table["training"] = [
            arena.removeprefix(" · ".join(filter(None, map(words, own)))).removeprefix(" · ")
            for arena, *own in zip(first["arena"], *(first[name] for name in ARENA), strict=True)
        ]
        table["family"] = first["attack_name"]
        table["at"] = [at[place] for place in rows.drop_duplicates("cell").index]
        done = finished(rows)
        count = len(table)
        table["trials"] = np.bincount(rows["cell"], minlength=count)
        table["finished"] = np.bincount(done["cell"], minlength=count)
        table["failed"] = list(found[rows.drop_duplicates("cell").index])
        parts = [table, *(measured(done, metric, count) for metric in _present(done))]
        table = pd.concat(parts, axis=1)
        return cls(table=table, of=rows["cell"], rows=rows, names=names)

    @property
    def several(self) -> bool:
        """Whether there is more than one arena."""
        return bool(self.rows["arena"].nunique() > 1)

    @property
    def metrics(self) -> list[str]:
        """The metrics that are defined somewhere."""
        return [name for name in self.measures if name in self.table]

    def pack(self) -> dict[str, Json]:
        """Return the cells as JSON."""
        table = self.table
        who = [*BY, *ARENA, "training", "family", "at", "trials", "finished", "failed"]
        who += [name for name in ("change", *self.counts) if name in table]
        metrics: list[Json] = [
            {
                "name": name, **asdict(self.measures[name]),
                **{part or "mean": floats(table[f"{name}_{part}" if part else name], 6)
                   for part in ("", "low", "high", "n")},
                "unit": column(table[f"{name}_unit"]),
                "values": [floats(own) for own in table[f"{name}_values"]],
            }
            for name in self.metrics
        ]  # fmt: skip
        return {
            "columns": {name: column(table[name]) for name in who},
            "metrics": metrics,
            "names": {part: dict(own) for part, own in self.names.items()},
            "counts": dict(self.counts),
            "counted": self.counted,
        }


def short_names(rows: pd.DataFrame, part: str) -> dict[str, str]:
    """Return label → name without the parameters in which methods of that name agree.

    Args:
        rows: the records; some.
        part: `attack` or `defense`.
    """
    first = rows.drop_duplicates(part)
    columns = PARAMETERS[part].within(rows.columns)
    names: dict[str, str] = {}
    for method, own in first.groupby(f"{part}_name", sort=False):
        labels = own[part].map(str)
        differing = [
            (name, own[at].map(words))
            for name, at in columns.items()
            if name != "rate" and own[at].map(words).nunique() > 1
        ]
        told = {
            label: ", ".join(f"{name}={values.iloc[place]}" for name, values in differing)
            for place, label in enumerate(labels)
        }
        for label, said in told.items():
            alone = list(told.values()).count(said) == 1
            names[label] = (f"{method}({said})" if said else str(method)) if alone else label
    return names


def _present(done: pd.DataFrame) -> list[str]:
    numbers = {name: pd.to_numeric(done[name], errors="coerce") for name in TITLES if name in done}
    return [name for name, values in numbers.items() if values.notna().any() or name in METRICS[:2]]


def _lost(rows: pd.DataFrame) -> pd.Series[float]:
    """Return the clean accuracy that each trial lost against the undefended one of its seed."""
    if "ca" not in rows:
        return pd.Series(np.nan, index=rows.index)
    mine = pd.to_numeric(rows["ca"], errors="coerce").where(rows["status"] == "ok")
    columns = zip(*(rows[name].map(words) for name in SETTING), strict=True)
    victim = pd.Series(["\0".join(own) for own in columns], index=rows.index, dtype="str")
    alone = rows["defense_name"] == "none"
    accuracy = mine[alone].groupby(victim[alone]).mean()
    return victim.map(accuracy).astype(float) - mine


def measured(done: pd.DataFrame, metric: str, count: int) -> pd.DataFrame:
    """Return the estimate of a metric for each of `count` cells.

    Args:
        done: finished trials with the column cell.
        metric: its column.
        count: how many cells there are.

    Columns: m, m_low, m_high, m_n, m_unit and m_values of the metric m.
    """
    values = numbers(done, metric).replace([np.inf, -np.inf], np.nan)
    inputs = numbers(done, cases(metric))
    own: list[tuple[list[float], list[float]]] = [([], []) for _ in range(count)]
    for cell, value, n in zip(done["cell"], values, inputs, strict=True):
        own[cell][0].append(value)
        own[cell][1].append(n)
    make = _of_differences if metric == LOST else of_seeds
    found = [make(*one) for one in own]
    return pd.DataFrame(
        {
            metric: [one.value for one in found],
            **{f"{metric}_{part}": [getattr(one, part) for one in found]
               for part in ("low", "high", "n", "unit", "values")},
        }
    )  # fmt: skip


def _of_differences(values: Sequence[float], inputs: Sequence[float]) -> Estimate:
    """Return the estimate of a mean of differences, one a seed."""
    del inputs
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return NOTHING
    low, high = paired_interval(known)
    return Estimate(
        value=float(known.mean()), low=low, high=high, n=len(known), unit="seeds",
        values=tuple(known.tolist()),
    )  # fmt: skip
