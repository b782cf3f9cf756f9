"""A user's own arrays in one NumPy file.

    np.savez(path, train_images=..., train_labels=..., test_images=..., test_labels=...)

The layout is NumPy's own; optional: classes, an array of names.

Where we differ: images are uint8, (N, H, W, C) or (N, C, H, W) or (N, H, W). Arrays of objects are
never unpickled.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.datasets import Dataset, ImageSet, IntArray, Labels
from raysweep.errors import PlanError
from raysweep.paths import DataPath


class Npz(Dataset):
    """Arrays of the file at `path`."""

    path: DataPath = Field(description="file with the four arrays, .npz")

    def files(self) -> list[Path]:
        """Return the file."""
        file = Path(self.path)
        if not file.is_file():
            raise PlanError(f"dataset {self.name}: path must name a file, got {self.path!r}")
        return [file]

    def _array(self, name: str) -> NDArray[np.generic]:
        (file,) = self.files()
        try:
            with np.load(file, allow_pickle=False) as arrays:
                if name not in arrays:
                    raise PlanError(
                        f"{file}: has no array {name!r}, it has {', '.join(arrays.files)}; "
                        f"save train_images, train_labels, test_images and test_labels"
                    )
                found: NDArray[np.generic] = arrays[name]
                return found
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise PlanError(
                f"{file}: array {name!r} cannot be read without pickle ({error}); save plain "
                f"arrays with np.savez"
            ) from None

    def _labels(self, split: str) -> IntArray:
        values = self._array(f"{split}_labels")
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or not len(values):
            raise PlanError(
                f"{self.path}: {split}_labels must be whole numbers of shape (N,), got "
                f"{values.dtype} of shape {values.shape}"
            )
        return values.astype(np.int64)

    def read_labels(self) -> Labels:
        """Return the labels."""
        train, test = self._labels("train"), self._labels("test")
        (file,) = self.files()
        highest = int(max(train.max(), test.max()))
        names = tuple(str(n) for n in range(highest + 1))
        with np.load(file, allow_pickle=False) as arrays:
            named = "classes" in arrays
        if named:
            names = tuple(str(name) for name in self._array("classes"))
        if min(train.min(), test.min()) < 0 or highest >= len(names):
            raise PlanError(
                f"{file}: labels must be from 0 to {len(names) - 1}, the classes there are, got "
                f"{min(train.min(), test.min())} to {highest}"
            )
        return Labels(train=train, test=test, classes=names)

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the sets, (N, C, H, W)."""
        train, test = (self._images(split) for split in ("train", "test"))
        return train, test

    def _images(self, split: str) -> ImageSet:
        import torch

        images, labels = self._array(f"{split}_images"), self._labels(split)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels):
            raise PlanError(
                f"{self.path}: {split}_images must be uint8 of shape (N, H, W, C), (N, C, H, W) or "
                f"(N, H, W) with one image a label, got {images.dtype} of shape {images.shape} for "
                f"{len(labels)} labels; convert pixels to whole numbers from 0 to 255"
            )
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
            images = images.transpose(0, 3, 1, 2)
        return ImageSet(images=torch.from_numpy(np.ascontiguousarray(images)), labels=labels)
