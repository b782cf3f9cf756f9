"""Runs a plan in this process, without Ray."""

from __future__ import annotations

import time

from raysweep.run import interruption
from raysweep.run.run import Run

POLL_SECONDS = 0.5


def run_inline(run: Run) -> None:
    """Run every stage in this process, one after another, until a signal comes."""
    from raysweep.stages.perform import perform

    gpus = run.sweep.resources.gpu.gpu
    while not run.over:
        interruption.check()
        batch = run.take({"cpu": 1, "gpu": 1})
        if not batch and not run.over:
            time.sleep(POLL_SECONDS)  # candidates of a shared study are under way elsewhere
        for stage in batch:
            held = gpus if stage.resource == "gpu" else 0.0
            run.finished([perform(stage.packed(), run.store, run.provenance, held)])
