"""Tensors of a CUDA device that is not there, and what is counted of them.

The other half of `pretend_cuda`, which says what it is for: here are wrappers of CPU tensors, the
operations on them, what these refuse, and the counts.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)
# Operations whose result has a size, or is a number, that the host must be told.
WAITING = {
    "_linalg_check_errors", "_local_scalar_dense", "_unique2", "bincount", "equal",
    "masked_select", "nonzero", "unique_consecutive", "unique_dim",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"copy_", "_to_copy"}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# A wait is charged to the innermost function outside of these packages and of these two modules.
LIBRARIES = {"contextlib", "copy", "functools", "numpy", "torch", "torchvision"}


class Wait(NamedTuple):
    """Why the host waited, and in which function and line."""

    kind: str
    place: str


@dataclass
class Counts:
    """The counts of one `pretended_cuda()`.

    Attributes:
        waits: how often the host waited, by kind and place: `upload` and `download` of a tensor,
            `synchronize`, `mask` (a boolean index), or the operation, such as `nonzero` and
            `_local_scalar_dense` (`.item()`, `float()`, `bool()`, `if tensor:`).
        launches: how often each operation that is no view ran on the device.
        copied: bytes, by `upload` and `download`.
        refusals: what CUDA would have refused, in order.
        pinned: where the memory is that `pin_memory` gave: copies from it need not be waited for.
        capture: the graph that is captured now, if any.
    """

    waits: Counter[Wait] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    copied: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    capture: Any = None

    def wait(self, kind: str) -> None:
        """Count one wait at the place that is running."""
        if self.capture is not None:
            self.refuse(RuntimeError, f"{kind}: not permitted while a graph is captured")
        self.waits[Wait(kind, _place())] += 1

    def copy(self, kind: str, tensor: torch.Tensor, *, waits: bool = True) -> None:
        """Count the copy of a whole tensor to the device or back."""
        self.copied[kind] += tensor.numel() * tensor.element_size()
        if waits or self.capture is not None:
            self.wait(kind)

    def refuse(self, kind: type[Exception], text: str) -> NoReturn:
        """Raise what CUDA would raise."""
        self.refusals.append(f"{_place()}: {text}")
        raise kind(f"pretended CUDA: {text}")

    def kinds(self) -> Counter[str]:
        """Return the number of times that the host waited, by kind."""
        kinds: Counter[str] = Counter()
        for wait, times in self.waits.items():
            kinds[wait.kind] += times
        return kinds

    def table(self, top: int = 40) -> str:
        """Return the most frequent waits, one a line."""
        return "\n".join(f"{n:8d} {w.kind:20} {w.place}" for w, n in self.waits.most_common(top))


active: list[Counts] = []  # of the block that is running, if any


def counts() -> Counts:
    """Return the counts of the block that is running."""
    if not active:
        raise RuntimeError("a tensor of the pretended CUDA device was used after its end")
    return active[-1]


def _place() -> str:
    own = {__name__, __name__.replace("pretend_tensors", "pretend_cuda")}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "?")
        if module not in own and module.partition(".")[0] not in LIBRARIES:
            return f"{module}.{frame.f_code.co_qualname}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class Pretended(torch.Tensor):
    """A tensor that says it is on CUDA, and holds its values on the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Pretended:
        """Wrap a tensor of the CPU, without a copy."""
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, device=held.device,
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        counts()  # inside a block `Kernels` comes first
        raise NotImplementedError(f"{func} left the modes of pretended_cuda()")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        counts().copy("download", self)
        return f"{self.held!r} on {DEVICE}"

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = Pretended(self.held.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        else:
            copied.requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied

    def get_device(self) -> int:
        """Return the number of the device."""
        return DEVICE.index

    def data_ptr(self) -> int:
        """Return the address of the values."""
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory of the values."""
        return self.held.untyped_storage()

    def numpy(self, **_: Any) -> NoReturn:
        """Refuse."""
        counts().refuse(TypeError, "can't convert a cuda:0 tensor to numpy; copy it by .cpu()")

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        """Return a copy on the CPU."""
        return downloaded(self)

    def tolist(self) -> Any:
        """Return the values."""
        counts().copy("download", self)
        return self.held.tolist()


class _Upload(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return Pretended(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return downloaded(gradient)


class _Download(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any) -> torch.Tensor:
        copied: torch.Tensor = tensor.held.detach().clone()
        return copied

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return uploaded(gradient)


def uploaded(tensor: torch.Tensor, *, later: bool = False) -> torch.Tensor:
    """Return a tensor on the device, itself if it is there; `later`: without blocking."""
    if on_cuda(tensor):
        return tensor
    counts().copy("upload", tensor, waits=not (later and is_pinned(tensor)))
    there: torch.Tensor = _Upload.apply(tensor)
    return there


def downloaded(tensor: torch.Tensor, *, later: bool = False) -> torch.Tensor:
    """Return a tensor on the CPU, itself if it is there; `later`: into memory that torch pins."""
    if not isinstance(tensor, Pretended):
        return tensor
    counts().copy("download", tensor, waits=not later)
    back: torch.Tensor = _Download.apply(tensor)
    return back


def is_pinned(tensor: torch.Tensor) -> bool:
    """Return whether the memory of a tensor came from `pin_memory`."""
    return not on_cuda(tensor) and tensor.untyped_storage().data_ptr() in counts().pinned


def on_cuda(value: Any) -> bool:
    """Return whether a value is, or holds, a tensor of the device; also inside `vmap`."""
    if isinstance(value, Pretended):
        return True
    if isinstance(value, list | tuple):
        return any(on_cuda(part) for part in value)
    functorch = torch._C._functorch
    if isinstance(value, torch.Tensor) and functorch.is_functorch_wrapped_tensor(value):
        return on_cuda(functorch.get_unwrapped(value))
    return False


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a value, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Return a value with all of its tensors changed; many times faster than torch's pytree."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([mapped(change, part) for part in value])
    if isinstance(value, dict):
        return {name: mapped(change, part) for name, part in value.items()}
    return value


unwrapped = functools.partial(mapped, lambda t: t.held if isinstance(t, Pretended) else t)
_wrapped = functools.partial(mapped, lambda t: t if isinstance(t, Pretended) else Pretended(t))


@functools.cache
def written_argument(func: Any) -> tuple[str | None, int, bool, bool]:
    """Return the argument that an operation writes to and returns, and whether it makes a view.

    That is: its name, its position, whether the result is a view, whether its shape changes.
    """
    returns = [r.alias_info for r in func._schema.returns]
    view = any(alias is not None and not alias.is_write for alias in returns)
    if len(returns) == 1 and returns[0] is not None and returns[0].is_write:
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                reshapes = torch.Tag.inplace_view in func.tags
                return argument.name, position, view, reshapes
    return None, 0, view, False


def _check(seen: Counts, name: str, args: Any, plain: list[torch.Tensor]) -> None:
    """Refuse operands on the CPU, except those that CUDA takes; count the waits for these."""
    if name in COPIES:
        if plain:
            kind = "upload" if isinstance(args[0], Pretended) else "download"
            later = is_pinned(plain[0]) and any(flag is True for flag in args[2:])
            seen.copy(kind, args[1], waits=not later)
        return
    allowed: list[torch.Tensor] = []
    if name in INDEXING:
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if isinstance(args[0], Pretended):
            allowed = [index for index in indices if not isinstance(index, Pretended)]
        for index in allowed:
            seen.copy("upload", index)
        filled = name != "index" and args[2].numel() == 1 and not isinstance(args[2], Pretended)
        if not filled and any(index.dtype == torch.bool for index in indices):
            seen.wait("mask")
    for operand in plain:
        if operand.ndim and not any(operand is index for index in allowed):
            size = f"{tuple(operand.shape)} {operand.dtype}"
            seen.refuse(RuntimeError, f"{name}: operands on cuda:0 and on the CPU: {size}")


def _launched(seen: Counts, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if seen.capture is not None:
        return seen.capture.launch(func, args, kwargs)
    return func(*unwrapped(args), **unwrapped(kwargs))


def _run(seen: Counts, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation that has an operand on the device."""
    name = func.overloadpacket.__name__
    operands = tensors_in((args, kwargs))
    _check(seen, name, args, [t for t in operands if not isinstance(t, Pretended)])
    if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        seen.wait(name)
    written, position, view, reshapes = written_argument(func)
    if not view and name not in FREE | WAITING:
        seen.launches[name] += 1
    out = _launched(seen, func, args, kwargs)
    if reshapes:
        with no_dispatch():  # shape and strides of the wrapper follow
            func(*args, **kwargs)
    if written is None:
        return _wrapped(out)
    return args[position] if position < len(args) else kwargs[written]


class Kernels(TorchDispatchMode):
    """Runs every operation; what one makes for its own use is where its operands are.

    Attributes:
        seen: the counts of the block.
        inside: whether a call is running whose operands, or whose result, are on the device.
    """

    def __init__(self, seen: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen, self.inside = seen, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = list(tensors_in((args, kwargs)))
        if any(isinstance(t, Pretended) for t in operands):
            return _run(self.seen, func, args, kwargs)
        if operands or not self.inside:
            return func(*args, **kwargs)
        out = _launched(self.seen, func, args, kwargs)
        if func.overloadpacket.__name__ not in FREE:
            self.seen.launches[func.overloadpacket.__name__] += 1
        return _wrapped(out)
