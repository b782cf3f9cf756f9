"""The activations of all layers that a model names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from raysweep.datasets import as_floats
from raysweep.defenses import DefenseInputs, FloatArray
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch


Pool = Literal["mean", "flat"]


def layer_values(
    inputs: DefenseInputs,
    images_BCHW: torch.Tensor,
    ctx: Context,
    *,
    pool: Pool = "mean",
    batch_size: int = 500,
) -> list[FloatArray]:
    """Return (N, D) per layer of the victim; the head gives its input.

    Args:
        inputs: the defense's inputs, with the victim.
        images_BCHW: the images, uint8.
        ctx: where the work is done.
        pool: whether feature maps are averaged over space, or every entry is kept.
        batch_size: images that go through the network at once.

    Raises:
        ValueError: if an activation is not finite.
    """
    import torch

    from raysweep import training

    network, head = inputs.victim, inputs.model.HEAD
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in inputs.model.LAYERS}

    def flat(values: torch.Tensor) -> torch.Tensor:
        if pool == "mean" and values.ndim == 4:
            values = values.mean(dim=(2, 3), dtype=torch.float32)
        return values.float().flatten(1).cpu()

    handles = []
    for name in seen:
        module = network.get_submodule(name)
        if name == head:
            handles.append(
                module.register_forward_pre_hook(
                    lambda module, given, name=name: seen[name].append(flat(given[0]))
                )
            )
        else:
            handles.append(
                module.register_forward_hook(
                    lambda module, given, out, name=name: seen[name].append(flat(out))
                )
            )
    try:
        with torch.no_grad(), training.autocast(inputs.recipe, ctx.device):
            for part in images_BCHW.split(batch_size):
                network(as_floats(part.to(ctx.device)))
    finally:
        for handle in handles:
            handle.remove()
    values = [torch.cat(parts).numpy() for parts in seen.values()]
    for name, value in zip(seen, values, strict=True):
        if not np.isfinite(value).all():
            raise ValueError(f"activations of layer {name} are not finite; the victim may diverge")
    return values


def map_layers(inputs: DefenseInputs, ctx: Context) -> list[str]:
    """Return the layers that the model names whose output has a height and a width.

    Raises:
        ValueError: if there is none.
    """
    import torch

    shape = inputs.shape
    blank = torch.zeros(1, shape.channels, shape.height, shape.width, device=ctx.device)
    found: list[str] = []
    handles = []
    for name in inputs.model.LAYERS:

        def look(module: object, given: object, out: object, name: str = name) -> None:
            if isinstance(out, torch.Tensor) and out.ndim == 4 and out.shape[2] * out.shape[3] > 1:
                found.append(name)

        handles.append(inputs.victim.get_submodule(name).register_forward_hook(look))
    try:
        with torch.no_grad():
            inputs.victim(blank)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(
            f"model {inputs.model.name} names no layer with feature maps (its layers: "
            f"{', '.join(inputs.model.LAYERS)}); take a convolutional model"
        )
    return found


def last_map(
    inputs: DefenseInputs, images_BCHW: torch.Tensor, ctx: Context
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last feature maps (B, C, H, W) and logits (B, K) of floats in [0, 1]."""
    from raysweep import training

    _, maps, logits = training.layer_inputs_and_outputs(
        inputs.victim, images_BCHW, map_layers(inputs, ctx)[-1], inputs.recipe, ctx.device
    )
    return maps, logits
