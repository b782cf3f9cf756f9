"""One step of a training: batches, loss, gradients, weights; eager, or captured and replayed.

On a GPU the whole step is captured once as a CUDA graph for each pair of batch sizes (`graph`) and
replayed from then on, with the same draws, to the same bytes as the eager step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from raysweep.methods.recipe import Recipe
from raysweep.training.graph import EarlierState, Graph, graphs, is_captured, log
from raysweep.training.streams import Batch, Source

Objective = Callable[[nn.Module, Mapping[str, Batch]], torch.Tensor]
Rows = Mapping[str, torch.Tensor]
Given = TypeVar("Given", bound=Callable[..., torch.Tensor])


def capturable(objective: Given) -> Given:
    """Mark an objective that a CUDA graph may replay; returns it.

    Such an objective works by operations on the device alone: it waits for no value. What it keeps
    between two calls are tensors, changed in place, and generators of the device that it draws
    from; its attribute `memory` lists all of them.
    """
    objective.capturable = True  # type: ignore[attr-defined]
    return objective


def resumable(given: Any, *memory: torch.Tensor | torch.Generator) -> Any:
    """Mark an objective, or a hook after epochs, whose training may go on after a kill; returns it.

    Between two calls it remembers nothing but `memory`, and changes that in place.
    """
    given.memory = memory
    return given


def autocast(recipe: Recipe, device: str) -> torch.autocast:
    """Return the autocast region of a recipe's resolved precision."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16")


class Step(Protocol):
    """Trains a model for one step on the rows of each stream; returns the loss, on the device."""

    def __call__(self, rows: Rows, rate: float) -> torch.Tensor:
        """Take one step at a learning rate."""

    def settle(self) -> None:
        """Bring the counters on the host up to date; called at the end of each epoch."""


class EagerStep:
    """Launches every operation of a step by itself."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sources: Mapping[str, Source],
        objective: Objective,
        recipe: Recipe,
        device: str,
    ) -> None:
        self.model, self.optimizer, self.sources = model, optimizer, sources
        self.objective, self.recipe, self.device = objective, recipe, device
        self._rounded = graphs(device)

    def __call__(self, rows: Rows, rate: float) -> torch.Tensor:
        """Take one step at a learning rate."""
        if self._rounded:
            rate = float(np.float32(rate))  # as a captured step reads it
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return self.taken(rows)

    def taken(self, rows: Rows) -> torch.Tensor:
        """Take one step at the learning rate that is set."""
        batches = {name: self.sources[name].batch(of) for name, of in rows.items()}
        with autocast(self.recipe, self.device):
            loss = self.objective(self.model, batches)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def settle(self) -> None:
        """Do nothing: an eager step counts on the host at once."""


class _Replayed:
    """A captured step, with the tensors of its rows."""

    def __init__(self, step: EagerStep, rows: Rows, pool: Any) -> None:
        self.rows = {name: of.clone() for name, of in rows.items()}
        self.replays = 0
        counters = _host_counters(step.model)

        def work() -> torch.Tensor:
            before = [counter.clone() for counter in counters]
            loss = step.taken(self.rows)
            self.counted = [c - b for c, b in zip(counters, before, strict=True)]
            return loss

        model, memory = step.model, getattr(step.objective, "memory", ())
        own = [thing for thing in memory if isinstance(thing, torch.Generator)]
        tensors = [thing for thing in memory if isinstance(thing, torch.Tensor)]
        noises = [*(source.noise for source in step.sources.values()), *own]
        before = EarlierState(
            [*model.parameters(), *model.buffers(), *tensors], step.optimizer, noises
        )
        self.graph = Graph(work, before, pool)

    def replay(self, rows: Rows) -> torch.Tensor:
        for name, of in rows.items():
            self.rows[name].copy_(of)
        self.graph.replay()
        self.replays += 1
        loss: torch.Tensor = self.graph.out
        return loss.clone()


class CapturedStep:
    """Replays a step from CUDA graphs, one for each combination of streams and batch sizes.

    A step that cannot be captured runs eagerly, from the state in which the attempt began.
    """

    def __init__(self, eager: EagerStep) -> None:
        self.eager = eager
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: dict[tuple[tuple[str, int], ...], _Replayed] = {}
        self.failed = False
        for group in eager.optimizer.param_groups:
            group["lr"] = torch.tensor(0.0, device=eager.device)
            if "capturable" in group:
                group["capturable"] = True

    def __call__(self, rows: Rows, rate: float) -> torch.Tensor:
        """Take one step at a learning rate."""
        if self.failed:
            return self.eager(rows, rate)
        for group in self.eager.optimizer.param_groups:
            group["lr"].fill_(rate)
        sizes = tuple((name, len(of)) for name, of in rows.items())
        if sizes not in self.graphs:
            try:
                self.graphs[sizes] = _Replayed(self.eager, rows, self.pool)
            except RuntimeError as error:
                self.failed = True
                log.warning("a step is not captured, it runs eagerly: %s", error)
                return self.eager(rows, rate)
        return self.graphs[sizes].replay(rows)

    def settle(self) -> None:
        """Add the replays since the last call to the counters on the host."""
        counters = _host_counters(self.eager.model)
        for graph in self.graphs.values():
            for counter, counted in zip(counters, graph.counted, strict=True):
                counter += graph.replays * counted
            graph.replays = 0


def _host_counters(model: nn.Module) -> list[torch.Tensor]:
    """Return the batch counters that a model's batch normalizations keep on the host."""
    counters = [
        getattr(layer, "num_batches_tracked", None)
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase)
    ]
    return [counter for counter in counters if counter is not None and counter.is_cpu]


def count_on(model: nn.Module, device: str) -> None:
    """Move the batch counters of a model's batch normalizations to a device, in place.

    On the host, counting launches nothing.
    """
    for layer in model.modules():
        counter = getattr(layer, "num_batches_tracked", None)
        # With no momentum, the running statistics are computed with the counter.
        if counter is not None and getattr(layer, "momentum", None) is not None:
            layer.num_batches_tracked = counter.to(device)


def step_of(eager: EagerStep, steps: int, *, captured: bool) -> Step:
    """Return the step, eager or captured, that suits a training of `steps` steps.

    Args:
        eager: the step as it is.
        steps: number of times that it will be taken.
        captured: whether it may be captured where that is possible.
    """
    if is_captured(eager.device, steps, captured=captured) and _is_capturable(eager):
        return CapturedStep(eager)
    return eager


def hooked(model: nn.Module) -> bool:
    """Return whether a layer of a model calls something that may remember what it sees."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for module in model.modules() for name in hooks)


def _is_capturable(eager: EagerStep) -> bool:
    return getattr(eager.objective, "capturable", False) and not hooked(eager.model)
