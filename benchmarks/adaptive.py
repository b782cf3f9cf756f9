"""How bad does each defense get when the attacker searches against it?

    python -m benchmarks.adaptive [--sweep sweeps/adaptive_digits.yaml] [--storage FOLDER]

Searches the attacks of a sweep file, unless the storage has the result of that sweep already.
Prints the table of worst cases, the attacks found, and what each search cost, in Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from raysweep.jobs.tune import tune
from raysweep.reports import adaptive
from raysweep.reports.sheets import Sheet
from raysweep.results.tuned import Tuned
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import read_sweep

FILE = Path(__file__).parent.parent / "sweeps" / "adaptive_digits.yaml"
LEFT_OUT = ("constraints", "the search has seen", "measured on", "GPU seconds spent", "FPR", "rate")


def found(file: Path, storage: str) -> Tuned:
    """Return what the attacker of a sweep file found, searched unless it is stored."""
    loaded, store = read_sweep(file), Store(storage)
    folder = SweepFolder(store, loaded.sweep.name)
    if store.read(folder.tuned) is None:
        tune(loaded.sweep, loaded.text, storage, inline=True)
    packed = store.read(folder.tuned)
    assert packed is not None, "the search was interrupted"
    return Tuned.unpack(packed)


def markdown(sheet: Sheet, left_out: Sequence[str] = ()) -> str:
    """Return a table of the page as Markdown."""
    columns = [one for one in sheet.columns if one.title not in left_out]
    lines = [[one.title for one in columns], ["---"] * len(columns)]
    lines += [
        [f"{value:.0f}" if isinstance(value, float) else str(value) for value in row]
        for row in zip(*(one.values for one in columns), strict=True)
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Print the tables."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--sweep", type=Path, default=FILE)
    given.add_argument("--storage", default="")
    asked = given.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tuned = found(asked.sweep, asked.storage or folder)
    worst, attacks = adaptive.sheets(tuned)
    print(markdown(worst), markdown(attacks, LEFT_OUT), sep="\n\n")


if __name__ == "__main__":
    main()
