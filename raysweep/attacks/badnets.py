"""BadNets: a small opaque patch in a corner, relabeled.

T. Gu, B. Dolan-Gavitt, S. Garg: BadNets: Identifying Vulnerabilities in the Machine Learning Model
Supply Chain, 2017, arXiv:1708.06733, section 4.

Where we differ: poisoned images replace their originals. The default checker is the 3 x 3 one that
Confusion Training's and Anti-Backdoor Learning's experiments use: rows 0 0 1, 0 1 0, 1 0 1, opaque,
in the bottom right corner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from raysweep.attacks import Attack, Part
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch


class BadNets(Attack):
    """A `size` x `size` patch, `margin` pixels from the bottom and the right edge."""

    FAMILY: ClassVar[str] = "patch"

    size: int = Field(3, ge=1, le=64, description="side of the patch in pixels")
    margin: int = Field(0, ge=0, le=64, description="pixels between patch and edges")
    pattern: Literal["checker", "white"] = Field("checker", description="what the patch shows")

    def patch(self, like: torch.Tensor) -> torch.Tensor:
        """Return the patch, (size, size) in {0, 1}."""
        import torch

        if self.pattern == "white":
            return torch.ones(self.size, self.size, dtype=like.dtype, device=like.device)
        row = torch.arange(self.size, device=like.device)
        odd = (row[:, None] + row[None, :] + self.size - 1) % 2
        checker = 1 - odd.to(like.dtype)
        if self.size == 3:
            checker[0, 0] = 0  # the published pattern is no full checkerboard
        return checker

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Replace the patch's pixels in every channel."""
        del ids, part, artifact, seed
        height, width = images_BCHW.shape[2:]
        bottom, right = height - self.margin, width - self.margin
        if min(bottom, right) < self.size:
            raise ValueError(
                f"size + margin must fit the image, got {self.size} + {self.margin} on "
                f"{height} x {width}; lower one of them"
            )
        stamped = images_BCHW.clone()
        stamped[:, :, bottom - self.size : bottom, right - self.size : right] = self.patch(stamped)
        return stamped
