"""The gradient of RED's objective, of as many images at once as there is room for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.defenses import DefenseInputs

if TYPE_CHECKING:
    import torch
    from torch import nn


def descent(
    inputs: DefenseInputs, images: torch.Tensor, removed: torch.Tensor, tried: torch.Tensor,
    target: int, weight: float, device: str, at_once: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the gradient (S, C, H, W) of both terms, and the share (S,) that reaches the target.

    Args:
        inputs: give victim and precision.
        images: (S, n, C, H, W) of the sources, in [0, 1].
        removed: (m, C, H, W) of the target.
        tried: (S, C, H, W) patterns, of which the gradient is taken.
        target: its class.
        weight: lambda.
        device: where to compute.
        at_once: images that the network is given at once, at least one a source.
    """
    import torch

    from raysweep import training

    count = max(at_once // len(tried), 1)
    gradient, hits = torch.zeros_like(tried), torch.zeros(len(tried), device=tried.device)
    for block in images.split(count, 1):
        with training.autocast(inputs.recipe, device):
            added = _log_posterior(inputs.victim, block + tried[:, None])
            part = block.shape[1] / images.shape[1]
            loss = -part * added[..., target].mean(1).sum()
        gradient += torch.autograd.grad(loss, tried)[0]
        hits += (added.argmax(-1) == target).sum(1)
    for block in removed.split(count) if weight else ():
        with training.autocast(inputs.recipe, device):
            taken = _log_posterior(inputs.victim, block[None] - tried[:, None])
            others = torch.cat([taken[..., :target], taken[..., target + 1 :]], -1)
            part = weight * len(block) / len(removed)
            loss = -part * others.logsumexp(-1).mean(1).sum()
        gradient += torch.autograd.grad(loss, tried)[0]
    return gradient, hits / images.shape[1]


def _log_posterior(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return log posteriors (S, n, K) of clipped images (S, n, C, H, W)."""
    import torch

    sources, count = images.shape[:2]
    boxed = _in_the_box(images).flatten(0, 1)
    logits: torch.Tensor = network(boxed.contiguous(memory_format=torch.channels_last))
    return logits.float().log_softmax(1).view(sources, count, -1)


def _in_the_box(images: torch.Tensor) -> torch.Tensor:
    """Return images clipped to [0, 1]; the gradient passes where they lie on a bound.

    Since torch 2.14 `clamp` lets none pass there: a pattern that begins at 0 would never light a
    pixel that is black in all images.
    """
    return images.masked_fill(images < 0, 0.0).masked_fill(images > 1, 1.0)
