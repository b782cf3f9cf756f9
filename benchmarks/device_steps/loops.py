"""Step 4: milliseconds per training step, beside the ceiling and beside the field's loop."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from device_steps.bench import Bench
from device_steps.facts import product_rate
from device_steps.victims import (
    RECIPE,
    SHAPE,
    WAYS,
    fit,
    network,
    random_images,
    step_seconds,
)
from raysweep.datasets import ImageSet
from raysweep.methods.context import Context

NETWORKS = ("tiny_cnn", "wrn_16_1", "resnet9", "preact_resnet18", "resnet18")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
WORKERS = 8


def steps(bench: Bench) -> None:
    """Measure five networks at two batch sizes, then the field's loop for two of them."""
    data = random_images(bench.pick(25_700, 70))  # 25,700 / 128 is no whole number.
    top = product_rate(bench, torch.bfloat16)
    bench.note("ceiling", "bfloat16 products", top / 1e12, "TFLOP/s")
    names, sizes = bench.pick((NETWORKS, (128, 512)), (NETWORKS[:1], (32,)))
    field: dict[str, float] = {}
    took: dict[str, float] = {}
    for name in ("tiny_cnn", "resnet18"):
        if name in names:
            run = partial(_field, bench, name, data, field)
            bench.attempt(f"{name}, {sizes[0]}", run, needs=5)
    cases = [(name, size) for size in sizes for name in names]
    for name, size in cases:
        run = partial(_ours, bench, name, data, size, top, field, took)
        bench.attempt(f"{name}, {size}", run, needs=3)
    for name, size in cases:
        bench.attempt(f"{name}, {size}", partial(_launches, bench, name, data, size, took), needs=3)


def _ours(
    bench: Bench,
    name: str,
    data: ImageSet,
    batch: int,
    top: float,
    field: dict[str, float],
    times: dict[str, float],
) -> None:
    row, work = f"{name}, {batch}", flops(bench, name)
    for way, captured in WAYS.items():
        took, fixed = step_seconds(bench, name, data, batch, captured)
        times[f"{row}, {way}"] = took
        bench.note(row, way, 1e3 * took, "ms")
        bench.note(row, f"{way}, of a fit beside its steps", 1e3 * fixed, "ms", shown=False)
    bench.note(row, "images/s", batch / took)
    bench.note(row, "of ceiling", 100 * work * batch / took / top, "%")
    if name in field and batch in (128, 32):
        bench.note(row, "times field", batch / took / field[name])


def _launches(bench: Bench, name: str, data: ImageSet, batch: int, times: dict[str, float]) -> None:
    """Note launches of a step, and its kernels' time as a share of what it takes unprofiled."""
    row = f"{name}, {batch}"
    for way, captured in WAYS.items():
        launches, busy = profiled(bench, name, data, batch, captured)
        bench.note(row, f"{way} launches", launches)
        bench.note(row, f"{way} kernels", 1e3 * busy, "ms", shown=False)
        if f"{row}, {way}" in times:
            bench.note(row, "busy", 100 * busy / times[f"{row}, {way}"], "%")


def profiled(
    bench: Bench, name: str, data: ImageSet, batch: int, captured: bool
) -> tuple[float, float]:
    """Return a step's launches by the host, and the seconds that its kernels take on the GPU."""
    count = bench.pick(120, 1)
    recipe, ctx = (
        RECIPE.model_copy(update={"batch_size": batch}),
        Context(seed=0, device=bench.device),
    )
    module = network(name, bench.device)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if bench.cuda:
        kinds = [torch.profiler.ProfilerActivity.CUDA]
        fit(module, data, recipe, ctx, captured, steps=2)
    with torch.profiler.profile(activities=kinds) as seen:
        fit(module, data, recipe, ctx, captured, steps=count)
        bench.wait()
    launches, busy = 0, 0.0
    for event in seen.key_averages():
        if event.key.startswith(LAUNCHES):
            launches += event.count
        elif event.device_type == torch.autograd.DeviceType.CUDA:
            busy += event.self_device_time_total / 1e6
    return launches / count, busy / count


def flops(bench: Bench, name: str) -> float:
    """Return the FLOP of one image, forward and backward."""
    images = torch.rand(8, 3, 32, 32, device=bench.device)
    with FlopCounterMode(display=False) as counter:
        network(name, bench.device)(images).sum().backward()
    return counter.get_total_flops() / len(images)


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """PIL images, augmented one by one, as the field does it."""

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


def _field(bench: Bench, name: str, data: ImageSet, rates: dict[str, float]) -> None:
    """Note images per second of a DataLoader with workers, autocast and SGD at batch 128."""
    batch = bench.pick(128, 32)
    module = network(name, bench.device).to(memory_format=torch.contiguous_format).train()
    module.normalize = nn.Identity()  # in the transforms
    loader: DataLoader[Any] = DataLoader(
        Pictures(data), batch_size=batch, shuffle=True, persistent_workers=True,
        num_workers=bench.pick(min(WORKERS, os.cpu_count() or 1), 1), pin_memory=bench.cuda,
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def epoch() -> None:
        for images, labels in loader:
            images = images.to(bench.device, non_blocking=True)
            labels = labels.to(bench.device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(bench.device, dtype=torch.bfloat16):
                loss = F.cross_entropy(module(images), labels)
            loss.backward()
            optimizer.step()

    took = bench.median(epoch, bench.pick(2, 1))
    rates[name] = len(data) / took
    bench.note(f"{name}, {batch}", "field", rates[name], "images/s")
