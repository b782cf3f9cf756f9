"""False alarms of RED's nulls: on clean networks, and on simulated tables of pairs.

    python benchmarks/alarms.py [--networks 40] [--first 0] [--tables 1000] [--out FILE]

Networks: tiny_cnn of width 4, six epochs on the clean digits of 8 x 8 pixels, one for each seed
from `--first`; all 90 pairs are searched with 20 images, at most 60 steps, and with 12 steps, after
which a share of the pairs has not reached pi. Tables: independent log Gamma values of shape 20 for
90 pairs, to which normal effects of sources and targets are added, with and without the third that
is hardest to reach being censored. Each null judges the same tables at a significance of 5 %; one
JSON object a line, with the number of false alarms by class. Nothing here has a backdoor.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raysweep import training
from raysweep.datasets import Shape
from raysweep.datasets.digits import Digits
from raysweep.defenses import DefenseInputs, _red
from raysweep.defenses.red import RED
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models.tiny_cnn import TinyCNN

NULLS: tuple[_red.Null, ...] = ("exclude_target", "effects")
CLASSES = 10
OFF = ~np.eye(CLASSES, dtype=bool)
RECIPE = Recipe(
    epochs=6, batch_size=64, learning_rate=0.1, weight_decay=0.0, precision="float32"
)  # fmt: skip
SEARCHES = {
    steps: RED(images=20, steps=steps, learning_rate=0.04, milestones=(), scan_weight=0.0)
    for steps in (60, 12)
}
Pairs = tuple[np.ndarray, np.ndarray]  # norms and which were reached, (K, K) each


def networks(first: int, count: int) -> Iterator[tuple[int, dict[int, Pairs]]]:
    """Yield the seed of each clean network with its pairs, by the steps of the search."""
    dataset, model = Digits(side=8), TinyCNN(width=4)
    train, _ = dataset.decode()
    shape = Shape.of(train.images, CLASSES)
    for seed in range(first, first + count):
        ctx = Context(seed=seed)
        with training.global_seed(seed):
            network = model.build(shape)
        training.fit(network, train, RECIPE, ctx)
        values: dict[str, Any] = {
            "training_set": train, "labels": train.labels, "victim": network.eval(),
            "recipe": RECIPE, "shape": shape, "model": model, "shards": [],
        }  # fmt: skip
        found = {}
        for steps, red in SEARCHES.items():
            inputs = DefenseInputs("red", red.needs(), values)
            parts = [red.shard(part, inputs, ctx) for part in red.parts(CLASSES)]
            patterns = np.stack([part["patterns"] for part in parts], 1)
            norms = np.linalg.norm(patterns.reshape(CLASSES, CLASSES, -1), axis=2)
            found[steps] = norms, np.stack([part["reached"] for part in parts], 1)
        yield seed, found


def simulated(draw: np.random.Generator, spread: float, censored: float) -> Pairs:
    """Return one table without an attack; `spread` is that of both effects."""
    effects = draw.normal(0, spread, (2, CLASSES))
    logs = np.log(draw.gamma(20.0, 0.05, (CLASSES, CLASSES)))
    logs += effects[0][:, None] + effects[1]
    bound = np.quantile(logs[OFF], censored) if censored else -np.inf
    norms = np.where(OFF, np.exp(-np.maximum(logs, bound)), 0.0)
    return norms, OFF & (logs > bound)


def noted(out: Any, what: dict[str, Any], tables: list[Pairs]) -> None:
    """Write how many of the tables each null holds to show an attack, and into which classes."""
    alarms: dict[str, dict[int, int]] = {}
    for null in NULLS:
        judged = [_red.tested(*table, null) for table in tables]
        named = [int(one["anomaly"].argmax()) for one in judged if one["p_calibrated"] <= 0.05]
        alarms[null] = dict(sorted(Counter(named).items()))
    reached = float(np.mean([hit[OFF].mean() for _, hit in tables]))
    line = {**what, "tables": len(tables), "reached": round(reached, 3), "alarms": alarms}
    print(json.dumps(line), file=out, flush=True)


def main() -> None:
    """Measure the networks, then the simulated tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=40)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out.open("a") if args.out else sys.stdout
    measured = [found for _, found in networks(args.first, args.networks)]
    for steps in SEARCHES if measured else ():
        what = {"of": "clean networks on digits", "first": args.first, "steps": steps}
        noted(out, what, [found[steps] for found in measured])
    for spread in (0.0, 0.1, 0.2, 0.3) if args.tables else ():
        for censored in (0.0, 0.33):
            draw = np.random.default_rng(args.first)
            tables = [simulated(draw, spread, censored) for _ in range(args.tables)]
            noted(out, {"of": "simulated", "effects": spread}, tables)


if __name__ == "__main__":
    main()
