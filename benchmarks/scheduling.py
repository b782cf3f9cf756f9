"""Scheduling cost: our searcher on Ray Tune, beside plain Tune and beside plain Ray tasks.

All in one run, no-op stages in families of 20 (each family a chain of 4 levels: 1 → 3 → 8 → 8),
manifests really written. Prints milliseconds per stage, driver memory growth per stage, and files.

    python benchmarks/scheduling.py [--stages 2000 10000] [--plain 40]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.datasets.digits import Digits
from raysweep.defenses.none import NoDefense
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.plan.planner import Planner
from raysweep.plan.route import Route
from raysweep.run import ready
from raysweep.run.cluster import ray as on_ray
from raysweep.run.cluster.batch import pack_results
from raysweep.run.run import Run
from raysweep.stages.content import Product
from raysweep.stages.inputs import Inputs
from raysweep.stages.stage import Result, Stage, Work
from raysweep.store import Store
from raysweep.sweep.spec import Sweep
from raysweep.sweep.trials import Trial

LEVELS = (1, 3, 8, 8)
FAMILY = sum(LEVELS)
PER_BATCH = ready.MOST_PER_BATCH


@dataclass(frozen=True, kw_only=True)
class Noop(Work):
    """Nothing, for a while."""

    KIND, VERSION, ORDER = "noop", 1, 0

    family: int
    level: int
    number: int
    nap: float

    def perform(self, given: Inputs) -> Product:
        raise NotImplementedError("a NoopWorker does not ask")


class Families(Planner):
    """A plan of no-op stages: of each trial a family of dependent ones."""

    def __init__(self, sweep: Sweep, seconds: float = 0.0) -> None:
        super().__init__(sweep)
        self.nap = seconds

    def route(self, trial: Trial, outcomes: Any) -> Route:
        del outcomes
        keys: list[str] = []
        above: list[str] = []
        for level, width in enumerate(LEVELS):
            row = []
            for number in range(width):
                params = {"family": trial.seed, "level": level, "number": number, "nap": self.nap}
                inputs = {"above": above[number % len(above)]} if above else {}
                stage = Stage.of(Noop(**params), inputs)
                self.stages[stage.key] = stage
                row.append(stage.key)
            keys += row
            above = row
        return Route(
            data=keys[0], victim=keys[0], shards=tuple(keys), evaluate=above[-1], waiting=None
        )


class NoopWorker(on_ray.StageWorker):
    """A worker that writes manifests and nothing else; the way to it and back is the real one."""

    def step(self) -> dict[str, Any]:
        """Take a nap for each stage of the batch."""
        store, results = Store(self.batch.store), []
        for stage in self.batch.stages:
            time.sleep(stage.params["nap"])
            store.put(stage.key, outcome={"ok": 1}, info=dict(self.batch.provenance))
            results.append(Result(key=stage.key, status="done"))
        return {"done": True, "stages": len(results), "results": pack_results(results)}


def _sweep(total: int) -> Sweep:
    from raysweep.attacks.none import NoAttack

    return Sweep(
        name="bench", dataset=Digits(), model=TinyCNN(), attacks=[NoAttack()],
        defenses=[NoDefense()], seeds=total // FAMILY, track={"wandb": "disabled"},
    )  # fmt: skip


def memory() -> float:
    """Return the driver's resident memory in KiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


def ours(total: int, *, seconds: float, most_per_batch: int = PER_BATCH) -> dict[str, Any]:
    """Run `total` stages through Tune; the clock starts when Ray is up."""
    ready.MOST_PER_BATCH = most_per_batch
    on_ray.StageWorker = NoopWorker  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        sweep = _sweep(total)
        run = Run(sweep, store, "", planner=Families(sweep, seconds))
        expected = seconds or 0.001
        run.schedule.expected = lambda stage: expected
        before, start = memory(), time.perf_counter()
        on_ray.run_on_ray(run, address="auto", max_concurrent=2)
        took = time.perf_counter() - start
        run.close()
        files = sum(len(names) for _, _, names in os.walk(folder))
        assert len(run.schedule.ran) == total, (len(run.schedule.ran), total)
        return {
            "stages": total,
            "ms_per_stage": 1000 * took / total,
            "driver_kib_per_stage": (memory() - before) / total,
            "files": files,
            "seconds": took,
        }


def plain_tasks(total: int) -> float:
    """Return milliseconds per plain Ray task that writes the same manifest."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        Store(folder).check()

        @ray.remote
        def task(number: int) -> int:
            Store(folder).put(f"noop-{number:032x}", outcome={"ok": 1})
            return number

        ray.get([task.remote(-1 - n + (1 << 40)) for n in range(4)])
        start = time.perf_counter()
        ray.get([task.remote(n) for n in range(total)])
        return 1000 * (time.perf_counter() - start) / total


def plain_tune(total: int) -> float:
    """Return milliseconds per trial of Tune as it comes: a function trainable, default settings."""
    from ray import tune

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        tune.Tuner(
            tune.with_resources(lambda config: {"ok": 1}, {"cpu": 1}),
            param_space={"n": tune.grid_search(list(range(total)))},
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        return 1000 * (time.perf_counter() - start) / total


def main() -> None:
    """Measure everything in one run and print one JSON object and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, nargs="+", default=[2000, 10000])
    parser.add_argument("--plain", type=int, default=40)
    options = parser.parse_args()
    import logging

    import ray

    # One Ray for everything, so that its start is in nobody's figure.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    del cluster
    real_shutdown, ray.shutdown = ray.shutdown, lambda: None
    real_init, ray.init = ray.init, lambda **kwargs: None
    found: dict[str, Any] = {"load": os.getloadavg()}
    ours(200, seconds=0.0)
    found["ours"] = [ours(total, seconds=0.0) for total in options.stages]
    found["unbatched"] = ours(200, seconds=0.0, most_per_batch=1)
    found["naps"] = ours(1000, seconds=0.05)
    found["plain_tasks_ms"] = plain_tasks(2000)
    found["plain_tune_ms"] = plain_tune(options.plain)
    ray.init, ray.shutdown = real_init, real_shutdown
    ray.shutdown()
    first, last = found["ours"][0], found["ours"][-1]
    extra = last["stages"] - first["stages"]
    if extra:
        found["marginal_ms"] = 1000 * (last["seconds"] - first["seconds"]) / extra
    found["times_plain_tasks"] = last["ms_per_stage"] / found["plain_tasks_ms"]
    found["times_less_than_plain_tune"] = found["plain_tune_ms"] / last["ms_per_stage"]
    found["naps_over_ideal"] = found["naps"]["seconds"] / (1000 * 0.05 / 2)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
