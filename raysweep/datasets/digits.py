"""Handwritten digits: 1,797 real scans of 8 x 8 pixels, embedded in scikit-learn.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
1998. The default data of examples and tests: needs no download.

Where we differ: the source has no official cut into training and test sets; here a fixed
permutation gives 1,297 and 500. Images are upscaled bilinearly, so that a 3 x 3 patch is small.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep import rng
from raysweep.datasets import Dataset, ImageSet, IntArray, Labels
from raysweep.errors import PlanError

TRAINING = 1297


class Digits(Dataset):
    """scikit-learn's digits, grey, upscaled to `side` pixels."""

    side: int = Field(16, ge=8, le=256, description="height and width in pixels")

    def files(self) -> list[Path]:
        """Return scikit-learn's data file, found without importing scikit-learn."""
        package = importlib.util.find_spec("sklearn")
        if package is None or not package.submodule_search_locations:
            raise PlanError("dataset digits: scikit-learn is not installed; pip install it")
        return [Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"]

    def read_labels(self) -> Labels:
        """Return the labels of the fixed cut."""
        _, labels = _table(self.files()[0])
        train, test = _cut(len(labels))
        return Labels(
            train=labels[train], test=labels[test], classes=tuple(str(c) for c in range(10))
        )

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return 1,297 training and 500 test images, (N, 1, side, side) uint8."""
        import torch
        import torch.nn.functional as F

        pixels, labels = _table(self.files()[0])
        small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
        large = F.interpolate(small, size=(self.side, self.side), mode="bilinear")
        images = large.clamp(0, 1).mul(255).round().to(torch.uint8)
        whole = ImageSet(images=images, labels=labels)
        train, test = _cut(len(labels))
        return whole.take(train), whole.take(test)


@functools.cache
def _table(file: Path) -> tuple[NDArray[np.uint8], IntArray]:
    with gzip.open(file, "rt", encoding="ascii") as rows:
        table = np.array([row.split(",") for row in rows], float).astype(np.int64)
    return table[:, :-1].astype(np.uint8), table[:, -1]


def _cut(total: int) -> tuple[IntArray, IntArray]:
    order = rng.generator(0, "digits", "training and test").permutation(total)
    return np.sort(order[:TRAINING]), np.sort(order[TRAINING:])
