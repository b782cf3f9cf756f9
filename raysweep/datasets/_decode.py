"""Encoded images → uint8 arrays: Parquet in the style of Hugging Face, and image files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysweep.datasets import ImageSet, IntArray
from raysweep.errors import PlanError

if TYPE_CHECKING:
    import pyarrow.parquet

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels", "coarse_label")


def opened(file: Path) -> pyarrow.parquet.ParquetFile:
    """Open a Parquet file.

    Raises:
        PlanError: if it is none.
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
    """Return the labels of some Parquet files, without decoding images."""
    parts = []
    for file in files:
        name = column(file, label_column, LABEL_COLUMNS)
        parts.append(opened(file).read([name]).column(name).to_numpy().astype(np.int64))
    return np.concatenate(parts)


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
    names = {file: column(file, image_column, IMAGE_COLUMNS) for file in files}

    def encoded() -> Iterator[tuple[str, bytes]]:
        for file, name in names.items():
            row = 0
            for batch in opened(file).iter_batches(columns=[name], batch_size=1000):
                for value in batch.column(0).to_pylist():
                    raw: Any = value["bytes"] if isinstance(value, dict) else value
                    if not isinstance(raw, bytes):
                        raise PlanError(
                            f"{file}, row {row}: column {name!r} must hold the bytes of an image, "
                            f"got {type(raw).__name__}"
                        )
                    yield f"{file}, row {row}", raw
                    row += 1

    return ImageSet(
        images=decoded(encoded(), grey=grey), labels=parquet_labels(files, label_column)
    )


def decoded(encoded: Iterable[tuple[str, bytes]], *, grey: bool, side: int | None = None) -> Any:
    """Return images as a uint8 tensor (N, C, H, W).

    Args:
        encoded: (where it stands, bytes) of each image.
        grey: whether to decode to one channel, else to three.
        side: resize to side x side; none: all must have one size.

    Raises:
        PlanError: names the image that cannot be decoded or has another size.
    """
    import torch
    from PIL import Image, UnidentifiedImageError

    arrays: list[NDArray[np.uint8]] = []
    for where, raw in encoded:
        try:
            image = Image.open(io.BytesIO(raw)).convert("L" if grey else "RGB")
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise PlanError(f"{where}: cannot be decoded as an image ({error})") from None
        if side is not None and image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        arrays.append(np.asarray(image))
        if arrays[-1].shape != arrays[0].shape:
            height, width = arrays[0].shape[:2]
            raise PlanError(
                f"{where}: is {image.height} x {image.width} pixels, the first image is "
                f"{height} x {width}; give images of one size"
            )
    stacked = np.stack(arrays)
    channels = stacked[:, None] if grey else stacked.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(channels))
