"""What sharing saves: a sweep as planned, beside one in which every trial computes everything.

Both are run for real, one after another in this process, in fresh stores. Prints one JSON object.

    python benchmarks/reuse.py [sweeps/quickstart.yaml] [--seeds 1]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from raysweep.plan.planner import Planner
from raysweep.plan.route import Outcomes, Route
from raysweep.run.inline import run_inline
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.spec import Sweep
from raysweep.sweep.trials import Trial


class OneTrial(Planner):
    """The plan of a single trial of a sweep."""

    def __init__(self, sweep: Sweep, trial: Trial) -> None:
        super().__init__(sweep)
        self.trials = (trial,)

    def route(self, trial: Trial, outcomes: Outcomes) -> Route:
        return super().route(trial, outcomes)


def seconds(sweep: Sweep, planner: Planner | None = None) -> tuple[float, int]:
    """Run a plan in a fresh store; return wall seconds of its stages and how many there were."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(sweep, Store(folder), "", planner=planner)
        start = time.perf_counter()
        run_inline(run)
        took = time.perf_counter() - start
        run.close()
        assert not run.schedule.failed, run.schedule.failed
        return took, len(run.schedule.ran)


def main() -> None:
    """Measure both ways in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=Path("sweeps/quickstart.yaml"))
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    sweep = load_sweep(options.file)
    sweep = sweep.model_copy(update={"seeds": tuple(range(options.seeds))})
    trials = Planner(sweep).trials
    seconds(sweep, OneTrial(sweep, trials[0]))  # imports and caches, in nobody's figure
    shared, stages = seconds(sweep)
    alone = [seconds(sweep, OneTrial(sweep, trial)) for trial in trials]
    total = sum(took for took, _ in alone)
    found = {
        "sweep": sweep.name,
        "trials": len(trials),
        "shared": {"seconds": round(shared, 1), "stages": stages},
        "every_trial_alone": {"seconds": round(total, 1), "stages": sum(n for _, n in alone)},
        "ratio": round(total / shared, 2),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
