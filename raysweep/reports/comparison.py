"""The page of a comparison of two sweeps; a pure function of the records of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from raysweep.identity import Json
from raysweep.metrics.names import cases
from raysweep.reports.cells import TITLES, Cells, Measure, measured
from raysweep.reports.data import column
from raysweep.reports.document import Section, document
from raysweep.reports.drawings import Drawing, Line
from raysweep.reports.provenance import provenance
from raysweep.reports.sheets import Column, Sheet
from raysweep.reports.tables import number, words
from raysweep.results.changes import COMPARED, SIDES, Changes, Pairs
from raysweep.results.columns import is_parameter
from raysweep.results.grouping import EVASIONS, finished
from raysweep.results.records import Records

CELL = ["arena", "attack", "rate", "defense"]
ANSWERED = {"asr": "ASR", "ca": "Clean accuracy"}
LISTED = 8  # parameters that the first screen has room for
UNCHANGED = "no change shown"
RULE = (
    "A change is shown where the 95 % interval of the mean difference of the pairs lies on one "
    "side of 0. Each cell is judged alone: where nothing has changed, about one cell in twenty is "
    "named all the same."
)
LEGENDS = {
    "results": "In percent, changes in points. a [b, c]: mean difference of the pairs and its 95 % "
    "interval, of three pairs or more; of fewer, the widest of the inputs of single models. Means "
    "of either sweep are of the paired trials. n: finished pairs.",
    "trials": "Every pair in view: trials of the same setting, attack, defense and seed; first: "
    "{names[0]}, second: {names[1]}. “columns” shows the parameters in which some pair differs.",
    "rows": "Pairs",
}


def render(records: tuple[Records, Records], pairs: Pairs, found: Changes) -> str:
    """Return the page: one HTML document that needs no other file and no network.

    The same records give the same text.

    Args:
        records: of the first and of the second sweep.
        pairs: their trials.
        found: the changes between the trials; its names are what the page calls the sweeps.
    """
    names = found.names
    cells = _cells(pairs, found)
    sides = list(zip(names, records, strict=True))
    return document(
        "comparison.html",
        _sections(found, pairs, cells),
        cells.pack(),
        {"rows": _pairs(pairs, cells, names)},
        name=f"{names[0]} → {names[1]}",
        names=names,
        questions=[words(one.sweep.question) for one in records],
        found=found,
        finished=int(cells.table["finished"].sum()),
        tallies=_tallies(found),
        rule=RULE,
        listed=LISTED,
        count=len(cells.table),
        rated=False,
        legends={part: text.format(names=names) for part, text in LEGENDS.items()},
        notes=[f"{name}: {note}" for name, one in sides for note in one.notes],
        facts={f"{name}: {fact}": value for name, one in sides
               for fact, value in provenance(one).items()},
        sources={f"The sweep file of {name}": words(one.sweep.text) for name, one in sides},
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Numbers of cells in which a metric fell, rose, or did neither for certain."""

    title: str
    fell: int
    rose: int
    rest: int
    unsure: int

    @property
    def count(self) -> int:
        """The number of cells in which both sweeps measured it."""
        return self.fell + self.rose + self.rest + self.unsure

    @property
    def sentence(self) -> str:
        """The numbers, in a sentence."""
        if not self.count:
            return f"{self.title} was measured in no cell of both."
        moved = [f"{word} in {count:,}" for word, count in
                 (("fell", self.fell), ("rose", self.rose)) if count]  # fmt: skip
        of = f"of {self.count:,} {'cell' if self.count == 1 else 'cells'}"
        if self.rest == self.count:
            return f"{self.title}: no change is shown in any {of}."
        said = f"{self.title} {' and '.join(moved)} {of}" if moved else f"{self.title}, {of}"
        rest = [f"no change is shown in {self.rest:,}"] if self.rest else []
        rest += [f"{self.unsure:,} without an interval"] if self.unsure else []
        return (": " if not moved else "; ").join([said, ", ".join(rest)] if rest else [said]) + "."


def _tallies(found: Changes) -> list[Tally]:
    """Return the tally of each metric that the first screen is about."""
    tallies = []
    for metric, title in ANSWERED.items():
        own = found.cells[found.cells["metric"] == metric]
        if metric == "asr":  # without poison, a trigger is met by accident
            own = own[(own["rate"] > 0) | own["arena"].str.endswith(EVASIONS)]
        unsure = own["low"].isna() | own["high"].isna()
        fell, rose = own["high"] < 0, own["low"] > 0
        tallies.append(
            Tally(
                title=title, fell=int(fell.sum()), rose=int(rose.sum()), unsure=int(unsure.sum()),
                rest=int((~fell & ~rose & ~unsure).sum()),
            )
        )  # fmt: skip
    return tallies


