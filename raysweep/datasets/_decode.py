"""Encoded images → uint8 arrays: Parquet in the style of Hugging Face, and image files."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysweep.datasets import ImageSet, IntArray, Labels, Size
from raysweep.datasets._checks import named, numbered, renumbered
from raysweep.datasets._entries import placeholder_of
from raysweep.errors import PlanError
from raysweep.paths import placeholder

if TYPE_CHECKING:
    import pyarrow.parquet
    import torch
    from PIL import Image

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels", "coarse_label")
FIRST_IS_WHOLE = ("MPO", "PSD")  # further pictures are previews or layers


def opened(file: Path) -> pyarrow.parquet.ParquetFile:
    """Open a Parquet file.

    Raises:
        PlanError: if it is no Parquet file.
    """
    import pyarrow.parquet

    with reading(file):
        return pyarrow.parquet.ParquetFile(file)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Let a fault of a Parquet file's bytes name the file.

    Raises:
        PlanError: for whatever the block raises on damaged bytes.
    """
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException, MemoryError) as error:
        detail = " ".join(str(error).split())[:300]
        raise PlanError(
            f"{file}: cannot be read as Parquet"
            + (
                f": it {fault}"
                if (fault := placeholder_of(file))
                else f" ({detail}); write or copy it again"
            )
        ) from None


def column(file: Path, chosen: str | None, known: tuple[str, ...]) -> str:
    """Return the name of a file's image or label column."""
    names = opened(file).schema_arrow.names
    wanted = (chosen,) if chosen else known
    for name in wanted:
        if names.count(name) == 1:
            return str(name)
        if name in names:
            raise PlanError(f"{file}: has several columns {name!r}; leave one of them")
    raise PlanError(
        f"{file}: has no column {repr(chosen) if chosen else ' or '.join(known)}; its columns are "
        f"{', '.join(names)}"
    )


def split_labels(train: list[Path], test: list[Path], label_column: str | None) -> Labels:
    """Return the labels and class names of training and test files.

    Files that name their classes are mapped, by name, to the class list of the first of them.

    Raises:
        PlanError: if a file has no rows, or labels that are no numbers of its classes, or if the
            files do not name the same classes.
    """
    files = [*train, *test]
    parts = {file: _labels(file, label_column) for file in files}
    lists = {file: _names(file, label_column) for file in files}
    common, unnamed = lists[train[0]], [file for file in files if lists[file] is None]
    if unnamed and len(unnamed) < len(files):
        other = next(file for file in files if file not in unnamed)
        raise PlanError(
            f"{unnamed[0]}: names no classes, but {other.name} does; write the same classes to all "
            f"files, in the metadata that Hugging Face datasets writes"
        )
    if common is not None:
        for file, own in lists.items():
            assert own is not None
            parts[file] = renumbered(own, common, file)[_within(file, parts[file], len(own))]
    first, second = (np.concatenate([parts[file] for file in split]) for split in (train, test))
    return Labels(
        train=first, test=second, classes=common or numbered(first, second, train[0].parent)
    )


def _labels(file: Path, label_column: str | None) -> IntArray:
    """Return the labels of a file as they stand there, without decoding images."""
    import pyarrow

    name = column(file, label_column, LABEL_COLUMNS)
    with reading(file):
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
    numbers = values.to_numpy()
    return _within(file, numbers).astype(np.int64)


def _within(
    file: Path, labels: NDArray[np.integer], classes: int | None = None
) -> NDArray[np.integer]:
    """Return the labels of a file, whose classes are counted where it names them.

    Raises:
        PlanError: if one is no number of a class.
    """
    most = np.iinfo(np.int64).max if classes is None else classes - 1
    wrong = np.flatnonzero((labels < 0) | (labels > most))
    if len(wrong):
        to = "" if classes is None else f" to {most}, the classes it names"
        raise PlanError(
            f"{file}, row {wrong[0]}: labels must be from 0{to}, got "
            f"{labels[wrong[0]]}, and {labels.min()} to {labels.max()} in all; leave out what has "
            f"no label, and number the classes from 0"
        )
    return labels


def _names(file: Path, label_column: str | None) -> tuple[str, ...] | None:
    """Return class names from Hugging Face metadata, if there are any."""
    metadata = opened(file).schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[column(file, label_column, LABEL_COLUMNS)]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(names, dict) and names.keys() == set(map(str, range(len(names)))):
        names = [names[str(number)] for number in range(len(names))]
    return named(names, file) if isinstance(names, list) and names else None


