"""One run on a GPU machine: ten steps, each in a process of its own with a limit of its own.

    python benchmarks/device.py --out FOLDER [--seconds 540] [--steps 0,1,4] [--device cuda]

    0  facts: the machine, imports, ceilings of arithmetic and copies
    1  agreement of CPU and CUDA: trainings, all attacks and defenses on the contract's toy
    2  determinism: the same bytes twice, and across a kill
    3  memory: what stays, out of memory, a device-side assert
    4  steps: milliseconds, launches, share of the ceiling, beside the field's loop
    5  capture: a captured step beside an eager one, bytes and milliseconds
    6  members: vmap, one by one, each on a set of its own, one process each
    7  searches: RED, Neural Cleanse, STRIP, SentiNet
    8  sweeps of small victims under Ray at gpu 1.0, 0.5 and 0.25
    9  a row of a paper: ABL, WRN-16-1, CIFAR-10, BadNets 10 % (with RAYSWEEP_DATA)

No step needs another's results, and a step that fails or outruns its limit ends alone. Seconds that
one leaves are shared by those after it. Each measurement is at once a line of FOLDER/device.jsonl,
on the disk; what the steps print is in FOLDER/device.log; after each step the table of all so far
is printed. `--device cpu` is a dry run at toy size. A machine without a network: device_kit.sh.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

# `torch.cuda.is_available` must not start CUDA here, where the steps are forked from.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "benchmarks"):  # The tree's package and tests, wherever it lies.
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from device_steps.apart import FORK  # noqa: E402
from device_steps.bench import Bench, last_line  # noqa: E402
from device_steps.table import SECONDS, read, table  # noqa: E402


@dataclass(frozen=True)
class Step:
    """A step: the module and function that does it, and its share of the time."""

    module: str
    function: str
    share: float


STEPS = {
    0: Step("facts", "facts", 20),
    1: Step("agreement", "agreement", 60),
    2: Step("promises", "determinism", 20),
    3: Step("promises", "memory", 15),
    4: Step("loops", "steps", 75),
    5: Step("capture", "capture", 45),
    6: Step("members", "members", 45),
    7: Step("searches", "searches", 25),
    8: Step("sweeps", "fractions", 90),
    9: Step("sweeps", "paper_row", 145),
}


def card_of(device: str) -> str:
    """Return the GPU's name without starting CUDA here: the steps are forked."""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    if device == "cpu" or not shutil.which(asked[0]):
        return device
    said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    return said.stdout.strip().partition("\n")[0] or device


def perform(step: Step, bench: Bench, log: Path) -> None:
    """Do a step in this process, the leader of a group of its own."""
    os.setpgrp()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        print(f"--- step {bench.step}: {step.function}", flush=True)
        faulthandler.dump_traceback_later(max(bench.left - 0.5, 0.1), file=file)
        try:
            import torch

            torch.set_num_threads(1)  # as a stage has
            module = importlib.import_module(f"device_steps.{step.module}")
            bench.attempt(step.function, lambda: getattr(module, step.function)(bench))
        except BaseException as error:
            bench.note(step.function, "FAILED", last_line(error))
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
            sys.stdout.flush()


def preload(modules: set[str]) -> None:
    """Import once what the steps need; one that cannot be imported fails in its own step."""
    # The first step of an optimizer imports torch._dynamo.
    for name in ["torch._dynamo", *sorted(f"device_steps.{module}" for module in modules)]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def starts_cuda() -> None:
    """Use the GPU, in a process of its own."""
    import torch

    torch.zeros(8, device="cuda").sum().item()


def processes(device: str) -> BaseContext:
    """Return how steps begin: forked, with all imports, if CUDA can then start; else spawned."""
    if device == "cuda":
        probe = FORK.Process(target=starts_cuda)
        probe.start()
        probe.join(60)
        if probe.exitcode != 0:
            probe.kill()
            print("CUDA does not start in a forked process: each step imports anew", flush=True)
            return multiprocessing.get_context("spawn")
    return FORK


def end(process: BaseProcess) -> None:
    """Kill what is left of a step's group."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.join(5)


def main() -> None:
    """Do the steps one after another, and print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of what is measured")
    parser.add_argument("--seconds", type=float, default=540, help="of all steps together")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), help="such as 0,1,4")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    over = time.monotonic() + options.seconds
    numbers = [int(number) for number in options.steps.split(",")]
    options.out.mkdir(parents=True, exist_ok=True)
    lines, log = options.out / "device.jsonl", options.out / "device.log"
    card = card_of(options.device)
    preload({STEPS[number].module for number in numbers})
    context = processes(options.device)
    for at, number in enumerate(numbers):
        step, begun = STEPS[number], time.monotonic()
        shares = sum(STEPS[n].share for n in numbers[at:])
        box = (over - begun) * step.share / shares
        bench = Bench(number, options.device, card, lines, begun + box - 1)
        process = context.Process(target=perform, args=(step, bench, log))
        process.start()
        process.join(box)
        if process.is_alive():
            bench.note(step.function, "KILLED", f"after its {box:.0f} s")
        elif process.exitcode:
            bench.note(step.function, "ENDED", f"with {process.exitcode}")
        end(process)
        bench.since = begun
        bench.note(SECONDS, step.function, round(time.monotonic() - begun, 1))
        (options.out / "table.txt").write_text(table(read(lines)) + "\n")
        print(table(read(lines)), flush=True)


if __name__ == "__main__":
    main()
