"""How much faster the defenses are than the plain way to write them; all ratios in one run.

    python benchmarks/defenses.py [--threads 2] [--only NAME ...]

    confusion       Confusion Training's inner loop, sample passes a second, beside a loop at batch
                    32 with a DataLoader, per-sample weights in Python and float32
    red             all sources of a target at once, beside one pair of classes after another
    mutation        100 mutants on cached features, beside 100 forwards of the whole network
    datamodels      subset models a second, by vmap and one after another
    means           difference of means at 10,000 samples x 10,000 models: seconds and peak memory
    search          swaps a second, beside computing objectives, or marginals, anew for each
    features        filters on 50,000 x 512 features: seconds and peak memory

Random data; each part runs in a process of its own, whose peak memory is its own. Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from raysweep import training
from raysweep.datasets import ImageSet, Shape
from raysweep.defenses import DefenseInputs
from raysweep.defenses._confusion import Confusion
from raysweep.defenses._datamodels import _one_pass, difference_of_means, objective_matrix, value
from raysweep.defenses.activation_clustering import ActivationClustering
from raysweep.defenses.model_mutation import Mutants
from raysweep.defenses.red import RED
from raysweep.defenses.scan import two_groups, untangled, whitening
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.defenses.spectre import SPECTRE
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models.linear import Linear
from raysweep.models.six_conv import SixConv
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.models.tiny_groupnorm import TinyGroupNorm
from raysweep.sweep.resources import Resources, bfloat16_is_fast
from raysweep.training import ensemble

SHAPE = Shape(channels=3, height=32, width=32, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
PRECISION: Final = "bfloat16" if bfloat16_is_fast(Resources()) else "float32"
RECIPE = Recipe(epochs=1, batch_size=32, precision=PRECISION, nesterov=False, schedule="constant")
Part = Callable[[], dict[str, Any]]


def images(count: int, seed: int = 0) -> ImageSet:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return ImageSet(images=pixels, labels=np.arange(count) % 10)


def median_seconds(run: Callable[[], object], repetitions: int = 3) -> float:
    run()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def confusion() -> dict[str, Any]:
    """Compare passes a second of the confusion loop."""
    clean, inspected, ctx = images(640), images(640, 1), Context(seed=0)
    network = training.build(TinyCNN(width=32), SHAPE, ctx)
    guessed, weights = torch.zeros(640, dtype=torch.int64), torch.ones(10)
    streams = {
        "clean": training.Stream(data=clean),
        "inspected": training.Stream(data=inspected, every=2),
    }
    passes = 640 + 320

    def ours() -> None:
        objective = Confusion(guessed, weights, 20.0, 10)
        training.fit(network, streams, RECIPE, ctx, objective=objective)

    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.7)
    loaders = [
        DataLoader(
            TensorDataset(part.images.float() / 255, torch.from_numpy(part.labels)),
            batch_size=32, shuffle=True,
        )
        for part in (clean, inspected)
    ]  # fmt: skip

    def theirs() -> None:
        plain.train()
        second = iter(loaders[1])
        for step, (x, _) in enumerate(loaders[0]):
            wrong = torch.full((len(x),), step % 9 + 1)
            if step % 2:
                loss = F.cross_entropy(plain(x), wrong)
            else:
                more, given = next(second)
                logits = plain(torch.cat([x, more]))
                each = F.cross_entropy(logits[len(x) :], given, reduction="none")
                total, weight = torch.zeros(()), 0.0
                for one, label in zip(each, given, strict=True):
                    total = total + one * float(weights[label])
                    weight += float(weights[label])
                loss = (19 * F.cross_entropy(logits[: len(x)], wrong) + total / weight) / 20
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    mine, other = median_seconds(ours), median_seconds(theirs)
    return {
        "ours passes/s": round(passes / mine), "plain passes/s": round(passes / other),
        "ratio": round(other / mine, 2),
    }  # fmt: skip


def red() -> dict[str, Any]:
    """Compare nine sources at once with one after another."""
    ctx = Context(seed=0)
    network = training.build(TinyCNN(width=32), SHAPE, ctx).eval()
    inputs = DefenseInputs("red", RED().needs(), {"victim": network, "recipe": RECIPE})
    method = RED(steps=10, images=64, pi=1.0)
    pixels = images(64 * 9).images.float().div(255).view(9, 64, 3, 32, 32)
    removed = images(64, 2).images.float() / 255

    def together() -> None:
        method.smallest(inputs, pixels, removed, 0, 0.0, ctx)

    def apart() -> None:
        for source in range(9):
            method.smallest(inputs, pixels[source : source + 1], removed, 0, 0.0, ctx)

    return {"ratio": round(median_seconds(apart) / median_seconds(together), 2)}


def mutation() -> dict[str, Any]:
    """Compare mutants on cached features with whole forwards."""
    network = training.build(SixConv(), SHAPE, Context(seed=0)).eval()
    pixels = images(200).images.float() / 255
    mutants = Mutants(network, "head.3", 100, 0.65, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def whole() -> None:
        for _ in range(100):
            network(pixels)

    def cached() -> None:
        with training.autocast(RECIPE, "cpu"):
            mutants.labels(pixels)

    return {"ratio": round(median_seconds(whole, 1) / median_seconds(cached), 1)}


def datamodels() -> dict[str, Any]:
    """Compare subset models a second by vmap and one after another."""
    data, ctx, found = images(500), Context(seed=0), {}
    recipe = RECIPE.model_copy(update={"epochs": 3, "batch_size": 250})
    masks = np.random.default_rng(0).random((16, 500)) < 0.5
    for model in (TinyGroupNorm(width=16), Linear()):
        rates = {}
        for way in ("vmap", "one by one"):
            seconds = median_seconds(
                lambda way=way, model=model: ensemble.fit_many(  # type: ignore[misc]
                    model, data, masks, recipe, ctx, SHAPE, way=way
                ),
                1,
            )
            rates[way] = round(16 / seconds, 2)
        found[model.name] = {**rates, "vmap factor": round(rates["vmap"] / rates["one by one"], 2)}
    return found


def means() -> dict[str, Any]:
    """Time the difference of means at full size."""
    draw = np.random.default_rng(0)
    margins = draw.normal(size=(10_000, 10_000)).astype(np.float16)
    masks = draw.random((10_000, 10_000)) < 0.5
    start = time.perf_counter()
    difference_of_means(margins, masks)
    return {"seconds": round(time.perf_counter() - start, 1)}


def search() -> dict[str, Any]:
    """Compare swaps a second with computing the objective, or marginals, for each swap."""
    n, size = 2000, 100
    weights = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    matrix = objective_matrix(weights, size)
    both, diagonal = matrix + matrix.T, np.diag(matrix)
    members = np.arange(n) < size
    sums = both[members].sum(0)
    seconds = median_seconds(lambda: _one_pass(both, diagonal, members, sums))
    ours = 100 / seconds

    def anew() -> None:
        """Try every swap of one member, each by the whole objective."""
        tried = members.copy()
        for outsider in range(size, size + 200):
            tried[0], tried[outsider] = False, True
            value(matrix, tried)
            tried[0], tried[outsider] = True, False

    def marginals() -> None:
        """Choose one swap from marginals that are summed anew."""
        again = both[members].sum(0)
        np.argmin(np.where(members, again - diagonal, np.inf))
        np.argmax(np.where(members, -np.inf, again + diagonal))

    # A swap is the best of size * (n - size) candidates.
    objective = median_seconds(anew) / 200 * size * (n - size)
    return {
        "swaps/s": round(ours), "ratio to the objective of all candidates": round(ours * objective),
        "ratio to marginals anew": round(ours * median_seconds(marginals), 1),
    }  # fmt: skip


def features() -> dict[str, Any]:
    """Time filters on features of the size of CIFAR-10 under ResNet-18."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=(50_000, 512)).astype(np.float32)
    labels, found = np.arange(50_000) % 10, {}
    for method in (SpectralSignatures(), ActivationClustering(), SPECTRE()):
        inputs = DefenseInputs(
            method.name, method.needs(), {"features": values, "labels": labels, "shape": SHAPE}
        )
        start = time.perf_counter()
        method.run(inputs, Context(seed=0))
        found[method.name] = round(time.perf_counter() - start, 1)
    start = time.perf_counter()
    clean = draw.normal(size=(2000, 512))
    whiten = whitening(untangled(clean, np.arange(2000) % 10, 100))
    for label in range(10):
        two_groups(values[labels == label] @ whiten, clean[label::10] @ whiten)
    return {"seconds": {**found, "scan": round(time.perf_counter() - start, 1)}}


PARTS: dict[str, Part] = {
    part.__name__: part for part in (confusion, red, mutation, datamodels, means, search, features)
}


def alone(name: str, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    found = PARTS[name]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {**found, "peak GiB": round(peak, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(PARTS))
    given = parser.parse_args()
    results = {}
    for name in given.only:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[name] = pool.apply(alone, (name, given.threads))
    print(json.dumps({"threads": given.threads, "torch": torch.__version__, **results}, indent=2))


if __name__ == "__main__":
    main()