def _cells(pairs: Pairs, found: Changes) -> Cells:
    """Return the cells of the pairs: each metric in both sweeps, and its change."""
    second = pairs.rows[1]
    read = Cells.read(second)
    if read.table.empty:
        return replace(read, counted="pairs")
    base = read.table.drop(columns=[name for name in read.table if _is_measured(str(name))])
    count, places = len(base), read.of.to_numpy()
    done = pairs.finished.to_numpy()
    keys = second[CELL].assign(cell=places).drop_duplicates("cell").sort_values("cell")
    base["finished"] = np.bincount(places[done], minlength=count)
    parts, measures = [base], {}
    for metric in dict.fromkeys((*ANSWERED, *COMPARED)):
        changed = found.cells[found.cells["metric"] == metric]
        if changed.empty:
            continue
        parts.append(_change(keys, changed, metric))
        measures[f"{metric}_change"] = Measure(title=f"{TITLES[metric]} change", signed=True)
        for side, rows, name in zip(SIDES, pairs.rows, found.names, strict=True):
            own = rows[done].assign(cell=places[done])
            parts.append(measured(own, metric, count).add_prefix(f"{side}_"))
            measures[f"{side}_{metric}"] = Measure(
                title=f"{TITLES[metric]} of {name}", shown=metric in ANSWERED
            )
    table = pd.concat(parts, axis=1)
    table["change"] = _said(table)
    counts = {}
    for side, rows, alone, name in zip(SIDES, pairs.rows, pairs.alone, found.names, strict=True):
        table[f"{side}_n"] = _counted(keys, finished(pd.concat([rows, alone])))
        counts[f"{side}_n"] = f"n of {name}"
    return replace(read, table=table, measures=measures, counts=counts, counted="pairs")


def _is_measured(name: str) -> bool:
    return any(name == m or name.startswith(f"{m}_") for m in TITLES)


