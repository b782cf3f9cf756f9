"""Relaunch of a finished sweep on S3 (moto, over loopback): requests and seconds.

Every stage of a sweep's plan is stored through `Store.put`, with made-up outcomes; then the sweep
is launched without an index of its manifests, and with the one that this launch has left. The same
on a folder.

    python -m benchmarks.storage [--stages 5000]
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from raysweep.jobs.launch import launch
from raysweep.plan.planner import Planner
from raysweep.stages.stage import Stage
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.spec import Sweep
from tests.s3 import S3, Faulty

SWEEP = """
name: relaunched
dataset: {{digits: {{size: 300}}}}
model: linear
recipe: {{epochs: 1}}
attacks: [{{badnets: {{rate: 0.05}}}}, {{badnets: {{rate: 0.1}}}}, {{blend: {{rate: 0.1}}}}]
defenses: [none]
seeds: {seeds}
track: {{wandb: disabled}}
"""


def stages_of(sweep: Sweep) -> list[Stage]:
    planner = Planner(sweep)
    for trial in planner.trials:
        planner.route(trial, {})
    return list(planner.stages.values())


def store_all(store: Store, stages: list[Stage]) -> None:
    def put(stage: Stage) -> None:
        outcome = (
            {"ca": 0.9, "ca_n": 60, "asr": 0.8, "asr_n": 54} if stage.kind == "evaluate" else {}
        )
        info = {
            "run": "made-up", "seconds": 0.5, "gpu_seconds": 0.0, "host": "host", "device": "cpu",
            "finished_at": time.time(), "commit": "0" * 40,
            "versions": {"raysweep": "0.1.0", "torch": "2.14.1", "numpy": "2.4.6"},
            "identity": [1, {}, stage.inputs],
        }  # fmt: skip
        store.put(stage.key, outcome=outcome, info=info)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, stages))


@contextmanager
def measured(name: str, faulty: Faulty) -> Iterator[None]:
    began = time.perf_counter()
    with faulty.counted() as found:
        yield
    took, requests = time.perf_counter() - began, Counter(found)
    by_method = ", ".join(f"{n} {method}" for method, n in sorted(requests.items()))
    print(f"{name:44} {took:7.1f} s {sum(requests.values()):7} requests  {by_method}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=5000)
    wanted = parser.parse_args().stages
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    with tempfile.TemporaryDirectory() as place:
        os.environ["RAYSWEEP_CACHE"] = f"{place}/cache"
        file = Path(place) / "sweep.yaml"
        file.write_text(SWEEP.format(seeds=1))
        one = len(stages_of(load_sweep(file)))
        file.write_text(SWEEP.format(seeds=2))
        each = len(stages_of(load_sweep(file))) - one
        file.write_text(SWEEP.format(seeds=-(-(wanted - one) // each) + 1))
        sweep, server = load_sweep(file), S3()
        stages = stages_of(sweep)
        print(f"{len(stages)} stages")
        for uri, where in ((server.uri("root"), "S3"), (f"{place}/store", "a folder")):
            with measured(f"{where}: all stages stored", server.faulty):
                store_all(Store(uri), stages)
            time.sleep(3)  # what is younger than the grain of clocks is not indexed
            for name in ("without an index", "with an index"):
                with measured(f"{where}: launch, {name}", server.faulty):
                    done = launch(sweep, file.read_text(), uri, inline=True)
                assert (done.ran, done.cached) == (0, len(stages)), done
        server.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.2f} GB, the server's included")


if __name__ == "__main__":
    main()
