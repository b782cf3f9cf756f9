"""Step 0: what machine this is, and what it can do at most."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from device_steps.bench import Bench


def facts(bench: Bench) -> None:
    """Note the machine, how long imports take, and the ceilings of arithmetic and memory."""
    bench.attempt("machine", lambda: _machine(bench))
    bench.attempt("imports", lambda: _imports(bench))
    bench.attempt("products", lambda: _products(bench))
    bench.attempt("copies", lambda: _copies(bench))
    bench.attempt("launch", lambda: _launch(bench))


def _machine(bench: Bench) -> None:
    smi = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    if bench.cuda and shutil.which("nvidia-smi"):
        said = subprocess.run(smi, capture_output=True, text=True, timeout=10, check=False)
        bench.note("machine", "driver", said.stdout.strip())
    bench.note("machine", "Python", platform.python_version())
    bench.note("machine", "torch", torch.__version__)
    bench.note("machine", "CUDA", str(torch.version.cuda))
    if bench.cuda:
        bench.note("machine", "cuDNN", str(torch.backends.cudnn.version()))
    bench.note("machine", "cores", os.cpu_count() or 0)
    memory = Path("/proc/meminfo").read_text().split()[1]
    bench.note("machine", "MemTotal", round(int(memory) / 1e6, 1), "GB")
    free = shutil.disk_usage("/dev/shm").free / 1e9
    bench.note("machine", "/dev/shm", round(free, 1), "GB free")
    if bench.cuda:  # Last: torch refuses to say it where both of its ways to set it were used.
        bench.note("machine", "TF32 of cuDNN", torch.backends.cudnn.allow_tf32)


def _imports(bench: Bench) -> None:
    names = bench.pick(("torch", "raysweep.stages.perform", "ray.tune"), ("json",))
    for name in names:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False,
            timeout=30,
        )  # fmt: skip
        failed = done.stderr.strip().rpartition("\n")[2]
        took = round(time.perf_counter() - start, 2)
        bench.note("imports", name, f"FAILED: {failed}" if done.returncode else took, "s")


def product_rate(bench: Bench, dtype: torch.dtype) -> float:
    """Return the FLOP per second of large matrix products of random numbers."""
    side, times = bench.pick((8192, 20), (128, 2))
    a, b = (torch.randn(side, side, dtype=dtype, device=bench.device) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)

    def run() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    return 2 * side**3 * times / bench.median(run, 3)


def _products(bench: Bench) -> None:
    bench.note("products", "bfloat16", product_rate(bench, torch.bfloat16) / 1e12, "TFLOP/s")
    for name, allowed in (("TF32", True), ("float32", False)):  # The latter is torch's default.
        torch.backends.cuda.matmul.allow_tf32 = allowed
        bench.note("products", name, product_rate(bench, torch.float32) / 1e12, "TFLOP/s")


def _copies(bench: Bench) -> None:
    size = bench.pick(2 * 10**9, 10**6)
    there = torch.empty(size, dtype=torch.uint8, device=bench.device).random_()
    other = torch.empty_like(there)
    took = bench.median(lambda: other.copy_(there), 5)
    bench.note("copies", "device to device, read + written", 2 * size / took / 1e9, "GB/s")
    part = size // 8
    for name, pinned in (("pinned", True), ("pageable", False)):
        here = torch.empty(part, dtype=torch.uint8, pin_memory=pinned and bench.cuda)
        here.fill_(1)
        for way, run in {
            "to device": lambda here=here: other[:part].copy_(here),
            "back": lambda here=here: here.copy_(other[:part]),
        }.items():
            took = bench.median(run, 3)
            bench.note("copies", f"{way}, {name}", part / took / 1e9, "GB/s")


def _launch(bench: Bench) -> None:
    """Note the host's time for a small operation, and the wait for one."""
    small, count = torch.zeros(64, device=bench.device), bench.pick(5000, 10)

    def many() -> None:
        for _ in range(count):
            small.add_(1)

    bench.note("launch", "small operation", 1e6 * bench.median(many, 3) / count, "us")
    waits = count // 10

    def waiting() -> None:
        for _ in range(waits):
            small.add_(1)
            small[0].item()

    bench.note("launch", "with .item()", 1e6 * bench.median(waiting, 3) / waits, "us")
