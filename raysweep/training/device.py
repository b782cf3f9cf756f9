"""The device of a stage: claimed before it runs, cleaned after it, its errors classified.

Float32 means float32: TF32, which keeps 10 bits of a product's factors, is off in convolutions as
it is in matrix products. cuDNN chooses among its deterministic algorithms alone, which cost nothing
that could be measured (benchmarks/device.py, docs/results/device.md).
"""

from __future__ import annotations

import gc
import os
import socket

import torch

from raysweep.errors import DeviceError

CONTEXT_BYTES = 600 << 20  # of a CUDA context and its libraries, outside torch's own memory


def hide_gpus() -> None:
    """Let this process see no GPU; call it before CUDA is first used.

    A process that asks for GPUs by mistake would open a context of half a gigabyte on each.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def claim(gpus: float) -> str:
    """Return the device that a stage computes on, `cpu` or `cuda`, and hold it to its share.

    Args:
        gpus: the share of GPUs that the stage holds; 0 is the CPU.

    Raises:
        DeviceError: if a share of a GPU is held and CUDA cannot be used in this process.
    """
    if gpus <= 0:
        return "cpu"
    if reason := refusal(gpus):
        raise DeviceError(reason)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.cuda.set_per_process_memory_fraction(memory_share(gpus, _total_bytes()))
    return "cuda"


def refusal(gpus: float) -> str:
    """Return the reason why this host can do no GPU work, or "" if it can.

    Args:
        gpus: the share of GPUs that a stage holds; nothing is refused to a stage of the CPU.
    """
    if gpus <= 0 or torch.cuda.is_available():
        return ""
    return (
        f"host {socket.gethostname()} is given no GPU work: a stage holds {gpus:g} GPUs and CUDA "
        f"cannot be used there ({cuda_state()}); install a torch build that fits the driver, or "
        f"launch with resources.gpu.gpu: 0. `raysweep doctor` on that host tries one kernel"
    )


def memory_share(gpus: float, total: int) -> float:
    """Return the share of a GPU's `total` bytes that torch may allocate for a stage, in (0, 1].

    A stage that shares its GPU leaves room for its own CUDA context, so that the greedy stage
    fails and not its neighbor.
    """
    if gpus >= 1:
        return 1.0
    return max(gpus - CONTEXT_BYTES / total, gpus / 2)


def _total_bytes() -> int:
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def cuda_state() -> str:
    """Return torch's build, the CUDA version that it wants, and the driver's message, as text."""
    built = torch.version.cuda
    if built is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
        answer = "no GPU is visible"
    except (RuntimeError, AssertionError) as error:
        answer = " ".join(str(error).split())[:200]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = "" if visible is None else f", CUDA_VISIBLE_DEVICES is {visible!r}"
    return f"torch {torch.__version__}, built for CUDA {built}: {answer}{seen}"


def try_kernel() -> str:
    """Run one small kernel on each visible GPU; return the GPUs' names, or why there are none."""
    if not torch.cuda.is_available():
        return f"no GPU ({cuda_state()})"
    names = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            total = torch.ones(1000, device=f"cuda:{index}").sum().item()
            names.append(name if total == 1000 else f"{name}: a sum of 1,000 ones gave {total}")
        except RuntimeError as error:
            names.append(f"{name}: a kernel fails ({' '.join(str(error).split())[:200]})")
    return ", ".join(names)


def held_bytes() -> int:
    """Return the bytes that this process still holds on the GPU after everything is let go of."""
    if not torch.cuda.is_initialized():
        return 0
    gc.collect()  # Tensors in reference cycles are no leak.
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated())


class Leaks:
    """A check for GPU memory that a worker still holds between stages."""

    ALLOWED = 64 << 20

    def __init__(self) -> None:
        self._clean: int | None = None

    def exceeded(self, held: int) -> bool:
        """Return whether `held` bytes exceed the least bytes held so far by more than `ALLOWED`."""
        self._clean = held if self._clean is None else min(self._clean, held)
        return held > self._clean + self.ALLOWED


def passing(error: BaseException) -> bool:
    """Return whether an error is the device's and may not come again: memory, or a lost context."""
    if isinstance(error, DeviceError | torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and "_STATUS_ALLOC_FAILED" in str(error)


def broken() -> bool:
    """Return whether CUDA is lost to this process, as it is after a device-side assert."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
