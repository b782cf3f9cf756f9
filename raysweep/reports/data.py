"""Data as the page holds them: compact JSON, compressed, opened by the browser."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from raysweep.identity import Json

DIGITS = 9  # of floats in tables; a share of fewer than a billion cases is exact


def packed(value: Json) -> str:
    """Return JSON, compressed, in base64; the same value gives the same text."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def plain(value: object, digits: int = DIGITS) -> str | int | float | bool | None:
    """Return a cell as JSON: none where it is missing or infinite, floats with so many digits."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return str(value)


def floats(values: Iterable[float], digits: int = 5) -> list[float | None]:
    """Return numbers as JSON, with as many digits as a screen can show."""
    given = values.tolist() if isinstance(values, np.ndarray) else map(float, values)
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in given]


def column(values: Iterable[object]) -> dict[str, Json]:
    """Return a column as JSON: its distinct values and a code for each row, or all its values."""
    every = list(values)
    codes, distinct = pd.factorize(pd.Series(every, dtype=object))
    if len(distinct) > len(codes) / 2:
        return {"values": [plain(value) for value in every]}
    return {"distinct": [plain(value) for value in distinct], "codes": codes.tolist()}
