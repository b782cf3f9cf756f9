"""Costs of the trials, and the savings of sharing; pure."""

from __future__ import annotations

import numpy as np
import pandas as pd

from raysweep.reports.cells import Cells
from raysweep.reports.drawings import Drawing, Line
from raysweep.reports.material import Material
from raysweep.reports.sheets import Column, Sheet, seconds
from raysweep.results.grouping import finished
from raysweep.results.rows import in_order_of_work

STATES = ("done", "cached", "failed", "upstream_failed", "pending")
STATE_TITLES = ("run now", "cached", "failed", "upstream failed", "pending")
SPENT = {
    "own_seconds": "own seconds", "shared_seconds": "share of shared",
    "standalone_seconds": "standalone", "gpu_seconds": "GPU seconds",
}  # fmt: skip


def sentence(material: Material) -> str:
    """Return the seconds that stages took, and the factor that sharing saved; or nothing."""
    stages = material.stages
    if stages.empty:
        return ""
    spent = stages["seconds"].fillna(0).sum()
    alone = (stages["seconds"] * stages["trials"]).fillna(0).sum()
    said = f"Stages took {seconds(spent)} s"
    if spent > 0:
        said += (
            f"; without sharing, the same trials would take {seconds(alone)} s: "
            f"sharing saves a factor of {alone / spent:.1f}"
        )
    return f"{said}."


def sheets(material: Material, cells: Cells) -> list[Sheet]:
    """Return the tables of seconds by stage kind and by defense."""
    found = (_by_stage(material.stages), _by_defense(finished(cells.rows)))
    return [sheet for sheet in found if sheet]


def _by_stage(stages: pd.DataFrame) -> Sheet | None:
    if stages.empty:
        return None
    known = in_order_of_work(stages)
    known = known.assign(
        seconds=known["seconds"].fillna(0), alone=(known["seconds"] * known["trials"]).fillna(0)
    )
    kinds = known.groupby("kind", sort=False)
    sums = kinds[["seconds", "gpu_seconds", "alone"]].sum()
    states = pd.crosstab(known["kind"], known["status"]).reindex(sums.index)
    columns = [
        Column(title="stage", values=list(sums.index)),
        Column(title="distinct", values=list(kinds.size()), shown="number"),
        *(Column(title=title, shown="number",
                 values=list(states[state]) if state in states else [0] * len(sums))
          for state, title in zip(STATES, STATE_TITLES, strict=True)),
        *(Column(title=title, values=list(sums[name]), shown="seconds")
          for name, title in (("seconds", "seconds"), ("gpu_seconds", "GPU seconds"),
                              ("alone", "unshared seconds"))),
    ]  # fmt: skip
    return Sheet(title="Cost by stage kind", columns=columns)


def _by_defense(rows: pd.DataFrame) -> Sheet | None:
    if rows.empty or any(name not in rows for name in SPENT):
        return None
    numbers = rows[[*SPENT]].apply(pd.to_numeric, errors="coerce")
    groups = numbers.groupby(rows["called"], sort=False)
    means = groups.mean()
    columns = [
        Column(title="defense", values=list(means.index)),
        Column(title="n", values=list(groups.size()), shown="number"),
        *(Column(title=title, values=list(means[name]), shown="seconds")
          for name, title in SPENT.items()),
    ]  # fmt: skip
    return Sheet(
        title="Cost of a trial by defense, mean seconds", columns=columns,
        note="Own: stages that only this trial uses. Share: its even part of stages used by "
        "several. Standalone: everything that it needs, as if run by itself.",
    )  # fmt: skip


def drawings(material: Material) -> list[Drawing]:
    """Return the figure of seconds by stage kind: as run, and as if nothing were shared."""
    if material.stages.empty:
        return []
    stages = in_order_of_work(material.stages)
    alone = (stages["seconds"] * stages["trials"]).groupby(stages["kind"], sort=False).sum()
    once = stages["seconds"].groupby(stages["kind"], sort=False).sum()
    kinds = list(map(str, once.index))
    lines = [
        Line(name=name, x=kinds, y=np.asarray(values, float), shape="bars")
        for name, values in (("once, shared", once), ("unshared", alone))
    ]
    title = "Seconds by stage kind: shared, and if every trial did its own"
    return [Drawing(title=title, x_title="", y_title="seconds", lines=lines)]
