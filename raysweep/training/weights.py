"""A network's weights as arrays of an artifact, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from raysweep.arrays import WEIGHTS, Array


def packed(state: Mapping[str, torch.Tensor], prefix: str = WEIGHTS) -> dict[str, Array]:
    """Return a state dict as arrays of an artifact, their names under `prefix`."""
    return {f"{prefix}{n}": t.detach().cpu().contiguous().numpy() for n, t in state.items()}


def unpacked(arrays: Mapping[str, Array], prefix: str = WEIGHTS) -> dict[str, torch.Tensor]:
    """Return the state dict that an artifact holds under `prefix`; its tensors are copies."""
    return {
        name.removeprefix(prefix): torch.from_numpy(np.array(array))
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
