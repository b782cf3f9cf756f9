"""Copies of image sets on a GPU, shared by every training and prediction of a stage.

A copy lives as long as the tensor that it was made of, and at most until `forget`.
"""

from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_COPIES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # images → (version, copy)


def resident(images: torch.Tensor, device: str) -> torch.Tensor:
    """Return images on a device with channels last, uploaded once unless they have changed."""
    if device == "cpu":
        return images.contiguous(memory_format=torch.channels_last)
    there = known(images, device)
    if there is None:
        there = images.to(device).contiguous(memory_format=torch.channels_last)
        _COPIES[images] = (images._version, there)
    return there


def known(images: torch.Tensor, device: str) -> torch.Tensor | None:
    """Return the copy of these images that lies on a device, or None if there is none."""
    version, there = _COPIES.get(images, (None, None))
    if there is None or version != images._version or there.device.type != device:
        return None
    copy: torch.Tensor = there
    return copy


def forget() -> None:
    """Let go of every copy."""
    _COPIES.clear()
