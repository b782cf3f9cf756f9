"""What share of the matrix products' speed the convolutions of resnet18 reach on a CPU.

    python benchmarks/convolutions.py [--threads 1] [--repetitions 7] [--batch 128]

For each map of the network, GFLOP per CPU second of the three convolutions of a step (forward,
gradient of the input, gradient of the weights) and of the matrix product of the same work, in turns
in one process. Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from contest import Run, machine

from raysweep.sweep.resources import Resources, bfloat16_is_fast

MAPS = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels, side
DTYPE = torch.bfloat16 if bfloat16_is_fast(Resources()) else torch.float32
WAYS = ("forward", "input's gradient", "weights' gradient", "product")


def work(channels: int, side: int, batch: int) -> dict[str, Run]:
    """Return way → a call that does the work of one convolution."""

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(DTYPE)

    last = torch.channels_last
    images = values(batch, channels, side, side).to(memory_format=last)
    gradient = values(batch, channels, side, side).to(memory_format=last)
    weights = values(channels, channels, 3, 3).to(memory_format=last)
    pixels, taps = values(batch * side * side, 9 * channels), values(9 * channels, channels)

    def backward(*wanted: bool) -> object:
        one = [1, 1]
        return torch.ops.aten.convolution_backward(
            gradient, images, weights, None, one, one, one, False, [0, 0], 1, [*wanted, False]
        )

    return {
        "forward": lambda: F.conv2d(images, weights, padding=1),
        "input's gradient": lambda: backward(True, False),
        "weights' gradient": lambda: backward(False, True),
        "product": lambda: pixels @ taps,
    }


def speeds(channels: int, side: int, batch: int, repetitions: int) -> dict[str, float]:
    """Return way → FLOP per CPU second, the median of interleaved repetitions after a first."""
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    calls = work(channels, side, batch)
    for _ in range(1 + repetitions):
        for way in WAYS:
            start = time.process_time()
            calls[way]()
            took[way].append(time.process_time() - start)
    flop = 2 * 9 * channels**2 * side**2 * batch
    return {way: flop / statistics.median(seconds[1:]) for way, seconds in took.items()}


def main(given: list[str] | None = None) -> None:
    """Measure every map."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    print(", ".join(f"{name}: {value}" for name, value in machine().items()))
    print(f"GFLOP per CPU second, {DTYPE}, {options.threads} threads, batch {options.batch}")
    print("map".ljust(14), *(way.rjust(18) for way in WAYS))
    for channels, side in MAPS:
        found = speeds(channels, side, options.batch, options.repetitions)
        print(
            f"{channels} x {side} x {side}".ljust(14), *(f"{v / 1e9:18.0f}" for v in found.values())
        )


if __name__ == "__main__":
    main()
