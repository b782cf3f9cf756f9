"""Steps 2 and 3: the same bytes twice? What stays in memory, and what errors of the GPU are."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from device_steps.apart import Failure, spread
from device_steps.bench import Bench, last_line
from device_steps.victims import RECIPE, differing, fit, network, random_images, state
from raysweep import training
from raysweep.methods.checkpoints import Checkpoints
from raysweep.methods.context import Arrays, Context

NETWORKS = ("tiny_cnn", "wrn_16_1", "resnet18")
LEFT_MB = 64.0  # What a worker may keep, in MiB of `memory_allocated`.


class Killed(Exception):
    """Ends a training at its first checkpoint, as a kill would."""


def determinism(bench: Bench) -> None:
    """Train twice, with and without cudnn.deterministic, and once across a kill."""
    for name in bench.pick(NETWORKS, NETWORKS[:1]):
        for strict in (False, True):
            row = f"{name}{', cudnn.deterministic' if strict else ''}"
            bench.attempt(row, lambda n=name, r=row, s=strict: _twice(bench, n, r, s), needs=3)


def _twice(bench: Bench, name: str, row: str, strict: bool) -> None:
    torch.backends.cudnn.deterministic = strict
    data = random_images(bench.pick(5100, 60))
    recipe = RECIPE.model_copy(update={"epochs": 2, "batch_size": bench.pick(128, 32)})

    def trained(ctx: Context, **more: object) -> dict[str, torch.Tensor]:
        module = network(name, bench.device)
        fit(module, data, recipe, ctx, **more)
        return state(module)

    ctx = Context(seed=0, device=bench.device)
    first = trained(ctx)
    start = time.perf_counter()
    second = trained(ctx)
    took = time.perf_counter() - start
    bench.note(row, "twice", differing(first, second))
    steps = 2 * -(-len(data) // recipe.batch_size)
    bench.note(row, "with upload", 1e3 * took / steps, "ms/step")
    bench.note(row, "killed and resumed", differing(first, _resumed(bench, trained)))
    if strict:
        torch.backends.cudnn.deterministic = False


def _resumed(
    bench: Bench, trained: Callable[..., dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    kept: list[Arrays] = []

    def keep(arrays: Arrays) -> None:
        kept.append({name: array.copy() for name, array in arrays.items()})
        raise Killed

    def context(checkpoints: Checkpoints) -> Context:
        return Context(seed=0, device=bench.device, kept=checkpoints.root)

    with contextlib.suppress(Killed):
        trained(context(Checkpoints(keep, pause=lambda cost: 0.0)))
    return trained(context(Checkpoints(restored=kept[0])))


def memory(bench: Bench) -> None:
    """Look for what a stage leaves, run out of memory, and trip an assert, each apart."""
    jobs = {
        "leak": lambda: _leak(bench),
        "out of memory": lambda: _out_of_memory(bench),
        "device assert": lambda: _assert(bench),
    }
    for name, found in spread(jobs, 3, 20, bench.until - 1):
        if isinstance(found, Failure):
            bench.note(name, "FAILED", found.reason)


def _train(bench: Bench, name: str, batch: int) -> None:
    recipe = RECIPE.model_copy(update={"batch_size": batch, "precision": "float32"})
    module, data = network(name, bench.device), random_images(batch)
    fit(module, data, recipe, Context(seed=0, device=bench.device), steps=2)
    training.predict(module, data.images, recipe, bench.device)


def _allocated(bench: Bench) -> float:
    return torch.cuda.memory_allocated() / 2**20 if bench.cuda else 0.0


def _leak(bench: Bench) -> None:
    for name in bench.pick(("tiny_cnn", "resnet18", "vgg16_bn", "vit_tiny"), ("tiny_cnn",)):
        row = f"left by {name}, MiB"
        before = _allocated(bench)
        _train(bench, name, bench.pick(256, 8))
        bench.wait()
        bench.note(row, "before", before)
        bench.note(row, "after", _allocated(bench))
        gc.collect()
        bench.note(row, "after gc", _allocated(bench))
        if bench.cuda:
            torch._C._cuda_clearCublasWorkspaces()
        left = _allocated(bench)
        bench.note(row, "without cuBLAS workspaces", left)
        bench.note(row, f"below {LEFT_MB:g}", left < LEFT_MB)


def _out_of_memory(bench: Bench) -> None:
    if bench.cuda:
        torch.cuda.set_per_process_memory_fraction(0.02)
    row = "out of memory at a fraction of 0.02"
    try:
        _train(bench, *bench.pick(("resnet18", 4096), ("tiny_cnn", 8)))
        bench.note(row, "raised", "nothing")
    except Exception as error:  # noqa: BLE001  which it is, is the question
        bench.note(row, "raised", _kinds(error))
    gc.collect()
    bench.attempt(row, lambda: _train(bench, "tiny_cnn", bench.pick(256, 8)))
    bench.note(row, "after the next training, MiB", _allocated(bench))


def _assert(bench: Bench) -> None:
    logits = torch.zeros(4, 10, device=bench.device)
    labels = torch.tensor([0, 1, 2, 999], device=bench.device)
    for what, run in {
        "raised": lambda: F.cross_entropy(logits, labels).item(),
        "later work": lambda: torch.zeros(4, device=bench.device).sum().item(),
        "emptying the cache": bench.pick(torch.cuda.empty_cache, gc.collect),
        "memory_allocated": lambda: _allocated(bench),
    }.items():
        try:
            run()
            bench.note("device assert", what, "works")
        except Exception as error:  # noqa: BLE001
            bench.note("device assert", what, _kinds(error))


def _kinds(error: BaseException) -> str:
    kinds = [k.__name__ for k in type(error).__mro__ if k not in (BaseException, object)]
    return f"{' < '.join(kinds)} ({last_line(error).partition(': ')[2][:60]})"
