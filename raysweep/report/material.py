"""What a report is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from raysweep.defenses import Curve

Roc = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that a report shows.

    Attributes:
        sweep: name, question, text of the sweep file, versions, commit.
        rows: one row per trial; metrics are fractions, NaN where undefined.
        stages: one row per stage: key, kind, status, seconds, gpu_seconds, trials.
        curves: (trial id, `train` or `input`) → (fpr, tpr).
        pictures: attack label → (clean, triggered), uint8 (P, C, H, W).
        triggers: trial id → estimated trigger per class, (K, C, H, W) floats in [0, 1].
        losses: trial id → {`poison`, `rest`: quartiles of the loss after each step, (3, T);
            `auroc` of a low loss after each step, (T,)}.
        measured: trial id → {name: a curve that its defense drew of its own run}.
        tuning: what a tuning of the sweep left: `settings`, `rows`, `searches`; empty if none.
    """

    sweep: dict[str, Any]
    rows: pd.DataFrame
    stages: pd.DataFrame
    curves: dict[tuple[str, str], Roc] = field(default_factory=dict)
    pictures: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    triggers: dict[str, np.ndarray] = field(default_factory=dict)
    losses: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    measured: dict[str, dict[str, Curve]] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)
