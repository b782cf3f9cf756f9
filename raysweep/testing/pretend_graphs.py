"""CUDA graphs on the device that is not there: a capture runs nothing, a replay what was captured.

The third part of `pretend_cuda`, which says what it is for. A graph here is the list of operations
of a block with their operands. As on CUDA, operands are places of memory, while numbers of the
host, be they Python's or tensors of no dimension on the CPU, stay what they were in the capture; a
generator goes on from replay to replay. What CUDA refuses during a capture is refused: whatever
makes the host wait, copies from the host and back, and draws of a generator that is not registered.
Memory that a graph gave free is not used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch

from raysweep.testing.pretend_tensors import (
    DEVICE,
    FREE,
    Pretended,
    counts,
    mapped,
    on_cuda,
    tensors_in,
    written_argument,
)

MEMORY = 64 << 30  # bytes of the device, all of them free


class Graph:
    """A `torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.generators: list[torch.Generator] = []
        self.launches: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        # Of each storage that is written to: what it held before the capture.
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.made: dict[int, torch.Tensor] = {}

    def register_generator_state(self, generator: torch.Generator) -> None:
        """Let replays draw from a generator of the device."""
        self.generators.append(generator)

    def launch(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one operation, so that the block gets tensors of the right form; remember it."""
        held = [mapped(_place_or_number, part) for part in (args, kwargs)]
        # A tensor may get another shape in place later; what is remembered keeps the one of now.
        given = [mapped(torch.Tensor.detach, part) for part in held]
        for tensor in self._written(func, *held):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.made:
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        out = func(*held[0], **held[1])
        written, _, view, reshapes = written_argument(func)
        made = [] if view or written is not None else list(tensors_in(out))
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(given)}
        made = [t.detach() for t in made if t.untyped_storage().data_ptr() not in known]
        self.made |= {tensor.untyped_storage().data_ptr(): tensor for tensor in made}
        if not view and not reshapes and func.overloadpacket.__name__ not in FREE:
            self.launches.append((func, *given, made))
        return out

    @staticmethod
    def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[position] if position < len(args) else kwargs.get(argument.name)
                yield from tensors_in(given)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Remember what is launched in the block; at its end nothing has happened."""
        seen = counts()
        if seen.capture is not None:
            seen.refuse(RuntimeError, "a capture inside a capture")
        draws, random = [g.get_state() for g in self.generators], torch.get_rng_state()
        seen.capture = self
        try:
            yield
        finally:
            seen.capture = None
            with _below():
                for storage, values in self.before.values():
                    storage.copy_(values)
                for tensor in self.made.values():  # memory that nothing was written to yet
                    if tensor.is_floating_point():
                        tensor.fill_(torch.nan)
            for generator, draw in zip(self.generators, draws, strict=True):
                generator.set_state(draw)
            torch.set_rng_state(random)

    def replay(self) -> None:
        """Run all operations again, on what the memory holds now."""
        counts().launches["graph"] += 1
        with _below():
            for func, args, kwargs, made in self.launches:
                out = func(*args, **kwargs)
                if made:
                    for place, value in zip(made, tensors_in(out), strict=True):
                        place.copy_(value)

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]


def _place_or_number(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.held if isinstance(tensor, Pretended) else tensor.clone()


@contextmanager
def _below() -> Iterator[None]:
    """Run operations as they are, below the modes and without gradients."""
    with no_dispatch(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


class Stream:
    """A `torch.cuda.Stream`, where everything happens in order."""

    def wait_stream(self, other: Stream) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Count a wait."""
        counts().wait("synchronize")

    def is_capturing(self) -> bool:
        """Return whether a graph is captured now."""
        return counts().capture is not None


def _graph(
    cuda_graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
) -> AbstractContextManager[None]:
    return cuda_graph.capturing()


def _grouped(tensors: Any, with_indices: bool = False) -> dict[tuple[Any, Any], Any]:
    """Group lists of tensors by the device that the first of each group says it is on."""
    groups = _real_grouped(tensors, with_indices)
    there = {key: on_cuda(lists[0][0]) for key, (lists, _) in groups.items()}
    return {(DEVICE if there[key] else key[0], key[1]): of for key, of in groups.items()}


_real_grouped = torch.optim.Optimizer._group_tensors_by_device_and_dtype


def _set_rng_state(state: torch.Tensor, device: Any = None) -> None:
    torch.set_rng_state(state)


# The device's default generator is that of the CPU, on which its tensors lie.
PATCHES: tuple[tuple[Any, str, Any], ...] = (
    (torch.cuda, "is_available", lambda: True),
    (torch.cuda, "device_count", lambda: 1),
    (torch.cuda, "current_device", lambda: DEVICE.index),
    (torch.cuda, "CUDAGraph", Graph),
    (torch.cuda, "graph", _graph),
    (torch.cuda, "graph_pool_handle", lambda: (0, 0)),
    (torch.cuda, "is_current_stream_capturing", lambda: counts().capture is not None),
    (torch.cuda, "Stream", lambda *_, **__: Stream()),
    (torch.cuda, "current_stream", lambda device=None: Stream()),
    (torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")),
    (torch.accelerator, "current_stream", lambda device=None: Stream()),
    (torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_grouped)),
    (torch.cuda, "stream", lambda stream: nullcontext()),
    (torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state()),
    (torch.cuda, "set_rng_state", _set_rng_state),
    (torch.cuda, "mem_get_info", lambda device=None: (MEMORY, MEMORY)),
    (torch.cuda, "memory_allocated", lambda device=None: 0),
    (torch.cuda, "memory_reserved", lambda device=None: 0),
    (torch.cuda, "get_per_process_memory_fraction", lambda device=None: 1.0),
)
