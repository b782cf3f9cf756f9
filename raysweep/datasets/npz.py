"""A user's own arrays in one NumPy file.

    np.savez(path, train_images=..., train_labels=..., test_images=..., test_labels=...)

The layout is NumPy's own; optional: classes, an array of names.

Where we differ: images are uint8, (N, H, W, C) or (N, C, H, W) or (N, H, W), with 1 or 3 channels.
Arrays of objects are never unpickled.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.datasets import Dataset, ImageSet, IntArray, Labels, Size
from raysweep.datasets._checks import named, numbered
from raysweep.errors import PlanError
from raysweep.paths import DataPath, placeholder

ARRAYS = "train_images, train_labels, test_images and test_labels"
CHANNELS = (1, 3)


class Npz(Dataset):
    """Arrays of the file at `path`."""

    AT_PLAN: ClassVar[int] = 512  # arrays are read about as fast as their file is digested

    path: DataPath = Field(description="file with the four arrays, .npz")

    def files(self) -> list[Path]:
        """Return the file."""
        file = Path(self.path)
        if not file.is_file():
            raise PlanError(f"dataset {self.name}: path must name a file, got {self.path!r}")
        return [file]

    def where(self, split: str, row: int) -> str:
        """Return the file and the row of the split's arrays."""
        return f"{self.path}: row {row} of {split}_images and {split}_labels"

    def _arrays(self) -> list[str]:
        """Return the names of the file's arrays."""
        (file,) = self.files()
        try:
            with zipfile.ZipFile(file) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist()]
        except Exception as error:  # noqa: BLE001  zipfile raises whatever bytes provoke
            detail = str(error)
        with file.open("rb") as stream:
            head = stream.read(64)
        if head.startswith(b"\x93NUMPY"):
            fault = f"is one array, not several by name; save {ARRAYS} with np.savez"
        elif placed := placeholder(head):
            fault = placed
        elif head.startswith(b"PK"):
            fault = f"cannot be read, it was cut off or damaged ({detail}); write or copy it again"
        else:
            fault = f"cannot be read, it is no .npz file; save {ARRAYS} with np.savez"
        raise PlanError(f"{file}: {fault}")

    def _array(self, name: str) -> NDArray[np.generic]:
        """Read an array.

        Raises:
            PlanError: if the file has no such array, or holds something else under its name.
        """
        there, (file,) = self._arrays(), self.files()
        if there.count(name) != 1:
            has = "no array" if name not in there else "several arrays"
            raise PlanError(f"{file}: has {has} {name!r}, it has {', '.join(there)}; save {ARRAYS}")
        try:
            with np.load(file, allow_pickle=False) as arrays:
                found = arrays[name]
        except Exception as error:  # noqa: BLE001  zip and NumPy raise whatever bytes provoke
            objects = "allow_pickle" in str(error)
            raise PlanError(
                f"{file}: array {name!r} cannot be read"
                + (" without pickle" if objects else "")
                + f" ({error}); "
                + ("save plain arrays with np.savez" if objects else "write or copy it again")
            ) from None
        if not isinstance(found, np.ndarray):
            raise PlanError(f"{file}: {name!r} is no array; save {ARRAYS} with np.savez")
        return found

    def _labels(self, split: str) -> IntArray:
        values = self._array(f"{split}_labels")
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or not len(values):
            raise PlanError(
                f"{self.path}: {split}_labels must be one whole number for each image, of shape "
                f"(N,), got {values.dtype} of shape {values.shape}; {_remedy(values)}"
            )
        if values.max() > np.iinfo(np.int64).max:
            raise PlanError(f"{self.path}: {split}_labels hold {values.max()}, which is no class")
        return values.astype(np.int64)

    def _classes(self) -> tuple[str, ...] | None:
        """Return the names of the classes, if the file has any."""
        if "classes" not in self._arrays():
            return None
        names = self._array("classes")
        if names.ndim != 1 or names.dtype.kind not in "USiu":
            raise PlanError(
                f"{self.path}: classes must be names of shape (K,), got {names.dtype} of shape "
                f"{names.shape}; save a list of K texts"
            )
        return named(names.tolist(), f"{self.path}: classes")

    def read_labels(self) -> Labels:
        """Return the labels."""
        train, test = self._labels("train"), self._labels("test")
        classes = self._classes() or numbered(train, test, self.path)
        return Labels(train=train, test=test, classes=classes)

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the sets, (N, C, H, W)."""
        train, test = (self._images(split) for split in ("train", "test"))
        return train, test

    def first_sizes(self) -> list[Size]:
        """Return the size of the images of each split, by the headers of the arrays."""
        sizes: list[Size] = []
        for split in ("train", "test"):
            dtype, shape = self._header(f"{split}_images")
            # One value stands for all, so that nothing is read.
            images = self._ordered(split, np.broadcast_to(np.empty((), dtype), shape))
            sizes.append((images.shape[1], images.shape[2], images.shape[3]))
        return sizes

    def _header(self, name: str) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
        """Return type and shape of an array, read from its header alone."""
        (file,) = self.files()
        try:
            with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
                version = np.lib.format.read_magic(stream)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(stream)
        except Exception:  # noqa: BLE001  zip and NumPy raise whatever bytes provoke
            found = self._array(name)  # which says what is wrong
            return found.dtype, found.shape
        return dtype, shape

    def _images(self, split: str) -> ImageSet:
        import torch

        images, labels = self._array(f"{split}_images"), self._labels(split)
        images = np.ascontiguousarray(self._ordered(split, images))
        return ImageSet(images=torch.from_numpy(images), labels=labels)

    def _ordered(self, split: str, images: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the images of a split, (N, C, H, W), as a view.

        Raises:
            PlanError: if they are none, or not as many as labels.
        """
        count, shaped = len(self._labels(split)), images.ndim in (3, 4) and 0 not in images.shape
        if images.dtype != np.uint8 or not shaped or len(images) != count:
            remedy = "save one image for each label, in their order"
            if not shaped:
                remedy = "give the array one of these shapes, with reshape or transpose"
            if images.dtype != np.uint8:
                remedy = "convert pixels to whole numbers from 0 to 255"
            raise PlanError(
                f"{self.path}: {split}_images must be uint8 of shape (N, H, W, C), (N, C, H, W) or "
                f"(N, H, W) with one image a label, got {images.dtype} of shape {images.shape} for "
                f"{count} labels; {remedy}"
            )
        grey = images.ndim == 3
        images = images[:, None] if grey else images
        axes = [1] if grey else [axis for axis in (1, 3) if images.shape[axis] in CHANNELS]
        if len(axes) != 1:
            raise PlanError(
                f"{self.path}: {split}_images must have 1 or 3 channels, on axis 1 or on axis 3, "
                f"got shape {images.shape}, where {'both' if axes else 'neither'} may be; save "
                f"images of another size, or their colors alone"
            )
        return np.moveaxis(images, axes[0], 1)


def _remedy(labels: NDArray[np.generic]) -> str:
    """Return the remedy of an array of labels that is none of whole numbers, (N,)."""
    if not labels.size:
        return "save at least one"
    if labels.ndim == 2:
        return "take argmax(1) of one-hot rows" if labels.shape[1] > 1 else "take ravel()"
    if labels.dtype.kind in "US":
        return "number the classes from 0, and save their names as the array classes"
    return "number the classes from 0, and save the numbers as integers"
