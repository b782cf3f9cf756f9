"""The number of images that a network takes at once, from its bytes per image and free memory."""

from __future__ import annotations

import torch
from torch import nn

from raysweep.methods.recipe import Recipe
from raysweep.training.graph import graphs
from raysweep.training.step import autocast

USABLE = 0.6  # of what is free; the rest is for workspaces and what else a method holds
MOST = 1024  # images; more fill no GPU better


def kept_bytes(network: nn.Module, image_1CHW: torch.Tensor, recipe: Recipe, device: str) -> int:
    """Return the bytes that a network keeps of one image for its gradient, without its weights.

    Args:
        network: on the device; its mode is left as it is.
        image_1CHW: one image, float in [0, 1], on the device.
        recipe: gives the precision.
        device: where to compute.
    """
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    # The tensors are held: a freed tensor's place may be given to the next.
    held: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    image = image_1CHW.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast(recipe, device):
        network(image)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(size for place, size in sizes.items() if place not in weights)


def images_at_once(
    network: nn.Module, image_1CHW: torch.Tensor, recipe: Recipe, device: str, *, copies: int = 1
) -> int:
    """Return the number of images that a GPU's free memory holds with gradients, 1 to 1,024.

    Args:
        network: on the device, in the mode in which it is used.
        image_1CHW: one image, float in [0, 1], on the device.
        recipe: gives the precision.
        device: where to compute.
        copies: number of times that the network is applied to each image.
    """
    if not graphs(device):
        return MOST
    return fitting(copies * kept_bytes(network, image_1CHW, recipe, device), MOST)


def members_at_once(
    network: nn.Module, image_1CHW: torch.Tensor, recipe: Recipe, device: str, members: int
) -> int:
    """Return the number of networks that can train as one in a GPU's memory, 1 to `members`.

    Args:
        network: one of them, on the device.
        image_1CHW: one image, float in [0, 1], on the device.
        recipe: gives precision and batch size.
        device: where to compute.
        members: how many there are.
    """
    if not graphs(device):
        return members
    each = recipe.batch_size * kept_bytes(network, image_1CHW, recipe, device)
    return fitting(each, members)


def fitting(each: int, most: int) -> int:
    """Return the number of things of `each` bytes that the free memory holds, 1 to `most`."""
    return max(1, min(most, int(USABLE * free_bytes()) // max(each, 1)))


def free_bytes() -> int:
    """Return the bytes that this process may still allocate on its GPU, within its share."""
    device = torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    own = int(share * total) - torch.cuda.memory_allocated(device)
    return max(0, min(free + cached, own))
