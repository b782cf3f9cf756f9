"""The whole state of a training between two steps, as arrays and back.

On a CPU, resuming changes no byte.

The state is all that later steps depend on: weights and buffers, the optimizer's state, the
generators of order, augmentation and dropout, the batches of a pass that is not over, the losses of
an epoch that is not over, and what the objective and the hook after epochs remember.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from raysweep.methods.context import Arrays, Context
from raysweep.training import weights
from raysweep.training.step import hooked
from raysweep.training.streams import Source

State = dict[str, torch.Tensor]
MARKS = ("state_dict", "memory", "capturable")


def is_resumable(model: nn.Module, *given: object) -> bool:
    """Return whether an objective, and what is called after epochs, say all that they remember.

    They say so by `state_dict` and `load_state_dict`, as modules of torch have them, or by the
    marks `training.resumable` and `training.capturable`; what a model's hooks remember is unknown.
    """
    told = [one is None or any(hasattr(one, mark) for mark in MARKS) for one in given]
    return all(told) and not hooked(model)


class Steps:
    """Counts the steps of a loop that goes on after a kill.

    Attributes:
        first: the step that this process begins with; above 0 where the loop goes on.
        taken: the number of steps that are over.
    """

    def __init__(self, ctx: Context, **things: object) -> None:
        """Give the things that the steps change the state back that they had before the kill.

        Args:
            ctx: of this loop alone: `ctx.part("search")`.
            things: name → tensor, generator, optimizer, or what has a `state_dict`; a tensor is
                changed in place.
        """
        self._ctx, self._things = ctx, things
        tensors = weights.unpacked(ctx.restored, "")
        self.first = self.taken = int(tensors["taken"]) if tensors else 0
        if tensors:
            _put_back(things, tensors)

    def take(self) -> None:
        """Tell that a step is over."""
        self.taken += 1
        self._ctx.checkpoint(self._captured)

    def end(self) -> None:
        """Tell that the loop is over."""
        self._ctx.checkpoint(self._captured, over=True)

    def _captured(self) -> Arrays:
        return weights.packed({"taken": torch.tensor(self.taken)} | _states(self._things), "")


class Training:
    """The state of one training.

    Attributes:
        means: the mean loss of each epoch that is over.
        losses: the loss of each step since then, on the device.
        over: whether nothing is left to do.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sources: Mapping[str, Source],
        beside: Mapping[str, object],
        *,
        shared: bool,
    ) -> None:
        """Hold on to what the steps change.

        Args:
            model: the network in training.
            optimizer: of its parameters, or of other tensors too.
            sources: name → stream of batches.
            beside: name → objective or hook that is resumable.
            shared: whether the optimizer is used after this training.
        """
        self.sources = sources
        self.means: list[float] = []
        self.losses: list[torch.Tensor] = []
        self.over = False
        known = {id(p) for p in model.parameters()}
        others = [p for p in _parameters(optimizer) if id(p) not in known]
        self._things = {"model": model, **beside, **{f"other {n}": p for n, p in enumerate(others)}}
        self._steps: dict[str, object] = {"optimizer": optimizer}
        if shared:
            self._things |= self._steps
        for name, source in sources.items():
            self._steps |= {f"order {name}": source.order, f"noise {name}": source.noise}

    def captured(self) -> Arrays:
        """Return the state; of a training that is over, all that a later one can meet."""
        tensors: State = {
            "means": torch.tensor(self.means, dtype=torch.float64),
            "over": torch.tensor(self.over),
        }
        if self.over:
            return weights.packed(tensors | _states(self._things), "")
        tensors["losses"] = torch.zeros(0)
        if self.losses:
            tensors["losses"] = torch.stack(self.losses).float()
        for name, source in self.sources.items():
            tensors[f"sizes {name}"] = torch.tensor([len(rows) for rows in source.waiting])
            waiting = [rows.cpu() for rows in source.waiting]
            tensors[f"waiting {name}"] = torch.cat([torch.zeros(0).long(), *waiting])
        tensors["random"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            tensors["random cuda"] = torch.cuda.get_rng_state()
        return weights.packed(tensors | _states(self._things | self._steps), "")

    def restore(self, arrays: Arrays) -> None:
        """Put a captured state back; without one everything stays as it is."""
        if "means" not in arrays:
            return
        tensors = weights.unpacked(arrays, "")
        self.means = [float(mean) for mean in tensors["means"]]
        self.over = bool(tensors["over"])
        _put_back(self._things, tensors)
        if self.over:
            return
        _put_back(self._steps, tensors)
        for name, source in self.sources.items():
            waiting = tensors[f"waiting {name}"].to(source.labels.device)
            source.waiting = list(waiting.split(tensors[f"sizes {name}"].tolist()))
            self.losses = list(tensors["losses"].to(source.labels.device))
        torch.set_rng_state(tensors["random"])
        if "random cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random cuda"])


def _states(things: Mapping[str, object]) -> State:
    return {f"{name}.{n}": t for name, thing in things.items() for n, t in _state(thing).items()}


def _put_back(things: Mapping[str, object], tensors: State) -> None:
    for name, thing in things.items():
        _remind(thing, _under(name, tensors))


def _under(name: str, tensors: Mapping[str, torch.Tensor]) -> State:
    prefix = f"{name}."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _state(thing: object) -> State:
    """Return all that a thing remembers, by name."""
    if isinstance(thing, torch.Tensor):
        return {"values": thing}
    if isinstance(thing, torch.Generator):
        return {"values": thing.get_state()}
    if isinstance(thing, torch.optim.Optimizer):
        every = thing.state_dict()["state"]
        parts = {f"{index}.{n}": v for index, state in every.items() for n, v in state.items()}
        return {name: value for name, value in parts.items() if isinstance(value, torch.Tensor)}
    if hasattr(thing, "state_dict"):
        own: State = thing.state_dict()
        return own
    return _states({str(n): part for n, part in enumerate(getattr(thing, "memory", ()))})


@torch.no_grad()
def _remind(thing: object, state: State) -> None:
    """Give a thing back what it remembered."""
    if isinstance(thing, torch.Tensor):
        thing.copy_(state["values"])
    elif isinstance(thing, torch.Generator):
        thing.set_state(state["values"])
    elif isinstance(thing, torch.optim.Optimizer):
        _restore_optimizer(thing, state)
    elif hasattr(thing, "load_state_dict"):
        thing.load_state_dict(state)
    else:
        for n, part in enumerate(getattr(thing, "memory", ())):
            _remind(part, _under(str(n), state))


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: State) -> None:
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, part = name.split(".", 1)
        like = parameters[int(index)]
        # Fused steps walk parameter and state side by side: both need the same memory order.
        if value.shape == like.shape and value.ndim:
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[part] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
