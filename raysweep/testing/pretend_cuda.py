"""A CUDA device that is not there: the CPU's values under CUDA's rules.

Inside `pretended_cuda()` code that names the device "cuda" runs on any machine. A tensor "on CUDA"
wraps a tensor of the CPU and computes on it, so that results equal those of the CPU bit for bit,
unless the code takes another way for another device. What CUDA refuses is refused, by torch's kinds
of exception: an operand of at least one dimension on another device (only an index of a CUDA
tensor may be on the CPU), a generator of another device, `.numpy()` and `numpy.asarray`, and a
second device.

There are no graphs, streams, events and no memory to ask about: `torch.cuda.is_available()` and
`torch.cuda.is_initialized()` are False here, whatever the machine has. Code that would capture a
graph must ask `torch.cuda.is_available()`, and run step by step where it is False. In
`pretended_cuda(graphs=True)` it is True, and graphs are captured and replayed (`pretend_graphs`).

What makes the host wait for the device is counted with its place in the code, and so are launches.
Not to be seen here: how CUDA's kernels round, their order of sums, dtypes they lack, memory, speed.

Compare with the CPU inside a block too: where a mode is active, autograd takes other formulas for
views that were changed in place, and these round otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

from raysweep.testing.pretend_graphs import PATCHES
from raysweep.testing.pretend_tensors import (
    DEVICE,
    Counts,
    Kernels,
    Pretended,
    active,
    counts,
    downloaded,
    is_pinned,
    mapped,
    on_cuda,
    unwrapped,
    uploaded,
)

__all__ = ["Counts", "pretended_cuda"]
_RealGenerator = torch.Generator


class _Generator(_RealGenerator):
    """A generator that says on which device it is, and draws on the CPU."""

    _there: torch.device

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = _RealGenerator.__new__(cls, "cpu")  # type: ignore[call-arg]
        made._there = torch.device("cpu") if _kind(device) == "cpu" else DEVICE
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._there


def _kind(device: Any) -> str | None:
    """Return `cpu` or `cuda`, or None where no device is named."""
    if device is None:
        return None
    named = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if named.type == "cuda" and named.index not in (None, DEVICE.index):
        counts().refuse(RuntimeError, f"{named}: there is one device, {DEVICE}")
    return named.type


class _Calls(TorchFunctionMode):
    """Reads the devices that calls name, before torch does."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _SPECIAL:
            return _SPECIAL[func](*args, **kwargs)
        if func is torch.Tensor.backward:  # hooks and backward formulas may name devices too
            with self:
                return _backward(*args, **kwargs)
        there = on_cuda(args) or on_cuda(list(kwargs.values()))
        kind = _kind(kwargs.get("device")) or ("cuda" if there else "cpu")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != kind:
            where = f"a generator on {generator.device} draws for a tensor on {kind}"
            self.kernels.seen.refuse(RuntimeError, f"{func.__name__}: {where}")
        capture = self.kernels.seen.capture
        if capture is not None and generator is not None and generator not in capture.generators:
            where = "a generator that is not registered with the graph"
            self.kernels.seen.refuse(RuntimeError, f"{func.__name__}: {where}")
        placed = kwargs.get("device") is not None
        if placed:
            kwargs["device"] = "cpu"
            if kind == "cpu":
                args, kwargs = unwrapped(args), unwrapped(kwargs)
        before, self.kernels.inside = self.kernels.inside, kind == "cuda"
        try:
            out = func(*args, **kwargs)
        finally:
            self.kernels.inside = before
        moved = placed and kind == "cuda" and isinstance(out, torch.Tensor) and not on_cuda(out)
        return Pretended(out.detach()) if moved else out


def _backward(tensor: torch.Tensor, gradient: Any = None, *args: Any, **kwargs: Any) -> None:
    torch.autograd.backward(tensor, gradient, *args, **kwargs)


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    like = kwargs.pop("other", args[0] if args else None)
    if isinstance(like, torch.Tensor):
        device: Any = like.device
        dtype, later, memory_format = like.dtype, False, kwargs.get("memory_format")
    else:
        device, dtype, later, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    kind = _kind(device)
    if kind == "cuda":
        tensor = uploaded(tensor, later=later)
    elif kind == "cpu":
        tensor = downloaded(tensor, later=later)
    rest: dict[str, Any] = {} if memory_format is None else {"memory_format": memory_format}
    copy = bool(kwargs.get("copy", False))
    return torch.Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=copy, **rest)


