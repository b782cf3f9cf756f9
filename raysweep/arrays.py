"""Names of the kinds of arrays that pass between modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Bools = NDArray[np.bool_]
Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]
FloatArray = Floats
WEIGHTS = "model."  # begins the names of a network's weights among the arrays of an artifact
