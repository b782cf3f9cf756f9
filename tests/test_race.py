"""Races: the evidence in closed form, the bound on false separations by simulation, the rounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate

from raysweep.arrays import Floats
from raysweep.metrics.race import (
    Standing,
    chance,
    evidence,
    fewest_seeds,
    separated,
    standing,
)

LEVEL = 0.05


def race(values: Floats, *, level: float = LEVEL, first: int = 3) -> Standing:
    """Return the end of a race over values (competitors, seeds)."""
    return standing(lambda one, seed: float(values[one, seed]), *values.shape, first, level)


def one_evidence(wins: int, losses: int) -> float:
    return float(evidence(np.array([float(wins)]), np.array([float(losses)]))[0])


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (6, 0), (5, 2), (1, 9)])
def test_evidence_is_the_integral(wins: int, losses: int) -> None:
    w, other = max(wins, losses), min(wins, losses)
    mixed, _ = integrate.quad(lambda p: p**w * (1 - p) ** other, 0.5, 1)
    steady = 2.0**w if other == 0 else 0.0
    expected = (steady + 2 ** (w + other + 1) * mixed) / 4
    assert one_evidence(wins, losses) == pytest.approx(expected)
    assert one_evidence(wins, losses) == one_evidence(losses, wins)


def test_nobody_gains_by_a_fair_coin() -> None:
    """The mean evidence over all ways that a fair coin falls is never above 1."""
    for n in range(12):
        mean = sum(math.comb(n, w) * one_evidence(w, n - w) for w in range(n + 1)) / 2**n
        assert mean <= 1 + 1e-12


def test_six_seeds_of_one_sign_separate_a_lone_pair_and_five_do_not() -> None:
    assert separated(np.array([one_evidence(6, 0)]), LEVEL) == [True]
    assert separated(np.array([one_evidence(5, 0)]), LEVEL) == [False]
    assert [fewest_seeds(LEVEL), fewest_seeds(LEVEL / 10)] == [6, 10]


def test_the_closed_test_is_the_one_over_all_subsets() -> None:
    drawn = np.random.default_rng(0)
    for _ in range(50):
        found = drawn.exponential(30, 6)
        told = separated(found, LEVEL)
        for one in range(6):
            others = [n for n in range(6) if n != one]
            every = [s for k in range(6) for s in itertools.combinations(others, k)]
            means = [np.mean(found[[one, *subset]]) for subset in every]
            assert told[one] == (min(means) >= 1 / LEVEL)


def test_the_chance_to_be_separated_is_one_of_all_ways_that_seeds_can_fall() -> None:
    priors, left = np.array([2.5, 1.5, 0.5]), 3
    total = 0.0
    for ways in itertools.product(range(3), repeat=left):
        counts, probability = priors.copy(), 1.0
        for way in ways:
            probability *= counts[way] / counts.sum()
            counts[way] += 1
        wins, losses = counts[:2] - 0.5
        total += probability * (one_evidence(int(wins), int(losses)) >= 3)
    assert chance(2, 1, 0, left, 3.0) == pytest.approx(total)
    assert chance(6, 0, 0, 0, 20.0) == 1
    assert chance(0, 0, 12, 8, 20.0) < 0.01


EQUAL: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    # All with luck of the victim that the defenses of a seed share.
    "normal": lambda drawn, shape: drawn.normal(size=shape) + drawn.normal(size=shape[1]),
    "all or nothing": lambda drawn, shape: np.round(drawn.random(shape)),
    "rarely broken": lambda drawn, shape: 1.0 * (drawn.random(shape) < 0.1),
}


@pytest.mark.parametrize(("name", "count"), zip(EQUAL, (1000, 300, 300), strict=True))
def test_equal_defenses_are_falsely_separated_in_one_run_of_twenty_at_most(
    name: str, count: int
) -> None:
    """Races of four equal defenses, with a look after every seed."""
    drawn = np.random.default_rng(24)
    runs = [race(EQUAL[name](drawn, (4, 20))) for _ in range(count)]
    false = np.mean([any(p.state == "separated" for p in run.pairs) for run in runs])
    assert false <= 0.05


def test_a_cut_in_place_of_the_sequential_one_would_be_caught() -> None:
    """A sign test that is looked at after every seed separates equal defenses too often."""
    drawn, false = np.random.default_rng(24), 0
    for _ in range(400):
        signs = np.cumsum(np.sign(drawn.normal(size=20)))
        n = np.arange(1, 21)
        false += bool((np.abs(signs) / np.sqrt(n) > 1.96)[5:].any())
    assert false / 400 > 0.1


def test_defenses_that_differ_are_separated_and_cost_a_third_of_the_grid() -> None:
    drawn = np.random.default_rng(1)
    values = np.arange(5)[:, None] * 0.1 + drawn.normal(0, 0.01, (5, 20))
    ended = race(values)
    assert {pair.state for pair in ended.pairs} == {"separated"}
    assert all(pair.lower == 6 and pair.higher == 0 for pair in ended.pairs)
    assert ended.spent == (6, 6, 6, 6, 6)
    assert ended.over


def test_what_is_always_the_same_is_given_up_soon() -> None:
    ended = race(np.zeros((3, 20)))
    assert {pair.state for pair in ended.pairs} == {"given up"}
    assert max(ended.spent) <= 5


def test_only_defenses_of_open_pairs_go_on() -> None:
    values = np.zeros((3, 20))
    values[2] = 1.0  # separated from both; these two never differ
    ended = race(values)
    states = {(pair.one, pair.other): pair.state for pair in ended.pairs}
    assert states == {(0, 1): "given up", (0, 2): "separated", (1, 2): "separated"}
    known = values.copy()
    known[2, 8:] = 0.0  # never looked at
    assert race(known) == ended
    values[1], values[1, 2], values[2] = (
        0.5,
        -0.5,
        5.0,
    )  # the second is nearly always above the first
    ended = race(values)
    assert ended.spent == (13, 13, 7)


def test_what_is_separated_stays_so_while_its_defenses_race_others() -> None:
    seeds = np.arange(20)
    sign = np.where(seeds == 3, -1.0, 1.0)
    high = np.where(seeds < 8, 10.0, 0.0)
    ended = race(np.stack([10 - high, high, 10 - high + sign, high + sign]))
    pair = next(pair for pair in ended.pairs if (pair.one, pair.other) == (0, 1))
    assert pair.higher > 3 and pair.evidence < 1 / LEVEL, "later seeds were the other way round"
    assert pair.state == "separated"


def test_a_race_waits_for_all_that_it_asked_for_and_does_not_depend_on_the_order() -> None:
    drawn = np.random.default_rng(2)
    values = np.arange(3)[:, None] * 0.1 + drawn.normal(0, 0.05, (3, 20))
    known: dict[tuple[int, int], float] = {}
    asked = 0
    while True:
        now = standing(lambda one, seed: known.get((one, seed)), 3, 20, 3, LEVEL)
        if now.over:
            break
        place = now.wanted[int(drawn.integers(len(now.wanted)))]
        known[place] = float(values[place])
        asked += 1
    assert now == race(values)
    assert asked == sum(now.spent)


def test_a_seed_without_a_value_says_nothing() -> None:
    values = np.zeros((2, 20))
    values[1] = 1.0
    values[1, 2] = math.nan
    (pair,) = race(values).pairs
    assert (pair.state, pair.lower, pair.higher, pair.ties) == ("separated", 6, 0, 1)
