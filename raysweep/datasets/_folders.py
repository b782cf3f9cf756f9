"""The common base of datasets of image files: a folder per class below each split."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from raysweep.datasets import Dataset, ImageSet, Labels
from raysweep.datasets._decode import decoded
from raysweep.errors import PlanError
from raysweep.paths import DataPath

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"})
Found = list[tuple[Path, int]]


class Folders(Dataset):
    """Images in path/<split>/<class>/, resized to `side` x `side`.

    Class variables:
        SPLITS: folders of the training and of the test set.
        INSIDE: folder below a class's folder that holds its training images.
        CROP: whether to resize the shorter side and cut the middle, else both sides are resized.
    """

    SPLITS: ClassVar[tuple[str, str]] = ("train", "test")
    INSIDE: ClassVar[str] = ""
    CROP: ClassVar[bool] = False

    path: DataPath = Field(description="folder that holds the splits")
    side: int = Field(32, ge=8, le=1024, description="height and width in pixels")
    grey: bool = Field(False, description="decode to one channel instead of three")

    @property
    def top(self) -> Path:
        """The folder that holds the splits."""
        return Path(self.path)

    def folders(self, split: str) -> list[str]:
        """Return the names of the class folders of a split, sorted.

        Raises:
            PlanError: if there is none.
        """
        top = self.top / split
        found = sorted(f.name for f in (top.iterdir() if top.is_dir() else ()) if f.is_dir())
        if not found:
            raise PlanError(
                f"dataset {self.name}: path must hold a folder {split} with a folder per "
                f"class, {str(top)!r} {'has no folder' if top.is_dir() else 'is not there'}; "
                f"divide the images between {' and '.join(self.SPLITS)}"
            )
        return found

    def chosen(self) -> list[str]:
        """Return the class folders of the training set, in the order of their labels."""
        train, test = (self.folders(split) for split in self.SPLITS)
        strays = [name for name in test if name not in train]
        if strays:
            raise PlanError(
                f"dataset {self.name}: {self.path!r} has classes of {self.SPLITS[1]} that "
                f"{self.SPLITS[0]} lacks: {', '.join(strays)}; add them to {self.SPLITS[0]}, or "
                f"remove them"
            )
        return train

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of their labels."""
        return tuple(self.chosen())

    def found(self, split: str) -> Found:
        """Return the images of a split with their labels, class by class, sorted."""
        found: Found = []
        inside = self.INSIDE if split == self.SPLITS[0] else ""
        for number, name in enumerate(self.chosen()):
            folder = self.top / split / name / inside
            images = sorted(f for f in folder.glob("*") if f.suffix.lower() in SUFFIXES)
            if not images:
                raise PlanError(
                    f"dataset {self.name}: {str(folder)!r} holds no image; every class needs "
                    f"images in {' and in '.join(self.SPLITS)} ({', '.join(sorted(SUFFIXES))})"
                )
            found += [(image, number) for image in images]
        return found

    def files(self) -> list[Path]:
        """Return all image files, training first."""
        return [file for split in self.SPLITS for file, _ in self.found(split)]

    def read_labels(self) -> Labels:
        """Return the labels, from the folders' names."""
        train, test = (np.array([n for _, n in self.found(s)]) for s in self.SPLITS)
        return Labels(train=train, test=test, classes=self.class_names())

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the decoded sets."""
        train, test = (self._decoded(self.found(split)) for split in self.SPLITS)
        return train, test

    def _decoded(self, found: Found) -> ImageSet:
        encoded = ((str(file), file.read_bytes()) for file, _ in found)
        images = decoded(encoded, total=len(found), grey=self.grey, side=self.side, crop=self.CROP)
        return ImageSet(images=images, labels=np.array([number for _, number in found]))
