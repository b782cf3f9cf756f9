"""Work of the device that is done again and again: captured once as a CUDA graph, and replayed.

The work of a small network is some hundred short kernels, which the host needs longer to launch
than a GPU to run. A replay launches all of them at once, with the same draws, to the same bytes.
Captured work computes on the device alone: it waits for no value, draws from the generators that
are named, keeps what it remembers in tensors, and changes these in place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from raysweep.methods.context import Context

FEWEST_STEPS = 100  # a capture costs about as much time as 100 eager steps
WARM_UP = 3
log = logging.getLogger(__name__)


def graphs(device: str) -> bool:
    """Return whether work on a device can be captured as CUDA graphs."""
    return device == "cuda" and torch.cuda.is_available()


def is_captured(device: str, times: int, *, captured: bool) -> bool:
    """Return whether work is to be captured.

    Args:
        device: where it computes.
        times: how often it is done.
        captured: whether it may be captured where that is possible.
    """
    return captured and graphs(device) and times >= FEWEST_STEPS


class EarlierState:
    """The state that some work changes, as it was: tensors, an optimizer's state, draws."""

    def __init__(
        self,
        tensors: Iterable[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        noises: Sequence[torch.Generator] = (),
    ) -> None:
        """Copy everything.

        Args:
            tensors: what the work changes, the optimizer's parameters apart.
            optimizer: of the work.
            noises: the generators that the work draws from, the default one apart.
        """
        self.optimizer, self.noises = optimizer, noises
        own = [p for group in optimizer.param_groups for p in group["params"]]
        self.tensors = [*own, *tensors]
        self.values = [tensor.detach().clone() for tensor in self.tensors]
        self.states = {id(t): t.clone() for t in self._states()}
        self.draws = [noise.get_state() for noise in self.noises]
        self.random = torch.cuda.get_rng_state()

    def _states(self) -> Iterable[torch.Tensor]:
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back in place; an optimizer's state that is new since is all zeros."""
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)
        for tensor in self._states():
            before = self.states.get(id(tensor))
            if before is None:
                tensor.zero_()
            else:
                tensor.copy_(before)
        for noise, draw in zip(self.noises, self.draws, strict=True):
            noise.set_state(draw)
        torch.cuda.set_rng_state(self.random)


class Graph:
    """Some work, captured.

    Attributes:
        out: what the work returned; a replay writes new values into its tensors.
    """

    def __init__(self, work: Callable[[], Any], before: EarlierState, pool: Any = None) -> None:
        """Warm the libraries up by the work, and capture it; in the end nothing has changed.

        Args:
            work: takes nothing, and reads what changes from tensors that stay where they are.
            before: made now.
            pool: memory that several graphs share.
        """
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    work()
            torch.cuda.current_stream().wait_stream(side)
            before.restore()
            self._graph = torch.cuda.CUDAGraph()
            for noise in before.noises:
                self._graph.register_generator_state(noise)
            before.optimizer.zero_grad(set_to_none=True)
            # Another thread of this process may use the device meanwhile.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self.out = work()
        finally:
            before.restore()

    def replay(self) -> None:
        """Do the work once."""
        self._graph.replay()


class LoopStep:
    """The work of a loop, done once a call: eagerly, or from a graph where one can be captured."""

    def __init__(
        self,
        work: Callable[[], None],
        ctx: Context,
        times: int,
        *,
        optimizer: torch.optim.Optimizer,
        memory: Sequence[torch.Tensor] = (),
    ) -> None:
        """Capture nothing yet.

        Args:
            work: one step, which sets the optimizer's gradients to None before it makes new ones.
            ctx: gives the device.
            times: how often it will be done.
            optimizer: of the work; its learning rate stays the same.
            memory: what the work changes, the optimizer's parameters apart.
        """
        self._work, self._optimizer, self._memory = work, optimizer, memory
        self._captures = is_captured(ctx.device, times, captured=ctx.captured)
        self._graph: Graph | None = None

    def __call__(self) -> None:
        """Do the work once."""
        if self._captures and self._graph is None:
            try:
                self._graph = Graph(self._work, EarlierState(self._memory, self._optimizer))
            except RuntimeError as error:
                self._captures = False
                log.warning("a step is not captured, it runs eagerly: %s", error)
        if self._graph is None:
            self._work()
        else:
            self._graph.replay()
