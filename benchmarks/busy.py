"""The share of the time in which slots compute, on a real sweep of many small trials.

Digits of 300 images, three attacks at four rates, eight defenses, twenty seeds: 1,920 trials, about
8,000 stages of a few hundredths of a second. From the ledger: seconds of stages over seconds of
slots, from the first stage handed out to the last one stored; what comes before and after; and each
estimate of the time left, beside the time that was left. Prints one JSON object.

    python benchmarks/busy.py [--seeds 20] [--slots 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time

from raysweep.jobs.launch import launch
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.store.events import Dispatch, Done
from raysweep.store.ledger import read
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse

TEXT = """
name: busy
dataset: {{digits: {{size: 300}}}}
model: linear
attacks:
  - badnets: {{rate: [0.01, 0.03, 0.1, 0.2]}}
  - blend: {{rate: [0.01, 0.03, 0.1, 0.2]}}
  - sig: {{rate: [0.01, 0.02, 0.05, 0.08]}}
defenses: [none, spectral_signatures, activation_clustering, kernel_density, strip, fine_tuning,
  perfect_filter, cognitive_distillation]
seeds: {seeds}
recipe: {{epochs: 1}}
track: {{wandb: disabled}}
"""


def main() -> None:
    """Launch the sweep on Ray, and read its ledger."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--slots", type=int, default=2)
    options = parser.parse_args()
    text = TEXT.format(seeds=options.seeds)
    sweep = from_text(parse("busy.yaml", text))
    told: list[tuple[float, float]] = []

    def watch(run: Run) -> None:
        left = run.pace.left_seconds()
        if left is not None:
            told.append((time.time(), left))

    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        conclusion = launch(sweep, text, folder, max_concurrent=options.slots, watch=watch)
        took = time.time() - start
        events = list(read(SweepFolder(Store(folder), "busy")))
    first = min(event.t for event in events if isinstance(event, Dispatch))
    done = [event for event in events if isinstance(event, Done)]
    begun = min(event.t - event.seconds for event in done)
    last = max(event.t for event in done)
    spent = sum(event.seconds for event in done)
    ratios = [left / (last - when) for when, left in told if last - when > 5]
    found = {
        "load": os.getloadavg(), "trials": len(conclusion.rows), "stages": len(done),
        "unfinished": conclusion.unfinished, "mean_stage_ms": 1000 * spent / len(done),
        "seconds": took, "before_the_first_stage": begun - start,
        "after_the_last": took + start - last,
        "busy_share": spent / (options.slots * (last - begun)),
        "busy_share_from_hand_out": spent / (options.slots * (last - first)),
        "first_estimate": {"after": told[0][0] - begun, "said": told[0][1],
                           "was": last - told[0][0]} if told else None,
        "estimate_over_truth": statistics.quantiles(ratios, n=10) if len(ratios) > 10 else ratios,
    }  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
