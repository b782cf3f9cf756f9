"""The whole state of a training between two epochs, as arrays and back.

On a CPU, resuming changes no byte.

The state is all that later steps depend on: weights and buffers, the optimizer's state, the
generators of order, augmentation and dropout, the batches of a pass that is not over, and the
number of the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from raysweep.methods.context import Arrays
from raysweep.training.streams import Source


def captured(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sources: Mapping[str, Source],
    means: list[float],
    name: str,
) -> Arrays:
    """Return the state after `len(means)` epochs; `name` is of the phase and its device."""
    tensors: dict[str, torch.Tensor] = {"means": torch.tensor(means, dtype=torch.float64)}
    tensors |= {f"model.{n}": tensor for n, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for part, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{part}"] = value
    for stream, source in sources.items():
        tensors[f"order.{stream}"] = source.order.get_state()
        tensors[f"noise.{stream}"] = source.noise.get_state()
        tensors[f"sizes.{stream}"] = torch.tensor([len(rows) for rows in source.waiting])
        tensors[f"waiting.{stream}"] = torch.cat([torch.zeros(0).long(), *_cpu(source.waiting)])
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return {f"{name}/{n}": t.detach().cpu().contiguous().numpy() for n, t in tensors.items()}


def _cpu(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.cpu() for tensor in tensors]


def restored(
    arrays: Arrays,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sources: Mapping[str, Source],
    name: str,
) -> list[float]:
    """Put a captured state back; return the mean losses of the epochs that are done.

    Without a state of that name everything stays as it is, and no epoch is done: a state from
    another kind of device cannot be continued to the same bytes.
    """
    prefix = f"{name}/"
    tensors = {
        n.removeprefix(prefix): torch.from_numpy(np.array(a))
        for n, a in arrays.items()
        if n.startswith(prefix)
    }
    if "means" not in tensors:
        return []
    model.load_state_dict(
        {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    )
    _restore_optimizer(optimizer, tensors)
    for stream, source in sources.items():
        source.order.set_state(tensors[f"order.{stream}"])
        source.noise.set_state(tensors[f"noise.{stream}"])
        waiting = tensors[f"waiting.{stream}"].to(source.labels.device)
        source.waiting = list(waiting.split(tensors[f"sizes.{stream}"].tolist()))
    torch.set_rng_state(tensors["random"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return [float(mean) for mean in tensors["means"]]


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if not name.startswith("optimizer."):
            continue
        _, index, part = name.split(".", 2)
        like = parameters[int(index)]
        # Fused steps walk parameter and state side by side: both need the same memory order.
        if value.shape == like.shape and value.ndim:
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[part] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
