"""A sweep that a report is about."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from raysweep.results.description import Description
from raysweep.results.tuned import Tuned
from raysweep.sweep.spec import Track


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A sweep that a report is about.

    Attributes:
        name: of the sweep.
        track: where its runs are.
        about: its description.
        rows: one row per trial.
        stages: one row per stage.
        tuned: the content of `tuned.json`, if it was tuned.
    """

    name: str
    track: Track
    about: Description
    rows: pd.DataFrame
    stages: pd.DataFrame
    tuned: Tuned | None = None

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks of its trials, in order; without the control `none`."""
        if self.rows.empty:
            return []
        return [name for name in self.rows["attack_name"].unique() if name != "none"]