def parquet_row(files: list[Path], row: int) -> str:
    """Return the file and its row of a row of all files."""
    for file in files:
        rows = opened(file).metadata.num_rows
        if row < rows:
            return f"{file}, row {row}"
        row -= rows
    raise AssertionError("a row that no file holds")


def parquet_images(
    files: list[Path], labels: IntArray, image_column: str | None, *, grey: bool
) -> ImageSet:
    """Decode some Parquet files, in order, to one set with these labels."""
    encoded = (image for file in files for image in _encoded(file, image_column))
    return ImageSet(images=decoded(encoded, total=len(labels), grey=grey), labels=labels)


def _encoded(file: Path, image_column: str | None) -> Iterator[tuple[str, bytes]]:
    row, name = 0, column(file, image_column, IMAGE_COLUMNS)
    with reading(file):
        for batch in opened(file).iter_batches(columns=[name], batch_size=500):
            for value in batch.column(0).to_pylist():
                raw: Any = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(raw, bytes):
                    raise PlanError(
                        f"{file}, row {row}: column {name!r} must hold the bytes of an image, "
                        f"got {type(raw).__name__}; write the images into the file"
                    )
                yield f"{file}, row {row}", raw
                row += 1


def encoding(file: Path) -> str:
    """Return the encoding of the first image of a Parquet file, such as `png`."""
    from PIL import Image

    where, raw = next(_encoded(file, None))
    with _decoding(where, raw):
        return str(Image.open(io.BytesIO(raw)).format).lower()


def first_size(file: Path, image_column: str | None, *, grey: bool) -> Size:
    """Return the size of the first image of a Parquet file, which alone is decoded.

    Raises:
        PlanError: if the file holds none, or it cannot be decoded.
    """
    where, raw = next(_encoded(file, image_column), (str(file), b""))
    channels, height, width = _pixels(where, raw, "L" if grey else "RGB", None, crop=False).shape
    return channels, height, width


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


@contextmanager
def _decoding(where: str, raw: bytes) -> Iterator[None]:
    """Let a fault of an image's bytes name its place."""
    try:
        yield
    except PlanError:
        raise
    except Exception as error:  # noqa: BLE001  Pillow raises whatever bytes provoke
        said = re.sub(r" ?<.*? at 0x.*?>", "", str(error))  # an address says nothing
        raise PlanError(
            f"{where}: cannot be decoded as an image: it "
            + (
                placeholder(raw[:64])
                or f"was cut off or damaged, is none, or too large ({said}); copy it again"
            )
            + ", or remove it"
        ) from None


def _pixels(
    where: str, raw: bytes, mode: str, side: int | None, *, crop: bool
) -> NDArray[np.uint8]:
    """Return one image, (C, H, W), turned as its EXIF orientation says.

    Raises:
        PlanError: if it cannot be decoded, or holds what 8 bits of grey or RGB cannot.
    """
    from PIL import Image, ImageOps

    with _decoding(where, raw):
        encoded = Image.open(io.BytesIO(raw))
        _check_representable(where, encoded)
        turned = ImageOps.exif_transpose(encoded)
        if turned.has_transparency_data:
            turned = turned.convert("RGBA")
            least = int(np.asarray(turned.getchannel("A")).min())
            if least < 255:
                raise PlanError(
                    f"{where}: has transparent pixels, alpha {least}; lay it on a background, and "
                    f"save it without alpha"
                )
        image = turned.convert(mode)
        if side is not None and image.size != (side, side):
            fit = ImageOps.fit if crop else Image.Image.resize
            image = fit(image, (side, side), Image.Resampling.BILINEAR)
        array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _check_representable(where: str, encoded: Image.Image) -> None:
    if encoded.mode.startswith(("I", "F")):  # Pillow would clip them to white
        raise PlanError(
            f"{where}: holds {encoded.mode} pixels, more than 8 bits each; convert it to 8 bits"
        )
    frames = getattr(encoded, "n_frames", 1)
    if frames > 1 and encoded.format not in FIRST_IS_WHOLE:
        raise PlanError(
            f"{where}: holds {frames} pictures; save the one that counts as a file of its own"
        )
