"""Datasets: images or feature vectors with labels, their identity, the reserved clean split.

A dataset file defines one `Dataset`. It says which files it is made of (`files`), can tell the
labels without decoding an image (`read_labels`), and decodes everything once (`decode`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from raysweep import rng
from raysweep.arrays import IntArray as IntArray
from raysweep.counts import count_of
from raysweep.errors import FilesError, PlanError
from raysweep.identity import canonical, digest, files_digest
from raysweep.methods import Method

if TYPE_CHECKING:
    import torch

Domain = Literal["images", "features"]
SPLITS = ("train", "test")
Size = tuple[int, int, int]  # (C, H, W) of an image
MIB = 2**20
SEEDS = frozenset({"subset_seed", "clean_seed"})  # of what is drawn of the source files


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images (N, C, H, W) uint8 and labels (N,) int64, in a fixed order.

    Feature vectors are "images" (N, F, 1, 1) float32: F channels of one pixel, so that the
    normalization per channel is a normalization per feature.
    """

    images: torch.Tensor
    labels: IntArray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> Size:
        """The channels, height and width of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: IntArray) -> ImageSet:
        """Return the rows `index`, in that order."""
        import torch

        return ImageSet(images=self.images[torch.from_numpy(index)], labels=self.labels[index])


def as_floats(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as floats in [0, 1], and float values as they are."""
    import torch

    return images.float().div(255) if images.dtype == torch.uint8 else images


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The facts that a model is built from: sizes, classes, per-channel mean and deviation."""

    channels: int
    height: int
    width: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: torch.Tensor, num_classes: int) -> Shape:
        """Return the shape of a training set (N, C, H, W); uint8 values count in 1/255."""
        channels, height, width = images.shape[1:]
        values = images.numpy().transpose(1, 0, 2, 3).reshape(channels, -1)
        unit = 255 if values.dtype == np.uint8 else 1
        return cls(
            channels=channels, height=height, width=width, num_classes=num_classes,
            mean=tuple(round(float(row.mean()) / unit, 6) for row in values),
            std=tuple(round(max(float(row.std()) / unit, 1e-3), 6) for row in values),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Labels:
    """All labels of a dataset, known without decoding an image."""

    train: IntArray
    test: IntArray
    classes: tuple[str, ...]


class Dataset(Method):
    """A dataset: its source, and its cut into training, reserved clean and evaluation sets.

    The reserved clean set comes out of the test split (design decision 6): `clean_size` images,
    by default min(2,000, 20 % of the test split), drawn with `clean_seed`. Evaluation uses the
    rest. Neither depends on the seed of a trial, unless `resample` is set: then the trial of seed s
    takes `subset_seed` + s and `clean_seed` + s, so that differences between seeds hold those
    between draws of the data.

    Class variables:
        DOMAIN: what it holds.
        CLASS: what a class is in the source, as a message calls it.
        AT_PLAN: MiB of source files up to which a plan decodes and checks them; it leaves larger
            ones to the stage that decodes them.
    """

    DOMAIN: ClassVar[Domain] = "images"
    CLASS: ClassVar[str] = "class"
    AT_PLAN: ClassVar[int] = 16

    size: int | None = Field(None, ge=1, description="training images to keep, drawn at random")
    test_size: int | None = Field(None, ge=10, description="test images to keep, drawn at random")
    subset_seed: int = Field(0, ge=0, description="seed of size, test_size and label_noise")
    imbalance: float = Field(
        1.0, ge=1, description="largest class / smallest class of a long-tailed training set"
    )
    label_noise: float = Field(
        0.0, ge=0, lt=1, description="share of training labels that are replaced by another class"
    )
    clean_size: int | None = Field(None, ge=1, description="reserved clean images")
    clean_seed: int = Field(0, ge=0, description="seed of the reserved clean split")
    resample: bool = Field(
        False, description="whether each seed draws its own subsets, clean set and evaluation set"
    )

    def params(self, *, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return every parameter as JSON values; `resample` only where it is set."""
        unset = frozenset() if self.resample else frozenset({"resample"})
        return super().params(leave_out=leave_out | unset)

    def identity(self, *, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the JSON values that it is rebuilt from: the seeds that were drawn say it all."""
        return super().identity(leave_out=leave_out | {"resample"})

    def of_seed(self, seed: int) -> Self:
        """Return the dataset as a trial of some seed draws it."""
        if not self.resample:
            return self
        seeds = {name: getattr(self, name) for name in SEEDS}
        return self.model_copy(update={n: (own + seed) % 2**63 for n, own in seeds.items()})

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the encoded source files, in a fixed order.

        Raises:
            PlanError: if they are missing; the message names the places that were searched.
        """

    def local_files(self) -> list[Path]:
        """Return the source files that are on this host; empty if they are to be downloaded.

        Raises:
            PlanError: as `files` does.
        """
        return self.files()

    @abstractmethod
    def read_labels(self) -> Labels:
        """Return all labels of the source files without decoding images."""

    @abstractmethod
    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the whole training and test sets of the source files."""

    def where(self, split: str, row: int) -> str:
        """Return the name of the place of a row of a whole split in the source, for messages."""
        return f"dataset {self.name}: {split} image {row}"

    def column(self, feature: int) -> str:
        """Return the name of a feature, as a message names it."""
        return f"feature {feature}"

    def caution(self) -> str:
        """Return a sentence on what the source holds beside the data, which a plan shows; or ""."""
        return ""

    def checked_labels(self) -> Labels:
        """Return all labels, of which each is a class that has training images.

        Raises:
            PlanError: if the source's labels are not like that.
        """
        from raysweep.datasets._checks import check_labels

        labels = self.read_labels()
        check_labels(self, labels)
        return labels

    def checked_images(self, labels: Labels) -> tuple[ImageSet, ImageSet]:
        """Return the whole training and test sets, checked against the labels and each other.

        Raises:
            PlanError: if they cannot be decoded, or do not fit.
        """
        from raysweep.datasets._checks import check_images

        train, test = self.decode()
        check_images(self, labels, train, test)
        return train, test

    def first_sizes(self) -> list[Size]:
        """Return the size of the first training and of the first test image.

        Nothing else is decoded; empty where that cannot be told without decoding all.

        Raises:
            PlanError: if they cannot be decoded.
        """
        return []

    def is_small(self) -> bool:
        """Return whether a plan decodes and checks the source files."""
        return sum(file.stat().st_size for file in self.files()) <= self.AT_PLAN * MIB

    def checked_size(self, labels: Labels, source: str, *, small: bool) -> Size | None:
        """Return the size of the images, as far as a plan can tell in little time.

        The data of a source digest are decoded and checked once, if they are small; else the first
        images alone are looked at.

        Raises:
            PlanError: as `checked_images` does.
        """
        from raysweep.datasets._checks import check_first

        checked = self.labeled(self.name, SEEDS), source
        if checked not in _SIZES:
            if small:
                _SIZES[checked] = self.checked_images(labels)[0].size
            else:
                _SIZES[checked] = check_first(self)
        return _SIZES[checked]

    def content_digest(self) -> str:
        """Return "": the plan adds the `source_digest`, of the files that are the data."""
        return ""

    def source(self) -> str:
        """Return the name of the published copy that the files are, or "" if there is only one."""
        return ""

    @property
    def label(self) -> str:
        """The name with its parameters, and the source: two copies are two data sets.

        Seeds that each trial draws are no part of it: the trials of one cell have one label.
        """
        drawn = SEEDS if self.resample else frozenset()
        named, source = self.labeled(self.name, drawn), self.source()
        return f"{named} [{source}]" if source else named

    def source_digest(self, labels: Labels) -> str:
        """Return the identity of the data: bytes of the files, labels, their order and classes.

        The bytes alone would not do: an image that moves to another class's folder, or from the
        training to the test files, may leave the sequence of all bytes as it was.
        """
        cut = [digest(part.astype("<i8").tobytes()) for part in (labels.train, labels.test)]
        return digest(canonical([files_digest(self.files()), *cut, *labels.classes]))

    def check_source(self, labels: Labels, planned: str) -> None:
        """Make sure, on the host of a stage, that the files are the planned ones.

        Raises:
            FilesError: if they are not.
        """
        if self.source_digest(labels) != planned:
            raise FilesError(
                f"dataset {self.label}: the source files of this host differ from those that were "
                f"planned; give all hosts the same files, or plan again if the files have changed"
            )

    def training_labels(self, labels: Labels, rows: IntArray) -> IntArray:
        """Return the given labels of the training rows: `label_noise` of them are wrong.

        floor(label_noise * N) of them get another class, each with the same probability. Models are
        trained on these labels, and attacks and defenses see them. Test labels are never touched.
        """
        given = labels.train[rows].copy()
        draw = rng.generator(self.subset_seed, "label noise")
        wrong = draw.permutation(len(rows))[: count_of(self.label_noise, len(rows))]
        shift = draw.integers(1, max(len(labels.classes), 2), len(wrong))
        given[wrong] = (given[wrong] + shift) % len(labels.classes)
        return given

    def _long_tail(self, labels: Labels) -> IntArray:
        """Return training rows with n_c = n_0 * imbalance^(-c / (K - 1)) images of class c.

        Y. Cui et al.: Class-Balanced Loss, CVPR 2019, arXiv:1901.05555; n_0 is the
        size of the smallest class of the source, so that every class has enough.
        """
        rows = np.arange(len(labels.train))
        if self.imbalance == 1:
            return rows
        classes = len(labels.classes)
        sizes = np.bincount(labels.train, minlength=classes)
        order = rng.generator(self.subset_seed, "imbalance").permutation(rows)
        kept = []
        for c in range(classes):
            part = self.imbalance ** (-c / max(classes - 1, 1)) * (1 + 1e-12)  # 49 / 49 is 1
            wanted = max(int(sizes.min() * part), 1)
            kept.append(order[labels.train[order] == c][:wanted])
        return np.sort(np.concatenate(kept))

    def kept(self, labels: Labels) -> tuple[IntArray, IntArray, IntArray]:
        """Return the row numbers of the training, reserved clean and evaluation sets.

        The training rows index the training files, the other two the test files.

        Raises:
            PlanError: if more images are asked for than there are.
        """

        def draw(name: str, size: int | None, total: int) -> IntArray:
            if size is None:
                return np.arange(total)
            if size > total:
                raise PlanError(
                    f"dataset {self.name}: {name} must be at most {total}, the images there are, "
                    f"got {size}"
                )
            return np.sort(rng.generator(self.subset_seed, name).permutation(total)[:size])

        tail = self._long_tail(labels)
        train = tail[draw("size", self.size, len(tail))]
        test = draw("test_size", self.test_size, len(labels.test))
        size = self.clean_size if self.clean_size is not None else min(2000, len(test) // 5)
        if size >= len(test):
            raise PlanError(
                f"dataset {self.name}: clean_size must leave images to evaluate on, got {size} of "
                f"{len(test)} test images"
            )
        order = rng.generator(self.clean_seed, "clean split").permutation(len(test))
        return train, np.sort(test[order[:size]]), np.sort(test[order[size:]])


_SIZES: dict[tuple[str, str], Size | None] = {}  # by label and source digest, in this process
