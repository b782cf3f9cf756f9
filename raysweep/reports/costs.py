"""Costs of the trials, and the savings of sharing; pure."""

from __future__ import annotations

import pandas as pd

from raysweep.reports import figures
from raysweep.reports.html_elements import note, plots, seconds, table, text
from raysweep.reports.material import Material
from raysweep.reports.tables import finished


def cost(material: Material) -> str:
    """Return seconds by stage kind and by defense, and what sharing has saved."""
    return _by_stage(material) + _by_defense(finished(material.rows))


def _by_stage(material: Material) -> str:
    stages = material.stages
    if stages.empty:
        return ""
    spent, alone = stages["seconds"].fillna(0), (stages["seconds"] * stages["trials"]).fillna(0)
    lines = []
    for kind, part in stages.groupby("kind", sort=False):
        states = part["status"].value_counts()
        lines.append(
            [text(kind), str(len(part)),
             *(str(states.get(s, 0)) for s in ("done", "cached", "failed", "upstream_failed",
                                               "pending")),
             seconds(spent[part.index].sum()), seconds(part["gpu_seconds"].sum()),
             seconds(alone[part.index].sum())]
        )  # fmt: skip
    headers = ["stage", "distinct", "run now", "cached", "failed", "upstream failed", "pending",
               "seconds", "GPU seconds", "unshared seconds"]  # fmt: skip
    sentence = f"Stages took {seconds(spent.sum())} s"
    if spent.sum() > 0:
        sentence += (
            f"; without sharing, the same trials would take {seconds(alone.sum())} s: "
            f"sharing saves a factor of {alone.sum() / spent.sum():.1f}"
        )
    return (
        f"<p>{sentence}.</p>" + table("Cost by stage kind", headers, lines)
        + plots(figures.cost_bars(material), wide=True)
    )  # fmt: skip


def _by_defense(rows: pd.DataFrame) -> str:
    columns = ["own_seconds", "shared_seconds", "standalone_seconds", "gpu_seconds"]
    if rows.empty or any(column not in rows for column in columns):
        return ""
    lines = []
    for defense, part in rows.groupby("defense", sort=False):
        means = (pd.to_numeric(part[c], errors="coerce").mean() for c in columns)
        lines.append([text(defense), *(seconds(value) for value in means), str(len(part))])
    headers = ["defense", "own seconds", "share of shared", "standalone", "GPU seconds", "n"]
    return table("Cost of a trial by defense, mean seconds", headers, lines) + note(
        "Own: stages that only this trial uses. Share: its even part of stages used by several. "
        "Standalone: everything that it needs, as if run by itself."
    )
