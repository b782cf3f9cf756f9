"""SIG: a sinusoidal signal added to images of the target class, labels kept.

M. Barni, K. Kallas, B. Tondi: A New Backdoor Attack in CNNs by Training Set Corruption without
Label Poisoning, ICIP 2019, arXiv:1902.11237: v(i, j) = delta * sin(2 pi j f / width).

Where we differ: amplitude 30/255 and frequency 6 are the values of Confusion Training's experiments
on 32-pixel images; the rate counts poisoned images over the whole training set, so that it can be
at most the target class's share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.attacks import Attack, Part
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch


class SIG(Attack):
    """Clean-label: only images of the target class are poisoned."""

    CLEAN_LABEL: ClassVar[bool] = True

    delta: float = Field(30.0, gt=0, le=255, description="amplitude in 1/255")
    test_delta: float | None = Field(None, gt=0, le=255, description="at test time; none: delta")
    frequency: float = Field(6.0, gt=0, description="periods over the width")

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Add the signal and clip to [0, 1]."""
        import torch

        del ids, artifact, seed
        delta = self.test_delta if part == "test" and self.test_delta else self.delta
        width = images_BCHW.shape[3]
        columns = torch.arange(width, dtype=images_BCHW.dtype, device=images_BCHW.device)
        signal = delta / 255 * torch.sin(2 * torch.pi * self.frequency * columns / width)
        return (images_BCHW + signal).clamp(0, 1)
