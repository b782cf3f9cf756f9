"""What it took and where it comes from: cost, failures, provenance; pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import pandas as pd

from raysweep.reports import figures
from raysweep.reports.elements import details, note, plots, seconds, table, text
from raysweep.reports.material import Material
from raysweep.reports.tables import attack_column, finished, words

KEYS_AT_MOST = 1000
SHOWN_AT_MOST = 3


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
    said = f"Stages took {seconds(spent.sum())} s"
    if spent.sum() > 0:
        said += (
            f"; without sharing, the same trials would take {seconds(alone.sum())} s: "
            f"sharing saves a factor of {alone.sum() / spent.sum():.1f}"
        )
    return (
        f"<p>{said}.</p>" + table("Cost by stage kind", headers, lines)
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


def failures(material: Material) -> str:
    """Return trials and stages that did not finish, grouped by cause."""
    rows = material.rows
    bad = rows[rows["status"] != "ok"] if len(rows) else rows
    if bad.empty:
        return "<p>None: every trial finished.</p>" if len(rows) else "<p>There are no trials.</p>"
    who = attack_column(bad) + " · " + bad["defense"] + " · seed " + bad["seed"].map(words)
    cause = bad["error"].map(words)
    lines = []
    for error, part in bad.groupby(cause, sort=False):
        states = ", ".join(f"{n} {s}" for s, n in part["status"].value_counts().items())
        stages = [s for s in part["error_stage"].map(words).unique() if s]
        logs = [log for log in part["log"].map(words).unique() if log]
        lines.append(
            [text(error), text(states), _some(stages), _some(logs), _some(who[part.index])]
        )  # fmt: skip
    return table(
        "Trials that did not finish, by cause",
        ["error", "trials", "stage", "log", "which"], lines, words_first=5,
    ) + _failed_stages(material.stages)  # fmt: skip


def _some(values: Iterable[object]) -> str:
    every = list(values)
    more = [f"and {len(every) - SHOWN_AT_MOST} more"] if len(every) > SHOWN_AT_MOST else []
    return "<br>".join([*(text(v) for v in every[:SHOWN_AT_MOST]), *more]) or "–"


def _failed_stages(stages: pd.DataFrame) -> str:
    bad = stages[stages["status"] == "failed"] if "status" in stages else stages
    if bad.empty:
        return ""
    lines = [
        [text(s["key"]), text(s["kind"]), text(s.get("host")), text(s.get("error")),
         text(s.get("log")), str(s["trials"])]
        for s in bad.to_dict("records")
    ]  # fmt: skip
    headers = ["stage", "kind", "host", "error", "log", "trials that wait for it"]
    return details(
        f"Failed stages: {len(lines)}", table("Failed stages", headers, lines, words_first=5)
    )


def provenance(material: Material) -> str:
    """Return what the numbers were made with, the sweep file, and the key of every stage."""
    sweep, rows, stages = material.sweep, material.rows, material.stages
    hosts = sweep.get("hosts") or [*_distinct(rows, "host"), *_distinct(stages, "host")]
    versions = sweep.get("versions")
    facts = {
        "launched": _date(sweep.get("created_at")),
        "commit of the launch": words(sweep.get("git_commit")) or "not in a checkout",
        "commits of the results": ", ".join(_distinct(rows, "git_commit")),
        "hosts": ", ".join(dict.fromkeys(map(words, hosts))),
        "storage": words(sweep.get("storage")),
        **(dict(versions) if isinstance(versions, Mapping) else {}),
    }
    lines = [[text(name), text(value)] for name, value in facts.items()]
    source = f'<pre tabindex="0">{text(sweep.get("text"))}</pre>'
    return (
        table("What this was made with", ["what", "value"], lines, words_first=2)
        + details("The sweep file", source) + _keys(rows)
    )  # fmt: skip


def _date(value: object) -> str:
    if isinstance(value, int | float) and words(value):
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(value))
    return words(value)


def _distinct(frame: pd.DataFrame, column: str) -> list[str]:
    return [w for w in frame[column].map(words).unique() if w] if column in frame else []


def _keys(rows: pd.DataFrame) -> str:
    columns = [str(c) for c in rows.columns if str(c).startswith("key_")]
    if rows.empty or not columns:
        return ""
    some = rows.head(KEYS_AT_MOST)
    who = attack_column(some) + " · " + some["defense"] + " · seed " + some["seed"].map(words)
    lines = [
        [text(name), text(row["trial"]), *(text(row[c]) for c in columns)]
        for name, row in zip(who, some.to_dict("records"), strict=True)
    ]
    headers = ["trial", "id", *(c.removeprefix("key_") for c in columns)]
    caption = "The artifact behind every number"
    if len(rows) > KEYS_AT_MOST:
        caption += f", first {KEYS_AT_MOST} of {len(rows)} trials"
    body = table(caption, headers, lines, words_first=len(headers))
    return details(f"Artifact keys of {len(lines)} trials", body)
