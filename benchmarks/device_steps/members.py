"""Step 6: many small models: by vmap, one by one, each on a set of its own, in four processes."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

import numpy as np

from device_steps.apart import FORK, Failure, spread
from device_steps.bench import Bench
from device_steps.victims import RECIPE, SHAPE, fit, model, network, random_images
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.training import ensemble

NAME = "tiny_groupnorm"
PROCESSES = 4
ALONE = """
import sys; sys.path[:0] = {path!r}
from device_steps.members import one
one({device!r}, {count})
"""


def members(bench: Bench) -> None:
    """Note models per second, of 2 epochs of half of 10,000 images each."""
    count = bench.pick(10_000, 64)
    bench.attempt("one process each", lambda: _alone(bench, count), needs=5)
    for processes in (1, PROCESSES):
        bench.attempt("take(mask)", lambda p=processes: _several(bench, count, p), needs=5)
    for size in bench.pick((8, 32, 100), (2,)):
        for way in ("vmap", "one by one"):
            if way == "one by one" and size > 32:
                continue
            row = f"fit_many, {way}"
            bench.attempt(row, lambda s=size, w=way, r=row: _many(bench, r, count, s, w), needs=4)


def _recipe(count: int) -> Recipe:
    batch = min(512, max(count // 4, 1))
    return RECIPE.model_copy(update={"epochs": 2, "batch_size": batch, "learning_rate": 0.1})


def _masks(size: int, count: int) -> np.ndarray:
    masks = np.zeros((size, count), bool)
    for e, row in enumerate(masks):
        row[np.random.default_rng(e).permutation(count)[: count // 2]] = True
    return masks


def one(device: str, count: int, size: int = 1) -> None:
    """Train `size` models, each by plain `fit` on its half of the images."""
    data, recipe = random_images(count), _recipe(count)
    half = recipe.model_copy(update={"batch_size": max(recipe.batch_size // 2, 1)})
    for mask in _masks(size, count):
        module = network(NAME, device)
        fit(module, data.take(np.flatnonzero(mask)), half, Context(seed=0, device=device))


def _alone(bench: Bench, count: int) -> None:
    """Note a process that imports, starts CUDA, trains one model and ends."""
    if not bench.cuda:
        return
    code = ALONE.format(path=sys.path, device=bench.device, count=count)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    bench.note("one process each", "models/s", 1 / (time.perf_counter() - start))


def _several(bench: Bench, count: int, processes: int) -> None:
    """Note plain `fit` of members in processes that begin together, once each is warm."""
    size, barrier = bench.pick(24, 1), FORK.Barrier(processes)

    def job() -> tuple[float, float]:
        one(bench.device, count)
        bench.wait()
        barrier.wait(30)
        start = time.monotonic()
        one(bench.device, count, size)
        bench.wait()
        return start, time.monotonic()

    jobs = {str(n): partial(job) for n in range(processes)}
    times = []
    for _, found in spread(jobs, processes, 30, bench.until - 1):
        if isinstance(found, Failure):
            raise RuntimeError(found.reason)
        assert isinstance(found, tuple)
        times.append(found)
    took = max(end for _, end in times) - min(start for start, _ in times)
    bench.note("take(mask)", f"{processes} at once", processes * size / took, "models/s")


def _many(bench: Bench, row: str, count: int, size: int, way: ensemble.Way) -> None:
    data, recipe, masks = random_images(count), _recipe(count), _masks(size, count)
    ctx = Context(seed=0, device=bench.device)

    def run(masks: np.ndarray = masks) -> None:
        ensemble.fit_many(model(NAME), data, masks, recipe, ctx, SHAPE, way=way)

    run(masks[:2])
    took = []
    peak = bench.peak(lambda: took.append(bench.seconds(run)))
    bench.note(row, f"E = {size}", size / took[0], "models/s")
    bench.note(row, "at most", peak, "MB")