def _change(keys: pd.DataFrame, changed: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the change of a metric in each cell, in the columns of `measured`."""
    own = keys.merge(changed, on=CELL, how="left")
    name = f"{metric}_change"
    return pd.DataFrame({
        name: own["difference"], f"{name}_low": own["low"], f"{name}_high": own["high"],
        f"{name}_n": own["n"], f"{name}_unit": "pairs", f"{name}_values": [()] * len(own),
    })  # fmt: skip


def _said(table: pd.DataFrame) -> list[str]:
    """Return for each cell which of the answered metrics fell or rose, as words of a filter."""
    said: list[list[str]] = [[] for _ in range(len(table))]
    for metric in ANSWERED:
        name = f"{metric}_change"
        if name not in table:
            continue
        for words_, low, high in zip(
            said, table[f"{name}_low"], table[f"{name}_high"], strict=True
        ):
            if high < 0 or low > 0:
                words_.append(f"{TITLES[metric]} {'fell' if high < 0 else 'rose'}")
    return [", ".join(one) or UNCHANGED for one in said]


def _counted(keys: pd.DataFrame, rows: pd.DataFrame) -> list[int]:
    """Return the number of rows of each cell."""
    sizes = rows.groupby(CELL, dropna=False).size().rename("size").reset_index()
    own = keys.merge(sizes, on=CELL, how="left")["size"]
    return [int(size) for size in own.fillna(0)]


def _pairs(pairs: Pairs, cells: Cells, names: tuple[str, str]) -> dict[str, Json]:
    """Return the pairs as JSON: who they are, the metrics of both, and what differs."""
    first, second = pairs.rows
    table = second[["defense", "attack", "rate", "seed"]].copy()
    both = dict.fromkeys((*first, *second))
    metrics = [name for metric in COMPARED for name in (metric, cases(metric)) if name in both]
    differing = [
        name for name in both
        if is_parameter(name) and any(_column(first, name) != _column(second, name))
    ]  # fmt: skip
    for name in ("status", *metrics, *differing, "trial"):
        for side, rows in zip(SIDES, pairs.rows, strict=True):
            table[f"{name}_{side}"] = rows.get(name)
    columns: list[Json] = [{"name": str(name), **column(table[name])} for name in table]
    shown = [f"{name}_{side}" for name in (*ANSWERED, "status") for side in SIDES]
    return {
        "columns": columns, "cells": cells.of.tolist(),
        "first": ["defense", "attack", "rate", "seed", *shown],
        "command": {
            "said": "Changes of all cells: ",
            "line": f"raysweep compare {names[0]} {names[1]} --json",
        },
    }  # fmt: skip


def _column(rows: pd.DataFrame, name: str) -> np.ndarray:
    return rows[name].map(words).to_numpy(object) if name in rows else np.full(len(rows), "")


def _sections(found: Changes, pairs: Pairs, cells: Cells) -> list[Section]:
    return [
        Section(key="by-attack", title="Differences by attack", drawings=_drawings(found, cells),
                said=f"{found.names[1]} − {found.names[0]}, mean of the pairs with its 95 % "
                "interval; below 0 it fell."),
        Section(key="over-attacks", title="Over all attacks", sheets=_over_attacks(found)),
        Section(key="parameters", title="What differs", sheets=_parameters(found)),
        Section(key="alone", title="In one sweep alone", said=_left(found),
                sheets=_alone(found, pairs)),
    ]  # fmt: skip


def _drawings(found: Changes, cells: Cells) -> list[Drawing]:
    """Return the figures of changes, one per metric, arena and attack.

    Against the poison rate where an attack has several, else beside one another.
    """
    drawings = []
    for metric, title in ANSWERED.items():
        name = f"{metric}_change"
        if name not in cells.table:
            continue
        known = cells.table[cells.table[name].notna()]
        for (arena, attack), own in known.groupby(["arena", "attack"], sort=False):
            rated = own["rate"].nunique() > 1
            called = cells.names["attack"].get(str(attack), str(attack))
            at = "" if rated else f" {own['at'].iloc[0]}"
            among = f" · {arena}" if cells.several else ""
            drawings.append(
                Drawing(
                    title=f"{called}{at}: change of {title if metric == 'asr' else title.lower()}"
                    f"{among}",
                    x_title="poison rate, %" if rated else "", y_title="points",
                    lines=_lines(own, name, cells, rated=rated),
                )
            )  # fmt: skip
    return drawings


def _lines(own: pd.DataFrame, name: str, cells: Cells, *, rated: bool) -> list[Line]:
    """Return a line, or a point, for each defense."""
    lines = []
    for defense, part in own.groupby("defense", sort=False):
        part = part.sort_values("rate")
        short = cells.names["defense"].get(str(defense), str(defense))
        low, high = (100 * part[f"{name}_{end}"].to_numpy(float) for end in ("low", "high"))
        lines.append(
            Line(
                name=str(defense), y=100 * part[name].to_numpy(float), ends=(low, high),
                x=100 * part["rate"].to_numpy(float) if rated else [short] * len(part),
                cell=int(part.index[0]), shape="both" if rated else "points",
            )
        )  # fmt: skip
    return lines


def _over_attacks(found: Changes) -> list[Sheet]:
    """Return the table of changes over all attacks of an arena, by defense."""
    table = found.defenses
    if table.empty:
        return []
    columns = [
        Column(title="defense", values=list(table["defense"])),
        Column(title="setting", values=list(table["arena"])),
        Column(title="metric", values=[TITLES[metric] for metric in table["metric"]]),
        *(Column(title=title, values=list(100 * table[name]), shown="number")
          for title, name in (("difference, points", "value"), ("low", "low"), ("high", "high"))),
        Column(title="p (Holm)", values=list(table["holm"]), shown="number"),
        Column(title="n", values=list(table["n"]), shown="number"),
        Column(title="unit", values=list(table["unit"])),
    ]  # fmt: skip
    return [Sheet(
        title=f"{found.names[1]} − {found.names[0]}, by defense", columns=columns,
        note="Over the attacks that both sweeps made. p is exact, of signs turned, and Holm's "
        "correction is over the defenses of one setting and metric.",
    )]  # fmt: skip


def _parameters(found: Changes) -> list[Sheet]:
    table = found.parameters
    if table.empty:
        return []
    columns = [
        Column(title="parameter", values=list(table["parameter"])),
        *(Column(title=name, values=[one or "–" for one in table[side]])
          for name, side in zip(found.names, SIDES, strict=True)),
        Column(title="pairs", values=list(table["trials"]), shown="number"),
    ]  # fmt: skip
    return [Sheet(title="Parameters that differ between the trials of a pair", columns=columns)]


def _left(found: Changes) -> str:
    counts = zip(found.names, (found.only_first, found.only_second), strict=True)
    return "; ".join(f"only in {name}: {len(only):,} trials" for name, only in counts) + "."


def _alone(found: Changes, pairs: Pairs) -> list[Sheet]:
    """Return the table of cells whose trials have no like, counted."""
    parts = [
        rows.groupby(CELL, sort=False, dropna=False)["seed"].agg(list).reset_index().assign(of=name)
        for name, rows in zip(found.names, pairs.alone, strict=True) if len(rows)
    ]  # fmt: skip
    if not parts:
        return []
    table = pd.concat(parts, ignore_index=True)
    columns = [
        Column(title="defense", values=list(table["defense"])),
        Column(title="attack", values=list(table["attack"])),
        Column(title="rate, %", values=[number(rate) for rate in table["rate"]], shown="percent"),
        Column(title="setting", values=list(table["arena"])),
        Column(title="only in", values=list(table["of"])),
        Column(title="trials", values=[len(seeds) for seeds in table["seed"]], shown="number"),
        Column(title="seeds", values=[_ranges(seeds) for seeds in table["seed"]]),
    ]  # fmt: skip
    return [Sheet(title="Trials that have no like in the other sweep", columns=columns)]


def _ranges(seeds: Sequence[int]) -> str:
    """Return seeds as text: runs of them by their ends."""
    known = np.unique(np.asarray(seeds, int))
    runs = np.split(known, np.flatnonzero(np.diff(known) != 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
