"""BackdoorBench's table of results as CSV, so that it can be joined with the published one.

The columns are those of `results.csv` of its site: `dataset,backbone,attack_name,defense_name,
ratio,test_acc,test_asr,test_ra`; rates and accuracies are fractions, and empty where nothing was
measured. Methods and models that both projects have by other names are given theirs; all others
keep our labels, parameters included.
"""

from __future__ import annotations

import csv
import io
import math

import pandas as pd

from raysweep.attacks._foreign import BACKDOORBENCH
from raysweep.errors import PlanError

COLUMNS = {
    "dataset": "dataset", "model": "backbone", "attack": "attack_name",
    "defense": "defense_name", "rate": "ratio", "ca": "test_acc", "asr": "test_asr",
    "ra": "test_ra",
}  # fmt: skip
KEY = ("dataset", "model", "attack", "defense", "rate")
# Our name → theirs, of methods with parameters as they are by default.
NAMES = {
    "dataset": {"tiny_imagenet": "tiny"},
    "model": {"preact_resnet18": "preactresnet18"},
    "attack": BACKDOORBENCH,
    "defense": {
        "activation_clustering": "ac", "fine_pruning": "fp", "fine_tuning": "ft",
        "neural_cleanse": "nc", "none": "no defense", "spectral_signatures": "spectral",
    },
}  # fmt: skip


def to_csv(cells: pd.DataFrame) -> str:
    """Return the cells of a leaderboard that have poison, a line each: means over seeds.

    Args:
        cells: columns as `reports.leaderboard.Leaderboard` has them.

    Raises:
        PlanError: if two cells would be the same line, as the table has no column for what they
            differ in: the sweep, or the recipe.
    """
    poisoned = cells[cells["rate"] > 0]
    twice = poisoned[poisoned.duplicated(list(KEY), keep=False)]
    if len(twice):
        first = twice.iloc[0]
        same = twice[(twice[list(KEY)] == first[list(KEY)]).all(axis=1)]
        held = ", ".join(f"{arena} of {sweep}" for sweep, arena in same[["sweep", "arena"]].values)
        raise PlanError(
            f"{first['attack']} @ {first['rate']:g} with {first['defense']} is measured more than "
            f"once, in {held}; BackdoorBench's table has no column for that: export one sweep "
            f"with one recipe at a time"
        )
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(COLUMNS.values())
    for cell in poisoned.to_dict("records"):
        lines.writerow(_field(str(name), cell[name]) for name in COLUMNS)
    return out.getvalue()


def _field(name: str, value: object) -> object:
    if isinstance(value, float) and math.isnan(value):
        return ""
    return NAMES.get(name, {}).get(str(value), value)
