"""What does a race save, and does it conclude what the whole grid concludes?

    python -m benchmarks.racing [--storage FOLDER] [--runs 1000]

Runs sweeps/race_digits.yaml with all 20 seeds of every defense, then as a race on the same storage,
whose stages are all there: what the race would have cost alone is the sum of the seconds of the
stages that it asks for. Pairs that the race separates are compared with those that a sign test over
all 20 seeds finds after Holm's correction over all pairs of the sweep. Then races of equal defenses
are simulated, with a look after every seed. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from raysweep.arrays import Floats
from raysweep.jobs.launch import launch
from raysweep.metrics.pairs import holm
from raysweep.metrics.race import standing
from raysweep.results.race import races
from raysweep.results.records import read
from raysweep.store import Store
from raysweep.sweep.loading import read_sweep

FILE = Path(__file__).parent.parent / "sweeps" / "race_digits.yaml"
ATTACKS, DEFENSES, SEEDS, LEVEL = 4, 5, 20, 0.05
EQUAL: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "normal, with the luck of the victim": lambda drawn, shape: (
        drawn.normal(size=shape) + drawn.normal(size=shape[1])
    ),
    "all or nothing, 50 %": lambda drawn, shape: 1.0 * (drawn.random(shape) < 0.5),
    "all or nothing, 10 %": lambda drawn, shape: 1.0 * (drawn.random(shape) < 0.1),
    "skewed towards 0": lambda drawn, shape: drawn.beta(0.2, 2.0, shape),
}


def grid_verdicts(rows: pd.DataFrame, defenses: list[str]) -> dict[tuple[str, str, str], str]:
    """Return attack and pair → the better one, or nothing, by sign tests over all seeds."""
    values = rows.pivot_table(index=["attack", "seed"], columns="defense", values="asr")
    places, p_values, better = [], [], []
    for attack in dict.fromkeys(rows["attack"]):
        for one, other in itertools.combinations(defenses, 2):
            differences = (values.loc[attack][one] - values.loc[attack][other]).dropna()
            lower, higher = int((differences < 0).sum()), int((differences > 0).sum())
            places.append((str(attack), one, other))
            tested = lower + higher
            p_values.append(stats.binomtest(lower, tested).pvalue if tested else 1.0)
            better.append(one if lower > higher else other)
    corrected = holm(p_values)
    return {
        place: name if p < LEVEL else ""
        for place, name, p in zip(places, better, corrected, strict=True)
    }


def race_verdicts(rows: pd.DataFrame, sweep_race: object) -> dict[tuple[str, str, str], str]:
    """Return attack and pair → the better one, or nothing, by the race."""
    found = {}
    for end in races(rows, sweep_race):  # type: ignore[arg-type]
        for pair in end.standing.pairs:
            one, other = end.defenses[pair.one], end.defenses[pair.other]
            better = one if pair.lower > pair.higher else other
            attack = end.attack.partition(" @ ")[0]
            found[attack, one, other] = better if pair.state == "separated" else ""
    return found


def compare(storage: str) -> None:
    """Run the grid and the race; print what each cost and concluded."""
    whole = read_sweep(FILE, ["seeds=20", "name=race_digits_grid"])
    raced = read_sweep(FILE)
    grid = launch(whole.sweep, whole.text, storage, inline=True)
    race = launch(raced.sweep, raced.text, storage, inline=True)
    assert race.ran == 0, "the grid holds every stage of the race"
    store = Store(storage)
    seconds = [
        float(read(store, s.name).stages["seconds"].sum()) for s in (whole.sweep, raced.sweep)
    ]
    of_grid = grid_verdicts(grid.rows, [d.label for d in raced.sweep.defenses])
    of_race = race_verdicts(race.rows, raced.sweep.race)
    told = Counter(
        "the same" if of_grid[place] and of_grid[place] == of_race[place]
        else "opposite" if of_grid[place] and of_race[place]
        else "by the grid alone" if of_grid[place]
        else "by the race alone" if of_race[place] else "by none"
        for place in of_grid
    )  # fmt: skip
    print(json.dumps({
        "trials": [len(grid.rows), len(race.rows)],
        "share of trials": round(len(race.rows) / len(grid.rows), 3),
        "seconds of stages": [round(one, 1) for one in seconds],
        "share of seconds": round(seconds[1] / seconds[0], 3),
        "pairs separated": dict(told),
    }), flush=True)  # fmt: skip


def simulate(runs: int) -> None:
    """Print how often a sweep of equal defenses has a false separation, and what it spends."""
    for name, draw in EQUAL.items():
        drawn, false, spent = np.random.default_rng(2026), 0, 0
        for _ in range(runs):
            told = False
            for _ in range(ATTACKS):
                values = draw(drawn, (DEFENSES, SEEDS))
                end = standing(
                    lambda one, seed, v=values: float(v[one, seed]),  # type: ignore[misc]
                    DEFENSES, SEEDS, 3, LEVEL / ATTACKS,
                )  # fmt: skip
                told |= any(pair.state == "separated" for pair in end.pairs)
                spent += sum(end.spent)
            false += told
        share = spent / (runs * ATTACKS * DEFENSES * SEEDS)
        print(json.dumps({
            "equal defenses": name, "runs": runs, "false separations %": 100 * false / runs,
            "share of the grid": round(share, 3),
        }), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--storage", default=None)
    parser.add_argument("--runs", type=int, default=1000)
    given = parser.parse_args()
    compare(given.storage or tempfile.mkdtemp(prefix="racing-"))
    simulate(given.runs)


if __name__ == "__main__":
    main()
