"""Encoded images → uint8 arrays: Parquet in the style of Hugging Face, and image files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysweep.datasets import ImageSet, IntArray, Labels
from raysweep.errors import PlanError

if TYPE_CHECKING:
    import pyarrow.parquet
    import torch

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels", "coarse_label")


def opened(file: Path) -> pyarrow.parquet.ParquetFile:
    """Open a Parquet file.

    Raises:
        PlanError: if it is no Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise PlanError(f"{file}: cannot be read as Parquet ({error})") from None


def column(file: Path, chosen: str | None, known: tuple[str, ...]) -> str:
    """Return the name of a file's image or label column."""
    names = opened(file).schema_arrow.names
    for name in (chosen,) if chosen else known:
        if name in names:
            return str(name)
    wanted = repr(chosen) if chosen else " or ".join(known)
    raise PlanError(f"{file}: has no column {wanted}; its columns are {', '.join(names)}")


def parquet_labels(files: Iterable[Path], label_column: str | None) -> IntArray:
    """Return the labels of some Parquet files, without decoding images.

    Raises:
        PlanError: if a file has no rows, or labels that are no whole numbers.
    """
    import pyarrow

    parts = []
    for file in files:
        name = column(file, label_column, LABEL_COLUMNS)
        values = opened(file).read([name]).column(name)
        wrong = None
        if not pyarrow.types.is_integer(values.type):
            wrong = f"got {values.type}"
        elif values.null_count:
            wrong = f"row {values.is_null().to_pylist().index(True)} is null"
        if wrong:
            raise PlanError(
                f"{file}: column {name!r} must hold whole numbers, {wrong}; "
                f"set label_column, or write the numbers of the classes"
            )
        if not len(values):
            raise PlanError(f"{file}: holds no rows; leave it out")
        parts.append(values.to_numpy().astype(np.int64))
    return np.concatenate(parts)


def split_labels(train: list[Path], test: list[Path], label_column: str | None) -> Labels:
    """Return the labels and class names of training and test files.

    Raises:
        PlanError: if a label has no class name.
    """
    first, second = (parquet_labels(files, label_column) for files in (train, test))
    both = np.concatenate([first, second])
    names = class_names(train[0], label_column, both)
    if both.min() < 0 or both.max() >= len(names):
        raise PlanError(
            f"{train[0].parent}: labels must be from 0 to {len(names) - 1}, the classes that are "
            f"named, got {both.min()} to {both.max()}"
        )
    return Labels(train=first, test=second, classes=names)


def class_names(file: Path, label_column: str | None, labels: IntArray) -> tuple[str, ...]:
    """Return class names from Hugging Face metadata, else the numbers up to the largest label."""
    metadata = opened(file).schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[column(file, label_column, LABEL_COLUMNS)]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return tuple(str(label) for label in range(int(labels.max()) + 1))


def parquet_images(
    files: list[Path], image_column: str | None, label_column: str | None, *, grey: bool
) -> ImageSet:
    """Decode some Parquet files, in order, to one set."""
    labels = parquet_labels(files, label_column)
    encoded = (image for file in files for image in _encoded(file, image_column))

    return ImageSet(images=decoded(encoded, total=len(labels), grey=grey), labels=labels)


def _encoded(file: Path, image_column: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield (place, bytes) of each image of a file, some hundred in memory at a time."""
    name = column(file, image_column, IMAGE_COLUMNS)
    row = 0
    for batch in opened(file).iter_batches(columns=[name], batch_size=500):
        for value in batch.column(0).to_pylist():
            raw: Any = value["bytes"] if isinstance(value, dict) else value
            if not isinstance(raw, bytes):
                raise PlanError(
                    f"{file}, row {row}: column {name!r} must hold the bytes of an image, "
                    f"got {type(raw).__name__}"
                )
            yield f"{file}, row {row}", raw
            row += 1


def encoding(file: Path) -> str:
    """Return the encoding of the first image of a Parquet file, such as `png`."""
    from PIL import Image, UnidentifiedImageError

    where, raw = next(_encoded(file, None))
    try:
        return str(Image.open(io.BytesIO(raw)).format).lower()
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise PlanError(f"{where}: cannot be decoded as an image ({error})") from None


def decoded(
    encoded: Iterable[tuple[str, bytes]],
    *,
    total: int,
    grey: bool,
    side: int | None = None,
    crop: bool = False,
) -> torch.Tensor:
    """Return images as a uint8 tensor (N, C, H, W), which is the only copy that is ever made.

    Args:
        encoded: (place, bytes) of each image; messages name the place.
        total: number of images, at least one.
        grey: whether to decode to one channel, else to three.
        side: resize to side x side; none: all must have one size.
        crop: resize the shorter side and cut the middle, instead of resizing both.

    Raises:
        PlanError: names the image that cannot be decoded or has another size.
    """
    import torch

    images: NDArray[np.uint8] | None = None
    for row, (where, raw) in enumerate(encoded):
        pixels = _pixels(where, raw, "L" if grey else "RGB", side, crop=crop)
        if images is None:
            images = np.empty((total, *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            height, width = images.shape[2:]
            raise PlanError(
                f"{where}: is {pixels.shape[1]} x {pixels.shape[2]} pixels, the first image is "
                f"{height} x {width}; give images of one size"
            )
        images[row] = pixels
    assert images is not None
    return torch.from_numpy(images)


def _pixels(
    where: str, raw: bytes, mode: str, side: int | None, *, crop: bool
) -> NDArray[np.uint8]:
    """Return one image, (C, H, W)."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        encoded = Image.open(io.BytesIO(raw))
        if encoded.mode.startswith(("I", "F")):  # Pillow would clip them to white
            raise PlanError(
                f"{where}: holds {encoded.mode} pixels, more than 8 bits each; convert it to 8 bits"
            )
        image = encoded.convert(mode)
    except (
        UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError
    ) as error:  # fmt: skip
        raise PlanError(f"{where}: cannot be decoded as an image ({error})") from None
    if side is not None and image.size != (side, side):
        fit = ImageOps.fit if crop else Image.Image.resize
        image = fit(image, (side, side), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
