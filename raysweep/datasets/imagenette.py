"""Imagenette: ten easily told classes of ImageNet.

J. Howard: Imagenette, fast.ai 2019; the pictures are those of O. Russakovsky et al.: ImageNet Large
Scale Visual Recognition Challenge, arXiv:1409.0575.

    path/train/<wnid>/*.JPEG      path/val/<wnid>/*.JPEG

Where we differ: `path` is the unpacked folder imagenette2, imagenette2-160 or imagenette2-320; the
shorter side is resized to `side` and the middle is cut out once, when the data are decoded.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from raysweep.datasets._folders import Folders

NAMES = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player",
    "n03000684": "chain saw", "n03028079": "church", "n03394916": "French horn",
    "n03417042": "garbage truck", "n03425413": "gas pump", "n03445777": "golf ball",
    "n03888257": "parachute",
}  # fmt: skip


class Imagenette(Folders):
    """Images (N, 3, side, side); the validation set is the test set."""

    SPLITS: ClassVar[tuple[str, str]] = ("train", "val")
    CROP: ClassVar[bool] = True

    side: int = Field(160, ge=8, le=1024, description="height and width in pixels")

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of their labels."""
        return tuple(NAMES.get(name, name) for name in self.chosen())
