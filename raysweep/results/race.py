"""The ends of the races of a sweep, worked out from its rows alone; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from pydantic import ValidationError

from raysweep.metrics.race import Pair, Standing, standing
from raysweep.results.cells import with_arena
from raysweep.results.description import Description
from raysweep.results.grouping import attack_column, attacked, numbers
from raysweep.sweep.race import Race


@dataclass(frozen=True, kw_only=True)
class RaceEnd:
    """The race of all defenses against one attack at one rate, in one arena.

    Attributes:
        arena, attack: where it was run; the attack with its rate.
        defenses: labels, by the number that pairs name them by.
        standing: of all pairs, and what was spent.
    """

    arena: str
    attack: str
    defenses: tuple[str, ...]
    standing: Standing

    def verdict(self, pair: Pair) -> str:
        """Return in words what is known of a pair."""
        if pair.state != "separated":
            return "too alike, given up" if (pair.state == "given up") else "not decided yet"
        lower, higher = (pair.one, pair.other) if pair.lower > pair.higher else (
            pair.other, pair.one
        )  # fmt: skip
        return f"{self.defenses[lower]} below {self.defenses[higher]}"


def rules_of(about: Description) -> Race | None:
    """Return the rules of the race of a sweep as it was launched; None if it has none."""
    seeds = about.sweep.get("seeds") if about.sweep else None
    if not isinstance(seeds, Mapping):
        return None
    try:
        return Race.model_validate(dict(seeds))
    except ValidationError:  # of another version of raysweep
        return None


def races(rows: pd.DataFrame, rules: Race) -> list[RaceEnd]:
    """Return the end of each race, from the rows of a sweep; none where nothing was attacked."""
    if rows.empty or rules.metric not in rows:
        return []
    values = numbers(rows, rules.metric)
    own = with_arena(rows.assign(attack_shown=attack_column(rows), value=values))
    own = own[attacked(own)]
    groups = [
        (str(arena), str(attack), part)
        for (arena, attack), part in own.groupby(["arena", "attack_shown"], sort=False)
        if part["defense"].nunique() > 1
    ]
    level = rules.false_separations / max(1, len(groups))
    return [_end(arena, attack, part, rules, level) for arena, attack, part in groups]


def _end(arena: str, attack: str, part: pd.DataFrame, rules: Race, level: float) -> RaceEnd:
    defenses = tuple(str(label) for label in part["defense"].unique())
    known: dict[tuple[int, int], float] = {}
    columns = part["defense"], part["seed"], part["status"], part["value"]
    for defense, seed, status, value in zip(*columns, strict=True):
        if status != "pending":
            known[defenses.index(str(defense)), int(seed)] = float(value)
    return RaceEnd(
        arena=arena, attack=attack, defenses=defenses,
        standing=standing(
            lambda one, seed: known.get((one, seed)), len(defenses), rules.max, rules.min, level
        ),
    )  # fmt: skip


def summary(ends: Sequence[RaceEnd], rules: Race) -> list[str]:
    """Return a line for each race, and one on what all of them spent."""
    lines = []
    for end in ends:
        pairs, spent = end.standing.pairs, end.standing.spent
        told = sum(pair.state == "separated" for pair in pairs)
        later = "" if end.standing.over else ", not over yet"
        seeds = f"{min(spent)} to {max(spent)}" if min(spent) < max(spent) else str(max(spent))
        lines.append(
            f"Race on {end.attack}, {end.arena}: {told} of {len(pairs)} pairs of defenses are "
            f"separated in {rules.metric.upper()}; {seeds} of {rules.max} seeds{later}"
        )
    if ends:
        trials = sum(sum(end.standing.spent) for end in ends)
        most = rules.max * sum(len(end.defenses) for end in ends)
        lines.append(
            f"Races: {trials} of {most} trials ({100 * trials / most:.0f} %); with probability "
            f"{100 * (1 - rules.false_separations):g} % no pair is called separated falsely"
        )
    return lines


def pairs_table(ends: Sequence[RaceEnd]) -> pd.DataFrame:
    """Return one row per pair of defenses of each race.

    Columns: arena, attack, one, other (labels), lower, higher, ties (in how many seeds the metric
    of `one` was lower, higher, the same or missing), evidence (0.5 is none), verdict.
    """
    rows = [
        {
            "arena": end.arena, "attack": end.attack,
            "one": end.defenses[pair.one], "other": end.defenses[pair.other],
            "lower": pair.lower, "higher": pair.higher, "ties": pair.ties,
            "evidence": pair.evidence, "verdict": end.verdict(pair),
        }
        for end in ends
        for pair in end.standing.pairs
    ]  # fmt: skip
    columns = ["arena", "attack", "one", "other", "lower", "higher", "ties", "evidence", "verdict"]
    return pd.DataFrame(rows, columns=columns)
