"""Images per second of our training loop, beside the loop that the field writes.

    python benchmarks/training.py [--threads 2] [--repetitions 5] [--images 2560] [--compile]

All in one run, interleaved, each in a process of its own, each the median of several repetitions
after a warm-up:

    ours            training.fit: images stay on the device, batched augmentation, bfloat16 where
                    the device does it fast (a GPU, AMX), else float32
    field           DataLoader (the better of 0 and 2 workers) over PIL images, torchvision's
                    RandomCrop, RandomHorizontalFlip, ToTensor, Normalize per image, float32, SGD
    field, tensors  the same loop over normalized tensors, without augmentation

The ceiling is what matrix products of that type reach in the same run. `members` compares E models
trained with vmap and one after another. With CUDA, or `--compile`, torch.compile is measured too
(on CUDA with and without CUDA graphs), and the epochs of as many images after which compiling has
paid. Random images; prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from raysweep import ensemble, training
from raysweep.context import Context
from raysweep.datasets import ImageSet, Shape
from raysweep.models import Model
from raysweep.models.resnet18 import ResNet18
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.models.tiny_groupnorm import TinyGroupNorm
from raysweep.recipe import Recipe
from raysweep.resources import Resources, bfloat16_is_fast

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
Run = Callable[[], object]


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


def ours(name: str, count: int, mode: str | None = None) -> Run:
    network, data = fresh(MODELS[name]), random_images(count)
    if mode is not None:
        network = torch.compile(network, mode=mode)  # type: ignore[assignment]
    return lambda: training.fit(network, data, RECIPE, Context(seed=0, device=DEVICE))


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


def once(run: Run) -> float:
    """Return the seconds of a run, the device's work included."""
    start = time.perf_counter()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Apart:
    """A run in a process of its own, so that no contestant changes another's memory or caches."""

    def __init__(self, threads: int, make: Callable[..., Run], *given: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads, make, given))
        self.process.start()

    def __call__(self) -> float:
        self.pipe.send(True)
        seconds: float = self.pipe.recv()
        return seconds

    def close(self) -> None:
        self.pipe.send(False)
        self.process.join()


def _serve(pipe: Any, threads: int, make: Callable[..., Run], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    run = make(*given)
    while pipe.recv():
        pipe.send(once(run))


def medians(
    runs: dict[str, tuple[Any, ...]], repetitions: int, threads: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return name → seconds of the first run, and name → median of those after it.

    `runs` has what makes a run and its arguments; each is run once per round.
    """
    apart = {name: Apart(threads, *run) for name, run in runs.items()}
    took = {name: [run()] for name, run in apart.items()}
    for _ in range(repetitions):
        for name, run in apart.items():
            took[name].append(run())
    for run in apart.values():
        run.close()
    first = {name: values[0] for name, values in took.items()}
    return first, {name: statistics.median(values[1:]) for name, values in took.items()}


def product(side: int) -> Run:
    a = torch.randn(side, side, dtype=getattr(torch, PRECISION), device=DEVICE)
    return lambda: a @ a


def many(size: int, images: int, way: ensemble.Way) -> Run:
    data, ctx = random_images(images), Context(seed=0, device=DEVICE)
    masks = np.random.default_rng(0).random((size, images)) < 0.5
    return lambda: ensemble.fit_many(TinyGroupNorm(), data, masks, RECIPE, ctx, SHAPE, way=way)


def ceiling(repetitions: int, threads: int) -> float:
    """Return the FLOP per second of large matrix products."""
    side = 8192 if DEVICE == "cuda" else 2048
    _, took = medians({"product": (product, side)}, 4 * repetitions, threads)
    return 2 * side**3 / took["product"]


def flops(model: Model) -> int:
    """Return the FLOP of one image, forward and backward."""
    images = torch.rand(8, 3, 32, 32, device=DEVICE)
    network = fresh(model)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return int(counter.get_total_flops()) // len(images)


def loops(name: str, count: int, repetitions: int, threads: int, top: float) -> dict[str, Any]:
    """Compare the loops on one model."""
    runs = {
        "ours": (ours, name, count),
        "field, 0 workers": (field, name, count, 0),
        "field, 2 workers": (field, name, count, 2),
        "field, tensors": (field, name, count, None),
    }
    _, took = medians(runs, repetitions, threads)
    best = min(took["field, 0 workers"], took["field, 2 workers"])
    work = flops(MODELS[name]) * count
    return {
        loop: {
            "images_per_second": round(count / seconds, 1),
            "times_field": round(best / seconds, 2),
            "share_of_ceiling": round(work / seconds / top, 4),
        }
        for loop, seconds in took.items()
    }


def compiled(name: str, count: int, repetitions: int, threads: int) -> dict[str, Any]:
    """Compare eager training with torch.compile; when does compiling pay?"""
    modes = {"compiled": "default"}
    if DEVICE == "cuda":
        modes["compiled, CUDA graphs"] = "reduce-overhead"
    runs: dict[str, tuple[Any, ...]] = {"eager": (ours, name, count)}
    runs |= {n: (ours, name, count, mode) for n, mode in modes.items()}
    first, took = medians(runs, repetitions, threads)
    found: dict[str, Any] = {}
    for way, seconds in took.items():
        gained = took["eager"] - seconds
        found[way] = {"images_per_second": round(count / seconds, 1)}
        if way != "eager":
            found[way]["compile_seconds"] = round(first[way] - seconds, 1)
            found[way]["pays_after_epochs"] = (
                round((first[way] - seconds) / gained, 1) if gained > 0 else None
            )
    return found


def members(sizes: Iterable[int], images: int, repetitions: int, threads: int) -> dict[str, Any]:
    """Compare E members with vmap and one by one."""
    found = {}
    for size in sizes:
        runs = {way: (many, size, images, way) for way in ("vmap", "one by one")}
        _, took = medians(runs, repetitions, threads)
        found[f"E = {size}"] = {
            **{f"{n}, images_per_second": round(size * images / s, 1) for n, s in took.items()},
            "vmap_times_one_by_one": round(took["one by one"] / took["vmap"], 2),
        }
    return found


def main() -> None:
    """Measure everything in one run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--images", type=int, default=2560, help="of an epoch; resnet18: a fifth")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--members", nargs="*", type=int, default=[2, 8, 32])
    parser.add_argument("--compile", action="store_true", help="on the CPU too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = options.repetitions, options.threads
    top = ceiling(*rounds)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "threads": options.threads,
        "precision": PRECISION,
        "ceiling_gflops": round(top / 1e9, 1),
        "models": {},
        "compile": {},
    }
    for name in options.models:
        # On a CPU the large network needs no long epochs.
        few = name == "resnet18" and DEVICE == "cpu"
        count = max(1, options.images // 5) if few else options.images
        found["models"][name] = loops(name, count, *rounds, top)
        if DEVICE == "cuda" or options.compile:
            found["compile"][name] = compiled(name, count, *rounds)
    found["members"] = members(options.members, options.images // 5, *rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
