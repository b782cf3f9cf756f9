"""The one check of every dataset: its labels, classes and decoded splits agree with each other.

Formats read; what is read is judged here, before any training, and a fault is one message that
names the file, the row or column, the value, the rule and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysweep.datasets import Dataset, ImageSet, IntArray, Labels, Size
from raysweep.datasets._entries import normal
from raysweep.errors import PlanError
from raysweep.paths import placeholder

ROWS = 4096  # feature vectors looked at together: a mask of all would take much memory


def numbered(train: IntArray, test: IntArray, where: object) -> tuple[str, ...]:
    """Return the names of classes that nobody names: the numbers up to the highest label.

    Raises:
        PlanError: if there would be more classes than images, which slipped labels give.
    """
    highest, images = int(max(train.max(), test.max())), len(train) + len(test)
    if highest >= images:
        raise PlanError(
            f"{where}: label {highest} makes {highest + 1} classes of {images} images; number the "
            f"classes from 0, without gaps"
        )
    return tuple(str(number) for number in range(highest + 1))


def named(given: Sequence[object], where: object) -> tuple[str, ...]:
    """Return class names that a source gives, as text.

    Raises:
        PlanError: if a name is no text and no number, or stands there twice.
    """
    names = [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in given]
    texts = tuple(normal(str(name)) for name in names)
    for number, name in enumerate(names):
        if not isinstance(name, str | int) or isinstance(name, bool) or not texts[number].strip():
            raise PlanError(
                f"{where}: class {number} must be named by a text, got {name!r}; write a list of "
                f"names"
            )
        if texts.index(texts[number]) != number:
            raise PlanError(
                f"{where}: classes {texts.index(texts[number])} and {number} are both named "
                f"{texts[number]!r}; give each class a name of its own"
            )
    return texts


def renumbered(own: tuple[str, ...], common: tuple[str, ...], where: object) -> IntArray:
    """Return the number in the common class list of each class of a file's own list.

    Raises:
        PlanError: if the lists do not hold the same names.
    """
    odd = sorted(set(own) ^ set(common))
    if odd:
        raise PlanError(
            f"{where}: names {len(own)} classes, the first training file names {len(common)}; "
            f"{', '.join(map(repr, odd[:5]))} stand{'s' * (len(odd) == 1)} in one list alone; "
            f"write the same classes to all files"
        )
    return np.array([common.index(name) for name in own], np.int64)


def check_labels(dataset: Dataset, labels: Labels) -> None:
    """Make sure that every label is a class, and that every class has a training image.

    Raises:
        PlanError: if not.
    """
    classes = len(labels.classes)
    for split, values in (("train", labels.train), ("test", labels.test)):
        if not len(values):
            raise PlanError(f"{_source(dataset)}: the {split} split holds no image; add some")
        wrong = np.flatnonzero((values < 0) | (values >= classes))
        if len(wrong):
            row = int(wrong[0])
            raise PlanError(
                f"{dataset.where(split, row)}: labels must be from 0 to {classes - 1}, the classes "
                f"there are, got {values[row]}, and {values.min()} to {values.max()} in all; "
                f"number the classes from 0"
            )
    if classes < 2:
        raise PlanError(
            f"{_source(dataset)}: must have at least 2 classes, all images are of class "
            f"{', '.join(labels.classes)!r}; add images of another class"
        )
    _check_trained(dataset, labels)


def _check_trained(dataset: Dataset, labels: Labels) -> None:
    bare = np.flatnonzero(np.bincount(labels.train, minlength=len(labels.classes)) == 0)
    if not len(bare):
        return
    tested = np.flatnonzero(np.isin(labels.test, bare))
    first = int(labels.test[tested[0]]) if len(tested) else int(bare[0])
    where = dataset.where("test", int(tested[0])) if len(tested) else _source(dataset)
    name = labels.classes[first]
    said = f"class {first}" + ("" if name == str(first) else f" ({name!r})")
    raise PlanError(
        f"{where}: {said} has no training image, as {len(bare)} of {len(labels.classes)} classes "
        f"in all; training labels are from {labels.train.min()} to {labels.train.max()}. Number "
        f"the classes from 0 without gaps, and name and test on those alone that are trained"
    )


def check_images(dataset: Dataset, labels: Labels, train: ImageSet, test: ImageSet) -> None:
    """Make sure that both splits hold what a model can be trained and tested on.

    Raises:
        PlanError: if they differ in shape, do not fit the labels, or hold values that are no
            finite numbers.
    """
    vectors = dataset.DOMAIN == "features"
    for split, part, given in (("train", train, labels.train), ("test", test, labels.test)):
        images = part.images
        wanted = "torch.float32" if vectors else "torch.uint8"
        if str(images.dtype) != wanted or images.ndim != 4 or 0 in images.shape:
            raise PlanError(
                f"{_source(dataset)}: the {split} split must be {wanted} of shape "
                f"(N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}"
            )
        if len(images) != len(given) or not np.array_equal(part.labels, given):
            raise PlanError(
                f"{_source(dataset)}: the {split} split holds {len(images)} images for "
                f"{len(given)} labels, or their labels are not those that were read first; the "
                f"files have changed, or the format reads them in two ways"
            )
        if not vectors and images.shape[1] not in (1, 3):
            raise PlanError(
                f"{dataset.where(split, 0)}: images must have 1 or 3 channels, got "
                f"{images.shape[1]}; take the channels that count"
            )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise PlanError(_differ(dataset, train.size, test.size))
    if vectors:
        _check_finite(dataset, "train", train)
        _check_finite(dataset, "test", test)


def check_first(dataset: Dataset) -> Size | None:
    """Return the size of the first images of both splits, if it can be told.

    Raises:
        PlanError: if they cannot be decoded or differ, or if a source file is empty.
    """
    for file in dataset.files():
        if not file.stat().st_size:
            raise PlanError(f"{file}: {placeholder(b'')}")
    sizes = dataset.first_sizes()
    if len(set(sizes)) > 1:
        raise PlanError(_differ(dataset, *sizes))
    return sizes[0] if sizes else None


def _differ(dataset: Dataset, train: Size, test: Size) -> str:
    (shown, other) = (
        f"{height} x {width} x {channels}" for channels, height, width in (test, train)
    )
    return (
        f"{dataset.where('test', 0)}: test images are {shown}, training images {other}; give both "
        f"splits one size and the same channels"
    )


def _source(dataset: Dataset) -> str:
    path = getattr(dataset, "path", None)
    return f"dataset {dataset.name}" + (f" at {path}" if path else "")


def _check_finite(dataset: Dataset, split: str, part: ImageSet) -> None:
    values = part.images.flatten(1).numpy()
    for first in range(0, len(values), ROWS):
        odd = np.argwhere(~np.isfinite(values[first : first + ROWS]))
        if len(odd):
            row, feature = int(odd[0][0]) + first, int(odd[0][1])
            raise PlanError(
                f"{dataset.where(split, row)}, {dataset.column(feature)}: must be a finite number "
                f"that float32 holds, got {values[row, feature]}; fill or leave out what is "
                f"missing, and scale what is larger"
            )
