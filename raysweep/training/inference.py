"""Networks in use: predictions, losses per sample, features of a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from raysweep.datasets import ImageSet, as_floats
from raysweep.methods.recipe import Recipe
from raysweep.training import resident
from raysweep.training.step import Objective as Objective
from raysweep.training.step import autocast as autocast
from raysweep.training.step import capturable as capturable
from raysweep.training.streams import Batch as Batch
from raysweep.training.streams import Source as Source
from raysweep.training.streams import Stream as Stream

GPU_VALUES = 2048 * 3 * 32 * 32  # of the images of a batch without gradients


def _batched(images: torch.Tensor, device: str, size: int | None) -> Iterator[torch.Tensor]:
    if size is None:  # A GPU is not filled by less than some million pixels.
        size = 500 if device == "cpu" else max(64, GPU_VALUES // math.prod(images.shape[1:]))
    there = resident.known(images, device)
    for part in (images if there is None else there).split(size):
        yield as_floats(part.to(device)).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(
    model: nn.Module,
    images: torch.Tensor,
    recipe: Recipe,
    device: str,
    *,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Return logits (N, K) float32 on the CPU, of uint8 images or of floats in [0, 1].

    Args:
        model: on the device; it is left in eval mode.
        images: (N, C, H, W), on the CPU or on the device.
        recipe: gives the precision.
        device: where to compute.
        batch_size: images at once; by default 500 on a CPU, and on a GPU as many as fill it.
    """
    model.eval()
    with autocast(recipe, device):
        parts = [model(batch).float() for batch in _batched(images, device, batch_size)]
    return torch.cat(parts).cpu()


def per_sample_losses(
    model: nn.Module, data: ImageSet, recipe: Recipe, device: str
) -> torch.Tensor:
    """Return the cross-entropy of each sample, (N,) float32 on the CPU; leaves eval mode."""
    logits = predict(model, data.images, recipe, device)
    return F.cross_entropy(logits, torch.from_numpy(data.labels), reduction="none")


class Dynamics:
    """Records the loss of each sample after each epoch: `fit(..., on_epoch=Dynamics(...))`.

    Recording draws nothing and changes no weight.
    """

    def __init__(self, data: ImageSet, recipe: Recipe, device: str) -> None:
        self._data, self._recipe, self._device = data, recipe, device
        self._epochs: list[torch.Tensor] = []

    def __call__(self, epoch: int, model: nn.Module) -> None:
        """Record one epoch; the model's modules keep their modes."""
        del epoch
        training = [module for module in model.modules() if module.training]
        self._epochs.append(per_sample_losses(model, self._data, self._recipe, self._device))
        for module in training:
            module.training = True

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the losses so far."""
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the losses of earlier epochs."""
        self._epochs = list(state["losses"])

    @property
    def losses(self) -> torch.Tensor:
        """Losses (epochs, N) float32 on the CPU, in the order of the data."""
        return torch.stack(self._epochs) if self._epochs else torch.zeros(0, len(self._data))


@torch.no_grad()
def layer_inputs_and_outputs(
    model: nn.Module, images: torch.Tensor, layer: str, recipe: Recipe, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (input of `layer`, its output, logits), each (N, ...) float32 on the CPU."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        del module
        seen.append((inputs[0].float().cpu(), output.float().cpu()))

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        logits = predict(model, images, recipe, device)
    finally:
        handle.remove()
    return torch.cat([i for i, _ in seen]), torch.cat([o for _, o in seen]), logits


def features(
    model: nn.Module, images: torch.Tensor, layer: str, head: str, recipe: Recipe, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, D) at a named layer and logits (N, K).

    At the head, features are its input; elsewhere the layer's output, averaged over space.
    """
    before, after, logits = layer_inputs_and_outputs(model, images, layer, recipe, device)
    values = before if layer == head else after
    return (values.mean(dim=(2, 3)) if values.ndim == 4 else values.flatten(1)), logits
