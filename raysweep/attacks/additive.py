"""Imperceptible additive patterns: a few levels of 255 added to images of some source classes.

Z. Xiang, D. J. Miller, G. Kesidis: Reverse Engineering Imperceptible Backdoor Attacks on Deep
Neural Networks for Detection and Training Set Cleansing, Computers & Security 2021,
arXiv:2010.07489: x' = [x + v], clipped to the pixel box and rounded to 8 bits.

Where we differ: poisons replace their originals, as in the paper; defaults (class 1 to class 7, 1 %
of the set, 3/255 chessboard) are those of the authors' released script, RE-paper, whose patterns
chessboard and static these are. Cross, L, square, X and single pixels follow the generators of the
same authors' 2ClassBADetection; the local patterns stand at a place drawn once per trial and need
larger amplitudes. `four_pixel` is a name in RE-paper without a published source: ours are four
pixels drawn apart, two of which may be the same. The place may be any that holds the pattern, rows
and columns 1 to 30 of 32, where the authors' are 3 to 28; single pixels are always brighter by the
amplitude, without the authors' random sign and factor 1 + 0.2u. RE-paper clips after rounding, so
that saturated pixels wrap; ours clip first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from raysweep import rng
from raysweep.attacks import Attack, Part
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch

Local = Literal["cross", "four_pixel", "single_pixel", "l_shape", "square", "x"]
# (row, column) offsets from the pattern's place.
SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "cross": ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)),
    "single_pixel": ((0, 0),),
    "l_shape": ((-1, 0), (0, 0), (1, 0), (1, 1)),
    "square": ((0, 0), (0, 1), (1, 0), (1, 1)),
    "x": ((0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)),
}
ALL_CHANNELS = frozenset({"cross", "four_pixel"})


class Additive(Attack):
    """x + v; v has `amplitude` / 255 on the pattern's pixels and 0 elsewhere."""

    rate: float = Field(0.01, ge=0, le=1, description="poisoned images / training images")
    target: int = Field(7, ge=0, description="class that triggered inputs are to be given")
    sources: tuple[int, ...] | None = Field((1,), description="classes that are attacked")
    pattern: Literal["chessboard", "static"] | Local = Field("chessboard", description="support")
    amplitude: float = Field(3.0, gt=0, le=255, description="in 1/255")

    def perturbation(self, channels: int, height: int, width: int, *, seed: int) -> torch.Tensor:
        """Return v, (C, H, W); local patterns are placed by `seed`."""
        import torch

        rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
        v = torch.zeros(channels, height, width)
        if self.pattern == "chessboard":
            v += ((rows + columns) % 2 == 0).float()
        elif self.pattern == "static":
            v += ((rows % 2 == 0) & (columns % 2 == 0)).float()
        else:
            draw = rng.generator(seed, "place")
            if self.pattern == "four_pixel":
                spots = [(int(draw.integers(height)), int(draw.integers(width))) for _ in range(4)]
            else:
                top, left = int(draw.integers(1, height - 1)), int(draw.integers(1, width - 1))
                spots = [(top + dy, left + dx) for dy, dx in SHAPES[self.pattern]]
            lit = range(channels) if self.pattern in ALL_CHANNELS else [draw.integers(channels)]
            for channel in lit:
                for row, column in spots:
                    v[int(channel), row, column] = 1
        return v * (self.amplitude / 255)

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Add v and clip to [0, 1]."""
        del ids, part, artifact
        v = self.perturbation(*images_BCHW.shape[1:], seed=seed).to(images_BCHW)
        return (images_BCHW + v).clamp(0, 1)
