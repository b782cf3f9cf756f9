"""Shares as a user writes them, and the counts that they come to.

A share is the decimal number that is written: 0.29 of 100 is 29, though the floating-point number
next to 0.29 gives 28.999999999999996.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction

DIGITS = 6


def exactly(share: float | Fraction, total: int | Fraction) -> Fraction:
    """Return a share of a total, the share taken as the shortest decimal number that it prints."""
    written = share if isinstance(share, Fraction) else Fraction(repr(float(share)))
    return written * total


def count_of(share: float | Fraction, total: int | Fraction) -> int:
    """Return the count of a share of a total, rounded down: floor(share * total)."""
    return math.floor(exactly(share, total))


def least_share(count: int, total: int) -> str:
    """Return a share of few digits that gives at least this count, close above, as text."""
    return f"{Context(DIGITS, ROUND_CEILING).divide(Decimal(count), Decimal(total)):f}"


def most_share(count: int, total: int) -> str:
    """Return a share of few digits that gives at most this count, close below, as text."""
    return f"{Context(DIGITS, ROUND_FLOOR).divide(Decimal(count), Decimal(total)):f}"
