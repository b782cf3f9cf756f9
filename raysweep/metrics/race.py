"""A race of defenses over seeds: looks after every seed, and a bound on false separations over all.

In each seed two defenses meet the same victim, so that their difference there is a pair. If neither
is better, a difference that is not 0 is as often below 0 as above it. Money bet on one sign, at
fair odds, then multiplies by more than 1/a with probability a at most, however often and whenever
one looks (Ville's inequality); what a bettor owns is the evidence of a pair.

    evidence(w wins, l losses) = max over the two directions of
        (2^w [l = 0] + 2^(w+l+1) * integral of p^w (1-p)^l over 1/2 < p < 1) / 4

Half of each stake goes on the next sign being as all before, half on every chance p at once. A
pair counts as separated once the mean of its evidence and that of any other pairs of its race is at
least 1 over the level (the closed test of mean evidence): with probability 1 - level, no pair is
ever called separated that is not, or in the wrong direction.

Sources: G. Shafer: Testing by betting, JRSS A 184, 2021. V. Vovk, R. Wang: E-values: calibration,
combination and applications, Annals of Statistics 49, 2021 (closed test by means of evidence).
Confidence sequences for means of values in [0, 1] would say more (how much better), and need tens
of seeds where signs need six.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raysweep.arrays import Floats

HOPELESS = 0.1  # a chance to be separated by the last seed, below which a pair is given up
PairState = Literal["open", "separated", "given up"]
ValueOf = Callable[[int, int], float | None]


def evidence(wins: Floats, losses: Floats) -> Floats:
    """Return the evidence, element by element, that one of two is better; 0.5 before any seed.

    Args:
        wins, losses: (n,) how often the first was better, and worse; ties are left out.
    """
    from scipy import special

    def towards(w: Floats, other: Floats) -> Floats:
        steady = np.where(other == 0, np.exp2(w), 0.0)
        above = 1 - special.betainc(w + 1, other + 1, 0.5)
        log_mixed = (w + other + 1) * math.log(2) + special.betaln(w + 1, other + 1)
        return np.asarray(steady + np.exp(log_mixed) * above, float) / 2

    return np.maximum(towards(wins, losses), towards(losses, wins)) / 2


def fewest_seeds(level: float) -> int:
    """Return the fewest seeds, all of one sign, that separate a lone pair at a level."""
    many = np.arange(1.0, 513.0)
    return int(np.argmax(evidence(many, np.zeros_like(many)) >= 1 / level)) + 1


def separated(found: Floats, level: float) -> list[bool]:
    """Return for each pair whether it is separated at a level, from the evidence of all pairs.

    The closed test: all sets of pairs that hold this one must reach 1 / level in the mean.
    """
    ordered, told = np.sort(found), []
    for one in found.tolist():
        others = np.delete(ordered, np.searchsorted(ordered, one))
        lowest = np.concatenate([[0.0], np.cumsum(others)])  # of no other pair, of one, of two, …
        means = (one + lowest) / np.arange(1, len(lowest) + 1)
        told.append(bool((means >= 1 / level).all()))
    return told


@functools.lru_cache(maxsize=65_536)
def chance(wins: int, losses: int, ties: int, left: int, needed: float) -> float:
    """Return the chance that a pair has enough evidence after its last seed.

    Seeds to come are expected to be like those before, which are known by few: of the predictive
    distribution of Jeffreys' prior. It decides about effort alone, never about what is separated.

    Args:
        wins, losses, ties: how often so far.
        left: seeds to come.
        needed: evidence that would do.
    """
    from scipy import special

    w, other = np.meshgrid(np.arange(left + 1), np.arange(left + 1), indexing="ij")
    inside = w + other <= left
    w, other = np.asarray(w[inside], float), np.asarray(other[inside], float)
    rest = left - w - other
    priors = [count + 0.5 for count in (wins, losses, ties)]
    log_chance = (
        special.gammaln(left + 1) - special.gammaln(sum(priors) + left)
        + special.gammaln(sum(priors))
    )  # fmt: skip
    for more, prior in zip((w, other, rest), priors, strict=True):
        log_chance = log_chance + (
            special.gammaln(more + prior) - special.gammaln(prior) - special.gammaln(more + 1)
        )
    enough = evidence(np.add(w, wins), np.add(other, losses)) >= needed
    return float(np.exp(log_chance)[enough].sum())


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two competitors of a race.

    Attributes:
        one, other: their numbers.
        lower, higher: in how many seeds the value of `one` was lower, higher.
        ties: in how many it was the same, or one of the two had none.
        evidence: that they differ, from 0.5 on; see `evidence`.
        state: separated for sure, given up as hopeless, or still open.
    """

    one: int
    other: int
    lower: int = 0
    higher: int = 0
    ties: int = 0
    evidence: float = 0.5
    state: PairState = "open"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The standing of a race after the seeds that are known.

    Attributes:
        pairs: all pairs.
        spent: how many seeds each competitor was given, in the order of seeds.
        wanted: (competitor, seed) that are waited for.
    """

    pairs: tuple[Pair, ...]
    spent: tuple[int, ...]
    wanted: tuple[tuple[int, int], ...]

    @property
    def over(self) -> bool:
        """Whether no more seeds will be asked for."""
        return not self.wanted


def standing(value_of: ValueOf, competitors: int, seeds: int, first: int, level: float) -> Standing:
    """Return the standing of a race: a pure function of the values, whenever it is asked.

    All are given the first seeds; then, seed by seed, those that are in a pair that is open.

    Args:
        value_of: (competitor, seed) → its value; NaN: it has none there; None: not known yet.
        competitors: how many.
        seeds: the most that there are.
        first: how many all of them are given.
        level: the most that the chance of a false separation in this race may be.
    """
    pairs = [Pair(one=a, other=b) for a, b in itertools.combinations(range(competitors), 2)]
    running, spent = list(range(competitors)), [0] * competitors
    given = 0
    while running and given < seeds:
        upto = min(seeds, given + 1 if given else first)
        for one in running:
            spent[one] = upto
        asked = [(one, seed) for seed in range(given, upto) for one in running]
        wanted = tuple(place for place in asked if value_of(*place) is None)
        if wanted:
            return Standing(pairs=tuple(pairs), spent=tuple(spent), wanted=wanted)
        for seed in range(given, upto):
            pairs = [_after(pair, seed, running, value_of) for pair in pairs]
        given = upto
        pairs = _judged(pairs, seeds - given, level)
        racing = {n for pair in pairs if pair.state == "open" for n in (pair.one, pair.other)}
        running = [one for one in running if one in racing]
    return Standing(pairs=tuple(pairs), spent=tuple(spent), wanted=())


def _after(pair: Pair, seed: int, running: Sequence[int], value_of: ValueOf) -> Pair:
    """Return a pair with one more seed, if both are in it."""
    if pair.one not in running or pair.other not in running:
        return pair
    one, other = value_of(pair.one, seed), value_of(pair.other, seed)
    assert one is not None and other is not None, "all that is wanted is known"
    return Pair(
        one=pair.one, other=pair.other, lower=pair.lower + (one < other),
        higher=pair.higher + (one > other), ties=pair.ties + (not one < other and not one > other),
        evidence=pair.evidence, state=pair.state,
    )  # fmt: skip


def _judged(pairs: Sequence[Pair], left: int, level: float) -> list[Pair]:
    """Return the pairs after a look: what is separated stays so."""
    lower = np.array([pair.lower for pair in pairs], float)
    higher = np.array([pair.higher for pair in pairs], float)
    found = evidence(lower, higher)
    told = separated(found, level)
    judged = []
    for pair, weight, sure in zip(pairs, found.tolist(), told, strict=True):
        state = pair.state
        if sure:
            state = "separated"
        elif state == "open":
            likely = chance(pair.lower, pair.higher, pair.ties, left, 1 / level)
            state = "open" if left and likely >= HOPELESS else "given up"
        judged.append(
            Pair(
                one=pair.one, other=pair.other, lower=pair.lower, higher=pair.higher,
                ties=pair.ties, evidence=weight, state=state,
            )
        )  # fmt: skip
    return judged
