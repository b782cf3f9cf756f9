"""The races of a sweep on its page: what was spent, and every pair of defenses; pure."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep.reports.material import Material
from raysweep.reports.sheets import Column, Sheet
from raysweep.results.race import RaceEnd, pairs_table, races, rules_of, summary

NOTE = (
    "Lower, higher, the same (or missing): in how many seeds the metric of the first was so. "
    "Evidence starts at 0.5; what it must reach depends on the evidence of all pairs."
)


def ended(material: Material) -> tuple[str, Sequence[RaceEnd]]:
    """Return sentences on the races of a sweep, and the end of each."""
    rules = rules_of(material.sweep)
    ends = races(material.rows, rules) if rules else []
    return (". ".join(summary(ends, rules)) + "." if rules and ends else ""), ends


def sheets(ends: Sequence[RaceEnd]) -> list[Sheet]:
    """Return the table of all pairs; none without a race."""
    pairs = pairs_table(ends)
    if pairs.empty:
        return []
    titles = {
        "one": "first", "other": "second", "attack": "attack", "verdict": "verdict",
        "lower": "lower", "higher": "higher", "ties": "the same", "evidence": "evidence",
        "arena": "trained on",
    }  # fmt: skip
    shown = {"lower", "higher", "ties", "evidence"}
    columns = [
        Column(title=title, values=list(pairs[name]), shown="number" if name in shown else "text")
        for name, title in titles.items()
    ]
    return [Sheet(title="Pairs of defenses", columns=columns, note=NOTE)]
