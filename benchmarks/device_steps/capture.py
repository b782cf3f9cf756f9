"""Step 5: a captured training step: how fast, and the same bytes as an eager one?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from device_steps.agreement import defense_found
from device_steps.bench import Bench
from device_steps.promises import Killed
from device_steps.victims import (
    RECIPE,
    differing,
    fit,
    network,
    random_images,
    state,
    step_seconds,
)
from raysweep.methods.checkpoints import Checkpoints
from raysweep.methods.context import Arrays, Context
from raysweep.methods.recipe import Recipe
from raysweep.testing import toy
from raysweep.training import graph
from raysweep.training.streams import Batch, Stream

NETWORKS = ("tiny_cnn", "wrn_16_1", "resnet18")
# Those with objectives of their own that a captured step may replay.
DEFENSES = ("abl", "asset", "confusion_training", "nad")


def capture(bench: Bench) -> None:
    """Compare captured and eager steps: bytes first, then speed."""
    graph.FEWEST_STEPS = 1
    torch.backends.cudnn.deterministic = True
    for name in bench.pick(NETWORKS, NETWORKS[:1]):
        for optimizer in ("sgd", "adam"):
            recipe = _recipe(bench, optimizer=optimizer)
            row = f"captured = eager, {name}"
            bench.attempt(row, lambda n=name, r=row, c=recipe: _equal(bench, r, n, c), needs=3)
    row, recipe = "captured = eager, also", _recipe(bench)
    for what, more in (("dropout", {"dropout": True}), ("second stream", {"joint": True})):
        bench.attempt(row, lambda w=what, m=more: _equal(bench, row, "tiny_cnn", recipe, w, **m), 3)
    bench.attempt(row, lambda: _resumed(bench, row, recipe), needs=3)
    for name in DEFENSES:
        row = "captured = eager, defenses on the toy"
        bench.attempt(row, lambda n=name, r=row: _defense(bench, r, n), needs=3)
    data = random_images(bench.pick(25_700, 70))
    for batch in bench.pick((32, 128, 512), (32,)):
        for name in bench.pick(NETWORKS, NETWORKS[:1]):
            row = f"{name} captured"
            bench.attempt(row, lambda r=row, n=name, b=batch: _speed(bench, r, n, data, b), needs=3)


def _recipe(bench: Bench, **more: Any) -> Recipe:
    rate = {"adam": 1e-3}.get(more.get("optimizer", "sgd"), 0.05)
    values = {"epochs": 2, "batch_size": bench.pick(128, 32), "learning_rate": rate, **more}
    return RECIPE.model_copy(update=values)


def _module(bench: Bench, name: str, dropout: bool) -> nn.Module:
    module = network(name, bench.device)
    return nn.Sequential(module, nn.Dropout(0.2)) if dropout else module


class Joint:
    """Cross-entropy over all streams of a step."""

    capturable = True

    def __call__(self, model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        """Return the sum over the streams."""
        losses = [F.cross_entropy(model(b.images).float(), b.labels) for b in batches.values()]
        return torch.stack(losses).sum()


@contextlib.contextmanager
def replays() -> Iterator[list[int]]:
    """Count the replays of CUDA graphs: without any, `captured` ran eager."""
    seen, usual = [0], torch.cuda.CUDAGraph.replay

    def replay(graph: torch.cuda.CUDAGraph) -> None:
        seen[0] += 1
        usual(graph)

    torch.cuda.CUDAGraph.replay = replay  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        torch.cuda.CUDAGraph.replay = usual  # type: ignore[method-assign]


def _equal(
    bench: Bench, row: str, name: str, recipe: Recipe, what: str = "",
    *, dropout: bool = False, joint: bool = False,
) -> None:  # fmt: skip
    """Train both ways over two epochs with both batch sizes; compare weights and losses."""
    count = bench.pick(5100, 65)  # 40 batches, of 128 and of 127
    data: Any = random_images(count)
    more: dict[str, Any] = {}
    if joint:
        data = {"data": Stream(data=data), "other": Stream(data=random_images(999), every=2)}
        more["objective"] = Joint()
    states, losses, counts = [], [], []
    for captured in (False, False, True):
        module = _module(bench, name, dropout)
        ctx = Context(seed=0, device=bench.device)
        with replays() as seen:
            losses.append(fit(module, data, recipe, ctx, captured, **more))
        states.append(state(module))
        counts.append(seen[0])
    what = what or recipe.optimizer
    if states[0].keys() and differing(states[0], states[1]) != "equal bytes":
        bench.note(row, f"{what}, eager twice", differing(states[0], states[1]))
    same = differing(states[0], states[2])
    same += "" if losses[0] == losses[2] else f", losses {losses[0]} and {losses[2]}"
    bench.note(row, what, f"{same} ({counts[2]} replays)")


def _defense(bench: Bench, row: str, name: str) -> None:
    """Compare all that a defense finds and repairs."""
    found, counts = [], []
    for captured in (False, True):
        with replays() as seen:
            found.append(defense_found(name, toy.toy(), bench.device, captured))
        counts.append(seen[0])
    other = [what for what, array in found[0].items() if not np.array_equal(array, found[1][what])]
    same = f"other {', '.join(other)}" if other else "equal bytes"
    bench.note(row, name, f"{same} ({counts[1]} replays)")


def _resumed(bench: Bench, row: str, recipe: Recipe) -> None:
    """Kill after a step of one way, go on the other way: as if nothing had happened?"""
    data = random_images(bench.pick(5100, 65))
    for first in (True, False):
        kept: list[Arrays] = []

        def keep(arrays: Arrays, kept: list[Arrays] = kept) -> None:
            kept.append({name: array.copy() for name, array in arrays.items()})
            raise Killed

        def trained(captured: bool, **more: Any) -> dict[str, torch.Tensor]:
            kept = Checkpoints(**more, pause=lambda cost: 0.0)
            ctx = Context(seed=0, device=bench.device, kept=kept.root)
            module = network("tiny_cnn", bench.device)
            fit(module, data, recipe, ctx, captured)
            return state(module)

        with contextlib.suppress(Killed):
            trained(first, write=keep)
        way = "captured, then eager" if first else "eager, then captured"
        found = differing(trained(False), trained(not first, restored=kept[0]))
        bench.note(row, f"resumed {way}", found)


def _speed(bench: Bench, row: str, name: str, data: Any, batch: int) -> None:
    eager, plain = step_seconds(bench, name, data, batch, False)
    with replays() as seen:
        captured, fixed = step_seconds(bench, name, data, batch, True)
    ways = {"eager": 1e3 * eager, "captured": 1e3 * captured}
    for way, milliseconds in ways.items():
        bench.note(row, f"{way}, batch {batch}", milliseconds, "ms", shown=False)
    bench.note(row, f"to capture, batch {batch}", fixed - plain, "s", shown=False)
    found = f"{1e3 * eager:.2f} / {1e3 * captured:.2f} ms = {eager / captured:.2f}"
    found += f", + {fixed - plain:.2f} s, {seen[0]} replays"
    bench.note(row, f"batch {batch}", found)
