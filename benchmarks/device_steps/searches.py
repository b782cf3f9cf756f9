"""Step 7: what searches through a victim cost: RED, Neural Cleanse, STRIP and SentiNet."""

from __future__ import annotations

from typing import Any

import numpy as np

from device_steps.bench import Bench
from device_steps.victims import RECIPE, SHAPE, model, network, random_images
from raysweep import training
from raysweep.datasets import as_floats
from raysweep.defenses import DefenseInputs
from raysweep.defenses.neural_cleanse import NeuralCleanse
from raysweep.defenses.red import RED
from raysweep.defenses.sentinet import SentiNet
from raysweep.defenses.strip import Strip
from raysweep.methods.context import Context
from raysweep.training.graph import FEWEST_STEPS

OF_A_SOURCE = 200


def searches(bench: Bench) -> None:
    """Measure on a network with random weights; no search reaches its goal."""
    name = bench.pick("resnet18", "tiny_cnn")
    for groups in bench.pick((1, 4, 9), (1,)):
        for weight in (0.0, 1.0):
            row = f"red, {name}, {groups * OF_A_SOURCE} images"
            bench.attempt(row, lambda r=row, g=groups, w=weight: _red(bench, r, name, g, w), 2)
    bench.attempt("neural_cleanse", lambda: _cleanse(bench, name), needs=2)
    for defense in (Strip(), SentiNet()):
        bench.attempt(defense.name, lambda d=defense: _scores(bench, name, d), needs=2)


def _inputs(bench: Bench, name: str, needs: frozenset[Any]) -> DefenseInputs:
    data = random_images(bench.pick(400, 80))
    values = {
        "victim": network(name, bench.device).eval(),
        "clean_set": data,
        "training_set": data,
        "labels": data.labels,
        "shape": SHAPE,
        "recipe": RECIPE,
        "model": model(name),
        "shards": [],
    }
    return DefenseInputs("benchmark", needs, values)


def _red(bench: Bench, row: str, name: str, groups: int, weight: float) -> None:
    count = bench.pick(OF_A_SOURCE, 4)
    few, many = bench.pick((5, 25), (1, 2))
    inputs = _inputs(bench, name, RED().needs())
    images = as_floats(random_images(groups * count).images).to(bench.device)
    removed = as_floats(random_images(count).images).to(bench.device)
    logits = training.predict(inputs.victim, images, RECIPE, bench.device)
    target = int(logits.mean(0).argmin())  # A class that random weights do not give.
    ctx = Context(seed=0, device=bench.device)
    grouped = images.view(groups, count, *images.shape[1:])

    def search(steps: int) -> float:
        red = RED(steps=steps, pi=1.0, learning_rate=1e-6)
        return bench.seconds(lambda: red.smallest(inputs, grouped, removed, target, weight, ctx))

    search(few)
    took = (search(many) - search(few)) / (many - few)
    second = "both terms" if weight else "first term"
    bench.note(row, second, 1e3 * took, "ms/step")
    bench.note(row, "at most", bench.peak(lambda: search(few)), "MB")


def _cleanse(bench: Bench, name: str) -> None:
    """Measure a search eagerly and captured, which are to find the same bytes."""
    inputs, row = _inputs(bench, name, NeuralCleanse().needs()), f"neural_cleanse, {name}"
    few, many = bench.pick((FEWEST_STEPS, FEWEST_STEPS + 100), (10, 11))
    found: list[Any] = []

    def search(steps: int, ctx: Context) -> float:
        method = NeuralCleanse(steps=steps)
        return bench.seconds(lambda: found.append(method.search(0, inputs, ctx)))

    for way, captured in (("eager", False), ("captured", True)):
        ctx = Context(seed=0, device=bench.device, captured=captured)
        search(few, ctx)
        took = (search(many, ctx) - search(few, ctx)) / (many - few)
        bench.note(row, f"batch 64, {way}", 1e3 * took, "ms/step")
    same = all(map(np.array_equal, found[1], found[4]))
    bench.note(row, "captured = eager", "equal bytes" if same else "other bytes")


def _scores(bench: Bench, name: str, defense: Any) -> None:
    inputs = _inputs(bench, name, defense.needs())
    score = defense.run(inputs, Context(seed=0, device=bench.device)).score_inputs
    assert score is not None
    count = bench.pick(500, 4)
    images = as_floats(random_images(count).images).to(bench.device)
    took = bench.median(lambda: score(images, np.arange(count)), 2)
    bench.note(f"{defense.name}, {name}", "scores", count / took, "images/s")
