"""The run of a whole sweep: its question, findings, table, counts, cost and failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from raysweep.metrics.names import INPUT
from raysweep.results.cells import DER, cells
from raysweep.results.columns import Cell
from raysweep.results.description import Description
from raysweep.results.entries.entry import Entry, defined, marked, numbers, run_id, textual
from raysweep.results.findings import findings, overall
from raysweep.results.rows import in_order_of_work
from raysweep.results.text import fenced
from raysweep.sweep.spec import Track

JOB = "sweep"
METRICS = ("asr", "ca", DER, "tpr", "fpr", INPUT.of("tpr"), INPUT.of("fpr"))


def whole(
    about: Description, rows: pd.DataFrame, stages: pd.DataFrame, sweep: str, track: Track
) -> Entry:
    """Return the run of a sweep as far as it has come: the same run whenever it is told again.

    Args:
        about: its description.
        rows: one row per trial.
        stages: one row per stage.
        sweep: its name.
        track: where the run is to be.
    """
    counts = Counter(rows["status"]) if "status" in rows else Counter[str]()
    summary = {
        "trials": len(rows), "finished": counts["ok"], "pending": counts["pending"],
        "failed": counts["failed"] + counts["upstream_failed"],
    }  # fmt: skip
    spent = {name: stages[name].sum() for name in ("seconds", "gpu_seconds") if name in stages}
    entry = Entry(
        run=run_id(sweep, JOB),
        name=f"{JOB} · {sweep}",
        job=JOB,
        tags=(JOB,),
        config=_config(about, sweep),
        summary=numbers({**summary, **spent, "stages": len(stages)}),
        tables={name: textual(table) for name, table in _tables(rows, stages).items()},
        notes=_notes(about, rows),
        state="running" if counts["pending"] else "finished",
    )
    return marked(entry, track)


def _config(about: Description, sweep: str) -> Mapping[str, Cell]:
    facts: dict[str, Cell] = {
        "sweep_name": sweep, "question": about.question, "git_commit": about.git_commit,
        "created_at": about.created_at, "precision": about.precision, "file": about.text,
        **{f"version.{package}": version for package, version in (about.versions or {}).items()},
    }  # fmt: skip
    return {name: cell for name, fact in facts.items() if (cell := defined(fact)) is not None}


def _notes(about: Description, rows: pd.DataFrame) -> str:
    """Return the question, and one line on each arena, as text that is no markup."""
    lines = [about.question or "", *(line for _, line in answers(rows))]
    told = "\n".join(filter(None, lines))
    return fenced(told) if told else ""


def answers(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (arena, sentence) on the best defense of each arena: the best, if one can be named."""
    said = []
    for one in overall(rows):
        among = ", ".join(one.among)
        best = f"{one.best} is the best" if one.best else "no defense can be named the best"
        also = f"; not told apart: {among}" if len(one.among) > 1 else ""
        test = f" ({one.test})" if one.test else ""
        said.append((one.arena, f"{one.arena}: {best}{also}{test}"))
    return said


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per arena and attack: ASR without a defense, and which defenses hold it."""
    lines = [
        {
            "arena": one.arena, "attack": one.attack,
            "undefended_asr": one.undefended.value if one.undefended else None,
            "undefended_asr_low": one.undefended.low if one.undefended else None,
            "undefended_asr_high": one.undefended.high if one.undefended else None,
            "failed": one.failed, "holds": _listed(one.holds), "worse": _listed(one.worse),
            "indistinct": _listed(one.indistinct), "untested": _listed(one.untested),
        }
        for one in findings(rows)
    ]  # fmt: skip
    return pd.DataFrame(lines)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def matrix(rows: pd.DataFrame) -> pd.DataFrame:
    """Return attack by defense: one line per arena, attack, rate and defense, with intervals.

    Columns: those of `cells`, without the values of single trials; `attack_at_rate`, the attack's
    name in a heat map; `asr_percent` and `ca_percent`, rounded for it. Other shares are fractions.
    """
    known = [metric for metric in METRICS if metric in (DER, *rows.columns)]
    found = cells(rows, known)
    kept = found.drop(columns=[f"{metric}_values" for metric in known])
    at_rate = kept["attack"] + " @ " + (100 * kept["rate"].astype(float)).map("{:g} %".format)
    return kept.assign(
        attack_at_rate=at_rate,
        **{f"{m}_percent": (100 * kept[m]).round(1) for m in ("asr", "ca") if m in kept},
    )


def _tables(rows: pd.DataFrame, stages: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if rows.empty:
        return {}
    tables = {
        "headline": headline(rows), "attack_by_defense": matrix(rows), "cost": cost(stages),
        "failures": failures(rows),
    }  # fmt: skip
    return {name: table for name, table in tables.items() if len(table)}


def cost(stages: pd.DataFrame) -> pd.DataFrame:
    """Return one line per kind of stage: how many there are, and what they took, in seconds."""
    if stages.empty:
        return pd.DataFrame()
    kinds = in_order_of_work(stages).groupby("kind", sort=False)
    table = kinds[["seconds", "gpu_seconds"]].sum()
    return table.assign(stages=kinds.size()).reset_index()


def failures(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per cause: the error, how many trials it costs, and the first of them."""
    bad = rows[rows["status"].isin(["failed", "upstream_failed"])]
    lines = [
        {
            "error": str(error), "trials": len(part), "stage": str(part["error_stage"].iloc[0]),
            "first": " · ".join(str(part[name].iloc[0]) for name in ("attack", "defense", "seed")),
        }
        for error, part in bad.groupby("error", sort=False)
    ]  # fmt: skip
    return pd.DataFrame(lines)