def _pin(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    if on_cuda(tensor):
        counts().refuse(RuntimeError, "only tensors on the CPU can be pinned")
    copied = tensor.clone()
    counts().pinned.add(copied.untyped_storage().data_ptr())
    return copied


def _tensor(data: Any, *, dtype: Any = None, device: Any = None, **more: Any) -> torch.Tensor:
    """Do what `torch.tensor` does: a list of numbers on CUDA becomes a tensor on the CPU."""
    if isinstance(data, torch.Tensor):
        made = _to(data, device or data.device, dtype or data.dtype).detach().clone()
    else:
        made = torch.tensor(mapped(torch.Tensor.item, data), dtype=dtype)
        made = uploaded(made) if _kind(device) == "cuda" else made
    return made.requires_grad_() if more.get("requires_grad") else made


def _as_tensor(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
    if isinstance(data, torch.Tensor):
        return _to(data, device or data.device, dtype or data.dtype)
    if not on_cuda(data):  # an array is shared, not copied
        made = torch.as_tensor(data, dtype=dtype)
        return uploaded(made) if _kind(device) == "cuda" else made
    return _tensor(data, dtype=dtype, device=device)


def _new_tensor(
    tensor: torch.Tensor, data: Any, *, dtype: Any = None, device: Any = None, **more: Any
) -> torch.Tensor:
    return _tensor(data, dtype=dtype or tensor.dtype, device=device or tensor.device, **more)


_get_device = torch.Tensor.device.__get__
_SPECIAL: dict[Any, Any] = {
    torch.Tensor.to: _to,
    torch.Tensor.type_as: lambda tensor, other: _to(tensor, other),
    torch.Tensor.cuda: lambda tensor, *_, **__: uploaded(tensor),
    torch.Tensor.cpu: lambda tensor, *_, **__: downloaded(tensor),
    torch.Tensor.pin_memory: _pin,
    torch.Tensor.is_pinned: lambda tensor, *_, **__: is_pinned(tensor),
    torch.Tensor.new_tensor: _new_tensor,
    # Inside `vmap` a tensor of the device is wrapped once more.
    _get_device: lambda tensor, *_: DEVICE if on_cuda(tensor) else _get_device(tensor),
    torch.tensor: _tensor,
    torch.as_tensor: _as_tensor,
    torch.asarray: _as_tensor,
}


def _autocast(made: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
    _real_autocast(made, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)


_real_autocast = torch.autocast.__init__
_is_enabled, _dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
_PATCHES: tuple[tuple[Any, str, Any], ...] = (
    (torch, "Generator", _Generator),
    (torch.autocast, "__init__", _autocast),
    (torch, "is_autocast_enabled", lambda device="cuda": _is_enabled("cpu")),
    (torch, "get_autocast_dtype", lambda device="cuda": _dtype("cpu")),
    (torch.cuda, "is_available", lambda: False),
    (torch.cuda, "is_initialized", lambda: False),
    (torch.cuda, "device_count", lambda: 0),
    (torch.cuda, "synchronize", lambda device=None: counts().wait("synchronize")),
)


@contextmanager
def pretended_cuda(*, graphs: bool = False) -> Iterator[Counts]:
    """Pretend inside the block that there is one CUDA device; give what is counted there.

    Networks, tensors and generators are to be put on the device inside the block, and what is to be
    kept must leave it by `.cpu()` before the end. Blocks cannot be nested.

    Args:
        graphs: whether `torch.cuda.is_available()` is True, and graphs can be captured.

    Raises:
        RuntimeError: where CUDA would; also at the end, if the code caught such an error.
        TypeError: for what asks a CUDA tensor for a NumPy array.
    """
    if active:
        raise RuntimeError("pretended_cuda() is active already; blocks cannot be nested")
    replaces = torch.__future__.get_overwrite_module_params_on_conversion()
    seen = Counts()
    with ExitStack() as stack:
        for owner, name, pretended in (*_PATCHES, *(PATCHES if graphs else ())):
            stack.enter_context(patch.object(owner, name, pretended))
        # A parameter of the CPU cannot become one of the device in place.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, replaces)
        active.append(seen)
        stack.callback(active.clear)
        stack.enter_context(kernels := Kernels(seen))
        stack.enter_context(_Calls(kernels))
        yield seen
    if seen.refusals:
        raise RuntimeError("the code went on after CUDA refused: " + "; ".join(seen.refusals))
