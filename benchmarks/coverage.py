"""How often each printed interval covers the truth: `python -m benchmarks.coverage`, one minute.

Seeds (or attacks) are drawn from a known distribution of true shares within [0, 1], each share is
measured on some test inputs, and the interval is made as the report makes it. Distributions:

    normal      mean 50 %, standard deviation 5 points between seeds, 15 between attacks
    towards 0   Beta with mean 5 %, standard deviation 5 points; 10 and 10 between attacks
    towards 100 the same, mirrored
    alike       mean 99 %, no difference between the models but that of their inputs

An interval is printed where it covers the mean in 92 to 99 % of simulations.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from raysweep.arrays import Floats
from raysweep.metrics.intervals import of_attacks, of_model, of_seeds, t_interval

INPUTS = 300
LEAST, MOST = 0.92, 0.99
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """One line of the table.

    Attributes:
        interval: which one.
        n: of its unit.
        shape: of the distribution.
        covered: the share of simulations whose interval holds the mean.
        width: the median width, in points.
        printed: the share of simulations in which there is an interval.
    """

    interval: str
    n: int
    shape: str
    covered: float
    width: float
    printed: float


def normal(mean: float, deviation: float) -> tuple[Draw, float]:
    """Return the draw of normal shares that stay within [0, 1], and their mean."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        return np.clip(rng.normal(mean, deviation, shape), 0, 1)

    return draw, mean


def beta(mean: float, deviation: float) -> tuple[Draw, float]:
    """Return the draw of shares of a Beta distribution, and their mean."""
    total = mean * (1 - mean) / deviation**2 - 1

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        return rng.beta(mean * total, (1 - mean) * total, shape)

    return draw, mean


def constant(mean: float) -> tuple[Draw, float]:
    """Return the draw of shares that are all the same, and their mean."""
    return lambda rng, shape: np.full(shape, mean), mean


SEEDS = {
    "normal": normal(0.5, 0.05), "towards 0": beta(0.05, 0.05), "towards 100": beta(0.95, 0.05),
    "alike": constant(0.99),
}  # fmt: skip
ATTACKS = {
    "normal": normal(0.5, 0.15), "towards 0": beta(0.1, 0.1), "towards 100": beta(0.9, 0.1),
}  # fmt: skip
