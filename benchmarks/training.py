"""Images per second of our training loop, beside the loop that the field writes.

    python benchmarks/training.py [--threads 1 2] [--repetitions 9] [--images 1280] [--variants]
                                  [--compile] [--refuse]

Contestants, each in a process of its own (`contest.py` says how they are compared):

    ours            training.fit: images stay on the device, batched augmentation, bfloat16 where
                    the device does it fast (a GPU, AMX), else float32
    field           DataLoader (the better of 0 and 2 workers) over PIL images, torchvision's
                    RandomCrop, RandomHorizontalFlip, ToTensor, Normalize per image, float32, SGD
    field, tensors  the same loop over normalized tensors, without augmentation
    ceiling         matrix products of our type

The ratio of wall-clock times is what a user sees on a machine of his own. The ratio of CPU times
(of all processes and workers) at one thread says nearly the same and holds beside other work, which
slows down both loops; several threads wait for each other at work. If others kept a tenth of a CPU
busy or more, the table says so, and `--refuse` ends with status 3.

`--variants` compares our loop with itself: float32, other batch sizes, weights in the usual memory
format, oneDNN kept from AMX, threads bound to CPUs. `members` compares E models trained with vmap
and one after another. With CUDA, or `--compile`, torch.compile is measured too (on CUDA with and
without CUDA graphs), and the epochs of as many images after which compiling has paid. Random
images; prints a table, and one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from contest import BUSY, Rounds, Run, contest, machine
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from raysweep import training
from raysweep.datasets import ImageSet, Shape
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models import Model
from raysweep.models.resnet18 import ResNet18
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.models.tiny_groupnorm import TinyGroupNorm
from raysweep.sweep.resources import Resources, bfloat16_is_fast
from raysweep.training import ensemble

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = Shape(
    channels=3, height=32, width=32, num_classes=10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)
PRECISION: Final = "bfloat16" if DEVICE == "cuda" or bfloat16_is_fast(Resources()) else "float32"
RECIPE = Recipe(epochs=1, batch_size=128, augment=("crop", "flip"), precision=PRECISION)
MODELS: dict[str, Model] = {
    "tiny_cnn, width 16": TinyCNN(width=16),
    "tiny_cnn, width 64": TinyCNN(width=64),
    "resnet18": ResNet18(),
}
# On a CPU: the epochs of this benchmark are so many times shorter.
FEWER: Final = {"tiny_cnn, width 64": 4, "resnet18": 10}
SIDE: Final = 8192 if DEVICE == "cuda" else 2048  # of the matrices of the ceiling
PRODUCTS: Final = 10


def random_images(count: int) -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return ImageSet(images=torch.from_numpy(pixels), labels=rng.integers(0, 10, count))


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """PIL images, augmented one by one."""

    def __init__(self, data: ImageSet) -> None:
        self.images = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in data.images]
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, 4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(SHAPE.mean, SHAPE.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def fresh(model: Model) -> nn.Module:
    return training.build(model, SHAPE, Context(seed=0, device=DEVICE))


def ours(name: str, count: int, changes: Mapping[str, Any] | None = None) -> Run:
    """Return one epoch of our loop; `changes` to the recipe, `memory_format` or `compile`."""
    changes = dict(changes or {})
    network, data = fresh(MODELS[name]), random_images(count)
    network.to(memory_format=changes.pop("memory_format", torch.channels_last))
    if mode := changes.pop("compile", None):
        network = torch.compile(network, mode=mode)  # type: ignore[assignment]
    recipe = RECIPE.model_copy(update=changes)
    return lambda: training.fit(network, data, recipe, Context(seed=0, device=DEVICE))


def field(name: str, count: int, workers: int | None) -> Run:
    """Return one epoch of the usual loop; `workers` None: over tensors made beforehand."""
    data = random_images(count)
    network = fresh(MODELS[name]).to(memory_format=torch.contiguous_format)
    network.normalize = nn.Identity()  # in the transforms, or done
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SHAPE.mean, SHAPE.std))
    ready = TensorDataset((data.images / 255 - mean) / std, torch.from_numpy(data.labels))
    loader: DataLoader[Any] = DataLoader(
        ready if workers is None else Pictures(data),
        batch_size=RECIPE.batch_size,
        shuffle=True,
        num_workers=workers or 0,
        persistent_workers=bool(workers),
        pin_memory=DEVICE == "cuda",
    )
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def epoch() -> None:
        network.train()
        for images, labels in loader:
            images, labels = images.to(DEVICE), labels.to(DEVICE)
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()

    return epoch


def product(side: int) -> Run:
    a = torch.randn(side, side, dtype=getattr(torch, PRECISION), device=DEVICE)
    return lambda: [a @ a for _ in range(PRODUCTS)]


def many(size: int, images: int, way: ensemble.Way) -> Run:
    data, ctx = random_images(images), Context(seed=0, device=DEVICE)
    masks = np.random.default_rng(0).random((size, images)) < 0.5
    return lambda: ensemble.fit_many(TinyGroupNorm(), data, masks, RECIPE, ctx, SHAPE, way=way)


def flops(model: Model) -> int:
    """Return the FLOP of one image, forward and backward."""
    images = torch.rand(8, 3, 32, 32, device=DEVICE)
    network = fresh(model)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return int(counter.get_total_flops()) // len(images)


def said(found: Rounds, loop: str, count: int, *against: str) -> dict[str, Any]:
    """Return images per second of a loop and how many times as fast as others it is."""
    times = {clock: found.times(loop, *against, clock=clock) for clock in ("wall", "cpu")}
    return {
        "images_per_second": round(count / found.seconds(loop), 1),
        "images_per_cpu_second": round(count / found.seconds(loop, "cpu"), 1),
        "times": str(times["wall"]),
        "times_by_cpu": str(times["cpu"]) if DEVICE == "cpu" else None,
        "others": round(found.others, 2),
    }


def loops(name: str, count: int, repetitions: int, threads: int) -> dict[str, Any]:
    """Compare the loops on one model, and with matrix products."""
    runs: dict[str, tuple[Any, ...]] = {
        "ours": (ours, name, count),
        "field, 0 workers": (field, name, count, 0),
        "field, 2 workers": (field, name, count, 2),
        "field, tensors": (field, name, count, None),
        "ceiling": (product, SIDE),
    }
    found = contest(runs, repetitions, threads)
    clock = "cpu" if DEVICE == "cpu" and threads == 1 else "wall"
    top = PRODUCTS * 2 * SIDE**3 / found.seconds("ceiling", clock)
    work = flops(MODELS[name]) * count
    return {
        loop: {
            **said(found, loop, count, "field, 0 workers", "field, 2 workers"),
            "share_of_ceiling": round(work / found.seconds(loop, clock) / top, 4),
            "ceiling_gflops": round(top / 1e9),
        }
        for loop in list(runs)[:-1]
    }


def variants(name: str, count: int, repetitions: int, threads: int) -> dict[str, Any]:
    """Compare our loop with itself, one thing changed at a time."""
    changes: dict[str, dict[str, Any]] = {
        "as it is": {},
        "the same again": {},  # What differs here is noise.
        "float32": {"precision": "float32"},
        "batch size 32": {"batch_size": 32},
        "batch size 512": {"batch_size": 512},
        "weights not channels last": {"memory_format": torch.contiguous_format},
    }
    environments = {
        "oneDNN without AMX": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
        "threads bound to CPUs": {"OMP_PROC_BIND": "true"},
    }
    if DEVICE == "cpu":
        changes |= {variant: {} for variant in environments}
    runs = {variant: (ours, name, count, change) for variant, change in changes.items()}
    found = contest(runs, repetitions, threads, environments)
    return {variant: said(found, variant, count, "as it is") for variant in runs}


def compiled(name: str, count: int, repetitions: int, threads: int) -> dict[str, Any]:
    """Compare eager training with torch.compile; when does compiling pay?"""
    modes = {"compiled": "default"}
    if DEVICE == "cuda":
        modes["compiled, CUDA graphs"] = "reduce-overhead"
    runs: dict[str, tuple[Any, ...]] = {"eager": (ours, name, count)}
    runs |= {n: (ours, name, count, {"compile": mode}) for n, mode in modes.items()}
    rounds = contest(runs, repetitions, threads)
    found: dict[str, Any] = {}
    for way in runs:
        found[way] = said(rounds, way, count, "eager")
        gained = rounds.seconds("eager") - rounds.seconds(way)
        if way != "eager":
            spent = rounds.first[way].wall - rounds.seconds(way)
            found[way]["compile_seconds"] = round(spent, 1)
            found[way]["pays_after_epochs"] = round(spent / gained, 1) if gained > 0 else None
    return found


def members(sizes: Iterable[int], images: int, repetitions: int, threads: int) -> dict[str, Any]:
    """Compare E members with vmap and one by one."""
    found = {}
    for size in sizes:
        runs = {way: (many, size, images, way) for way in ("vmap", "one by one")}
        rounds = contest(runs, repetitions, threads)
        found[f"E = {size}"] = {w: said(rounds, w, size * images, "one by one") for w in runs}
    return found


def table(found: Mapping[str, Any]) -> str:
    """Return the lines that name the machine and compare our loop with the field's."""
    facts = ", ".join(f"{name}: {value}" for name, value in found["machine"].items())
    head = ("network", "threads", "ours/s", "times field", "by CPU time", "ceiling", "others")
    rows = [head]
    for name, threads in ((n, t) for n, of in found.get("loops", {}).items() for t in of):
        one = found["loops"][name][threads]["ours"]
        rows.append(
            (
                name,
                threads,
                f"{one['images_per_second']:.0f}",
                one["times"],
                one["times_by_cpu"] or "–",
                f"{one['share_of_ceiling']:.0%}",
                f"{one['others']:.2f}",
            )
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    lines = ["  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([facts, *lines, *warnings(found)])


def warnings(found: Mapping[str, Any]) -> list[str]:
    """Return a line if others used the machine."""
    most = max(
        (one["ours"]["others"] for of in found.get("loops", {}).values() for one in of.values()),
        default=0,
    )
    if most < BUSY:
        return []
    return [
        f"BUSY: others kept up to {most:.2f} CPUs busy, in more rounds than could be left out; do "
        f"not quote wall-clock figures of this run, nor CPU times of several threads, which wait "
        f"for each other. CPU times of one thread hold within the range that is given."
    ]


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    cpus = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", nargs="*", type=int, default=sorted({1, min(2, cpus)}))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--images", type=int, default=1280, help="of an epoch; fewer where slow")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--members", nargs="*", type=int, default=[2, 8, 32])
    parser.add_argument("--variants", action="store_true", help="compare our loop with itself")
    parser.add_argument("--compile", action="store_true", help="on the CPU too")
    parser.add_argument("--refuse", action="store_true", help="status 3 on a busy machine")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Measure everything in one run; return the exit status."""
    options = arguments(given)
    found: dict[str, Any] = {"machine": machine() | {"precision": PRECISION}}
    for name in options.models:
        # On a CPU a slow network needs no long epochs.
        share = FEWER.get(name, 1) if DEVICE == "cpu" else 1
        count = max(1, options.images // share)
        for threads in options.threads:
            every = [loops]
            every += [variants] if options.variants else []
            every += [compiled] if DEVICE == "cuda" or options.compile else []
            for measure in every:
                of = found.setdefault(measure.__name__, {}).setdefault(name, {})
                of[str(threads)] = measure(name, count, options.repetitions, threads)
            print(table(found), file=sys.stderr, flush=True)  # in case the run is cut short
    few = options.images // 5
    found["members"] = members(options.members, few, options.repetitions, max(options.threads))
    print(table(found))
    print(json.dumps(found, indent=1))
    return 3 if options.refuse and warnings(found) else 0


if __name__ == "__main__":
    sys.exit(main())
