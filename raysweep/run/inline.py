"""Runs a plan in this process, without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from raysweep.run import interruption
from raysweep.run.queue import QueueTimes
from raysweep.run.run import Run
from raysweep.store.heartbeat import RunningStage

POLL_SECONDS = 0.5


def run_inline(run: Run) -> None:
    """Run every stage in this process, one after another, until a signal comes.

    A method that raises what would end the process, such as SystemExit, costs its own rows. No time
    limit is held: to end a stage would end this process.
    """
    from raysweep.stages.current import current
    from raysweep.stages.perform import perform

    here = threading.get_ident()

    def running() -> Sequence[RunningStage]:
        now = current(here)
        return () if now is None else (now.state(),)

    run.running = running
    if run.sweep.resources.limits:
        run.note(
            "resources.limits does not hold inline: a stage of this process cannot be ended alone; "
            "leave --inline out, and Ray ends the process of a stage at its limit"
        )
    queue = QueueTimes(run)
    gpus = run.sweep.resources.gpu.gpu
    while not run.over:
        interruption.check()
        batch = run.take({"cpu": 1, "gpu": 1})
        if not batch and not run.over:
            time.sleep(POLL_SECONDS)  # candidates of a shared study are under way elsewhere
        for stage in batch:
            held = gpus if stage.resource == "gpu" else 0.0
            result = perform(stage.packed(), run.store, run.provenance, held)
            if result.status == "failed":
                interruption.check()  # The signal that stops the run is no failure of the stage.
            run.finished(queue.timed([result]))
