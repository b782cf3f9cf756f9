"""Does a slot idle while work is ready? A mixed search on two slots, and its timeline.

    python benchmarks/tuning.py [--trials 30] [--storage FOLDER]

Tunes STRIP's number of overlays (stages) and its threshold (replayed) over three attacks on digits,
on Ray with two workers. From the ledger: how long each worker was busy between the first and the
last stage, and for how long one waited although stages were ready. Prints the timeline, a column a
second (`#` both busy, `+` one, `.` none), and one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from raysweep.jobs.tune import tune
from raysweep.store import Store, ledger
from raysweep.sweep.loading import load_sweep

SWEEP = """
name: timeline
dataset: digits
model: {{tiny_cnn: {{width: 16}}}}
recipe: {{epochs: 10, batch_size: 64}}
attacks: [badnets: {{rate: 0.1}}, blend: {{rate: 0.1}}, trojan: {{rate: 0.1}}]
defenses: [strip]
track: {{wandb: disabled}}
tune:
  trials: {trials}
  parameters: {{strip: {{overlays: {{min: 20, max: 1000}}, fpr: {{}}}}}}
"""
RESOLUTION = 0.05  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--storage", default=None)
    given = parser.parse_args()
    folder = given.storage or tempfile.mkdtemp(prefix="timeline-")
    file = Path(folder) / "timeline.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(SWEEP.format(trials=given.trials))
    tune(load_sweep(file), file.read_text(), folder)
    lines = list(ledger.read(Store(folder), "timeline/tune"))
    done = [line for line in lines if line["event"] == "done"]
    start = min(line["t"] - line["seconds"] for line in done)
    count = int((max(line["t"] for line in done) - start) / RESOLUTION) + 1
    busy, ready = np.zeros(count, int), np.zeros(count, int)
    for line in done:
        end = int((line["t"] - start) / RESOLUTION)
        busy[max(0, end - int(line["seconds"] / RESOLUTION)) : end] += 1
    taken = [line for line in lines if line["event"] == "dispatch"]
    for one, following in zip(taken, [*taken[1:], {"t": start + count * RESOLUTION}], strict=True):
        here, there = (max(0, int((line["t"] - start) / RESOLUTION)) for line in (one, following))
        ready[here:there] = one["ready"]
    second = int(1 / RESOLUTION)
    columns = [busy[at : at + second].mean() for at in range(0, count, second)]
    print("".join("#" if c > 1.5 else "+" if c > 0.5 else "." for c in columns))
    waited = (np.clip(2 - busy, 0, 2) * (ready > 0)).sum() * RESOLUTION
    print(
        json.dumps(
            {
                "seconds": round(count * RESOLUTION, 1),
                "stages": len(done),
                "candidates": sum(line["event"] == "told" for line in lines),
                "busy share of two workers": round(float(busy.sum() / (2 * count)), 3),
                "idle share while stages were ready": round(waited / (2 * count * RESOLUTION), 3),
                "nothing ready, share of time": round(float((ready == 0).mean()), 3),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
