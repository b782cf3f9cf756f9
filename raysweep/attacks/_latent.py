"""The inputs of a network's head, with their gradient, for attacks on feature space."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def head_inputs(network: nn.Module, head: str, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the features (B, D) that a network's last dense layer is given."""
    import torch

    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        del module
        seen.append(inputs[0])

    handle = network.get_submodule(head).register_forward_pre_hook(keep)
    try:
        network(images_BCHW)
    finally:
        handle.remove()
    return torch.cat([features.flatten(1) for features in seen])
