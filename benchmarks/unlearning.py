"""Stage 2 of ABL at the paper's scale: which form of ascent unlearns, and what it costs.

    python benchmarks/unlearning.py [--seed 100] [--dataset cifar10] [--model wrn_16_1]
                                    [--device cuda] [--out FILE] [--toy]

BadNets at 10 %. Stage 1 is done once with each isolation loss, and the precision of the isolated
share is told by epoch; the network is trained on with the rest once, from `flooding`; from there
each form of stage 2 starts. ASR, clean accuracy and the accuracy of the target class are measured
on the test set after each, in per cent; one JSON object a line. Published for ABL: ASR 3.04, CA
86.11 (Li et al., NeurIPS 2021, arXiv:2110.11571, table 1). Forms are chosen on seeds >= 100.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raysweep import methods, rng, training
from raysweep.attacks import Counts
from raysweep.attacks.badnets import BadNets
from raysweep.datasets import Dataset, ImageSet, Shape, as_floats
from raysweep.defenses import DefenseInputs
from raysweep.defenses.abl import ABL, isolation_objective
from raysweep.methods.context import Context
from raysweep.methods.recipe import RECIPES
from raysweep.models import Model

SHARES = (0.01, 0.05)


class Bench:
    """A poisoned data set, a network's setting, and the lines of results."""

    def __init__(self, args: argparse.Namespace) -> None:
        dataset, model = (
            methods.load("datasets", args.dataset)(),
            methods.load("models", args.model)(),
        )
        assert isinstance(dataset, Dataset)
        assert isinstance(model, Model)
        self.model, self.toy = model, args.toy
        self.out = args.out.open("a") if args.out else sys.stdout
        self.seed, self.ctx = args.seed, Context(seed=args.seed, device=args.device)
        self.recipe = RECIPES["abl"].model_copy(
            update={"precision": "bfloat16" if args.device == "cuda" else "float32"}
        )
        train, self.test = dataset.decode()
        self.shape = Shape.of(train.images, len(dataset.read_labels().classes))
        self.attack, classes = BadNets(rate=0.1), self.shape.num_classes
        self.seed_of_attack = rng.derive(args.seed, "attack", self.attack.name)
        counts = Counts(poison=len(train) // 10, cover=0)
        chosen = self.attack.choose(
            train.labels, classes, counts, {}, rng.generator(self.seed_of_attack, "choose")
        )
        self.poisoned = np.zeros(len(train), bool)
        self.poisoned[chosen.poison] = True
        images, labels = train.images.clone(), train.labels.copy()
        images[chosen.poison] = self.stamped(train.images[chosen.poison], chosen.poison, "poison")
        labels[chosen.poison] = self.attack.relabel(labels[chosen.poison], classes)
        self.train = ImageSet(images=images, labels=labels)
        rows = np.arange(len(self.test))
        self.triggered = self.stamped(self.test.images, rows, "test")
        self.mapped = self.attack.relabel(self.test.labels, classes)
        self.eligible = self.attack.eligible(self.test.labels, classes)

    def stamped(self, images: torch.Tensor, rows: Any, part: Any) -> torch.Tensor:
        """Return images of 8 bits with the trigger."""
        made = self.attack.stamp(
            as_floats(images), ids=rows, part=part, artifact={}, seed=self.seed_of_attack
        )
        return made.clamp(0, 1).mul(255).round().to(torch.uint8)

    def note(self, what: str, **values: Any) -> None:
        """Write one line."""
        print(json.dumps({"seed": self.seed, "what": what, **values}), file=self.out, flush=True)

    def measured(self, network: nn.Module) -> dict[str, float]:
        """Return ASR, clean accuracy and the accuracy of the target class, in per cent."""
        device, target = self.ctx.device, self.test.labels == self.mapped[0]
        clean = training.predict(network, self.test.images, self.recipe, device).argmax(1).numpy()
        fooled = training.predict(network, self.triggered, self.recipe, device).argmax(1).numpy()
        right = clean == self.test.labels
        hit = (fooled == self.mapped)[self.eligible]
        shares = {"asr": hit, "ca": right, "target_class": right[target]}
        return {name: round(100 * float(share.mean()), 2) for name, share in shares.items()}

    def inputs(self, **more: Any) -> DefenseInputs:
        """Return the inputs of a defense."""
        values = {
            "training_set": self.train, "labels": self.train.labels, "shape": self.shape,
            "recipe": self.recipe, "model": self.model, "shards": [], **more,
        }  # fmt: skip
        return DefenseInputs("benchmark", ABL().needs(), values)

    def isolated(self, abl: ABL) -> tuple[nn.Module, Any]:
        """Do stage 1; return the network and the losses (N,), and note the precision by epoch."""
        recipe = self.recipe.model_copy(
            update={"epochs": abl.isolation_epochs, "schedule": "constant", "augment": ()}
        )
        network = training.build(self.model, self.shape, self.ctx)
        dynamics = training.Dynamics(self.train, recipe, self.ctx.device)
        objective = isolation_objective(abl.isolation_loss, abl.gamma)
        training.fit(
            network, self.train, recipe, self.ctx, objective=objective, phase="isolate",
            on_epoch=dynamics,
        )  # fmt: skip
        losses = dynamics.losses.numpy()
        for share in SHARES:
            lowest = np.argsort(losses, axis=1, kind="stable")[:, : int(share * losses.shape[1])]
            by_epoch = [round(100 * float(self.poisoned[row].mean()), 1) for row in lowest]
            self.note(f"precision, {abl.isolation_loss}, {share:g}", by_epoch=by_epoch)
        return network, losses[-1]


def forms(toy: bool) -> Iterator[ABL]:
    """Return the forms of stage 2 that are compared."""
    for rate, steps in itertools.product((5e-4, 2e-3, 1e-2), (4, 8, 20, 40)):
        yield ABL(ascent="separate", unlearning_rate=rate, unlearning_steps=steps)
    grid = itertools.product((2e-3, 1e-2), (2, 8, 32), (60, 240, 960))
    for rate, batch, steps in grid:
        yield ABL(unlearning_rate=rate, isolated_batch=batch, unlearning_steps=steps)
        if toy:
            return
    for cap in (3.0, 10.0):
        yield ABL(cap=cap, unlearning_steps=240)


def main() -> None:
    """Do stage 1 and the training between the stages once, and stage 2 in every form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--model", default="wrn_16_1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--toy", action="store_true", help="a dry run: one epoch of everything")
    args = parser.parse_args()
    start = time.perf_counter()
    bench = Bench(args)
    lengths = (1, 1) if args.toy else (20, 60)
    bench.isolated(ABL(isolation_epochs=lengths[0], isolation_loss="lga_sample"))
    abl = ABL(isolation_epochs=lengths[0], tuning_epochs=lengths[1])
    network, losses = bench.isolated(abl)
    bench.note("after isolation", **bench.measured(network), seconds=time.perf_counter() - start)
    for share in SHARES[:1]:
        flags = np.zeros(len(losses), bool)
        flags[np.argsort(losses, kind="stable")[: int(share * len(losses))]] = True
        isolated, rest = (
            bench.train.take(np.flatnonzero(flags)),
            bench.train.take(np.flatnonzero(~flags)),
        )
        tuned = copy.deepcopy(network)
        abl.tuned(tuned, rest, bench.inputs(), bench.ctx)
        bench.note(
            f"trained on, {share:g}", **bench.measured(tuned), seconds=time.perf_counter() - start
        )
        for form in forms(args.toy):
            again = copy.deepcopy(tuned)
            form.unlearned(again, isolated, rest, bench.inputs(), bench.ctx)
            changed = form.model_dump(exclude_defaults=True)
            bench.note(f"unlearned, {share:g}", **bench.measured(again), **changed)
    bench.note("all", seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
