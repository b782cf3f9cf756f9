"""The common base of datasets of image files: a folder per class below each split."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from raysweep.datasets import SPLITS, Dataset, ImageSet, Labels, Size
from raysweep.datasets._decode import decoded
from raysweep.datasets._entries import content, entries, files_below, is_image, normal
from raysweep.errors import PlanError
from raysweep.paths import DataPath

Found = list[tuple[Path, int]]


class Folders(Dataset):
    """Images in path/<split>/<class>/ and below, resized to `side` x `side`.

    Every file with a suffix that Pillow reads is one, turned as its EXIF orientation says. Entries
    that are hidden, of the system or an editor's are skipped; other files are counted by `caution`.

    Class variables:
        SPLITS: folders of the training and of the test set.
        INSIDE: folder below a class's folder that holds its training images.
        CROP: whether to resize the shorter side and cut the middle, else both sides are resized.
    """

    VERSION: ClassVar[int] = 2
    CLASS: ClassVar[str] = "folder"
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

    def folders(self, split: str) -> dict[str, Path]:
        """Return the class folders of a split by their names in Unicode's form NFC, sorted.

        Raises:
            PlanError: if there is none, or two have one name.
        """
        top = self.top / split
        there = entries(top) if top.is_dir() else []
        found: dict[str, Path] = {}
        for path, inner in there:
            if inner and found.setdefault(normal(path.name), path) != path:
                raise PlanError(
                    f"dataset {self.name}: {str(top)!r} holds two folders {normal(path.name)!r}, "
                    f"which are written in other signs, {found[normal(path.name)].name!a} "
                    f"and {path.name!a}; put their images into one"
                )
        if not found:
            raise PlanError(
                f"dataset {self.name}: path must hold a folder {split} with a folder per "
                f"class, {str(top)!r} {self._instead(top, [path for path, _ in there])}"
            )
        return found

    def _instead(self, top: Path, there: list[Path]) -> str:
        """Return the fault of a split that has no class folders, and the remedy."""
        flat = next((file for file in there if is_image(file)), None)
        if flat:
            return (
                f"holds images themselves, {flat.name!r} first; put the images of each class into "
                f"a folder named as the class, such as {str(top / 'cat' / flat.name)!r}"
            )
        if top.is_dir():
            return f"has no folder; divide the images between {' and '.join(self.SPLITS)}"
        beside = [path.name for path, _ in entries(self.top)[:9]] if self.top.is_dir() else []
        return (
            "is not there; "
            + (f"{self.path!r} holds {', '.join(map(repr, beside))}; " if beside else "")
            + f"divide the images between {' and '.join(self.SPLITS)}"
        )

    def chosen(self) -> list[str]:
        """Return the class folders of the training set, in the order of their labels."""
        train, test = (list(self.folders(split)) for split in self.SPLITS)
        strays = [name for name in test if name not in train]
        if strays:
            raise PlanError(
                f"dataset {self.name}: {self.path!r} has classes of {self.SPLITS[1]} that "
                f"{self.SPLITS[0]} lacks: {', '.join(map(repr, strays))}; add them to "
                f"{self.SPLITS[0]}, or remove them"
            )
        return train

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of their labels."""
        return tuple(self.chosen())

    def found(self, split: str) -> Found:
        """Return the images of a split with their labels, class by class, sorted.

        Raises:
            PlanError: if a class has none, or an entry is neither a file nor a folder.
        """
        found: Found = []
        for number, folder in enumerate(self._class_folders(split)):
            below = list(files_below(folder)) if folder.is_dir() else []
            images = [file for file in below if is_image(file)]
            if not images:
                beside = f" but {len(below)} other files, {below[0].name!r} first" if below else ""
                raise PlanError(
                    f"dataset {self.name}: {str(folder)!r} holds no image{beside}; every class "
                    f"needs images in {' and in '.join(self.SPLITS)}, with a suffix such as .png "
                    f"that Pillow reads"
                )
            found += [(image, number) for image in images]
        return found

    def _class_folders(self, split: str) -> list[Path]:
        inside = self.INSIDE if split == self.SPLITS[0] else ""
        there = self.folders(split)
        return [there.get(name, self.top / split / name) / inside for name in self.chosen()]

    def caution(self) -> str:
        """Return a sentence on the files that are left out; "" without any."""
        loose = [
            path for split in self.SPLITS for path, inner in entries(self.top / split) if not inner
        ]
        others = loose + [
            file for split in self.SPLITS for top in self._class_folders(split)
            for file in files_below(top) if not is_image(file)
        ]  # fmt: skip
        if not others:
            return ""
        return (
            f"{len(others)} files that are in no folder of a class, or whose suffix is none that "
            f"Pillow reads, are left out, {str(others[0])!r} first"
        )

    def where(self, split: str, row: int) -> str:
        """Return the image's file."""
        return str(self.found(self.SPLITS[SPLITS.index(split)])[row][0])

    def files(self) -> list[Path]:
        """Return all image files, training first."""
        return [file for split in self.SPLITS for file, _ in self.found(split)]

    def read_labels(self) -> Labels:
        """Return the labels, from the folders' names."""
        train, test = (np.array([n for _, n in self.found(s)]) for s in self.SPLITS)
        return Labels(train=train, test=test, classes=self.class_names())

    def first_sizes(self) -> list[Size]:
        """Return the size that all images are resized to."""
        return [(1 if self.grey else 3, self.side, self.side)]

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the decoded sets."""
        train, test = (self._decoded(self.found(split)) for split in self.SPLITS)
        return train, test

    def _decoded(self, found: Found) -> ImageSet:
        encoded = ((str(file), content(file)) for file, _ in found)
        images = decoded(encoded, total=len(found), grey=self.grey, side=self.side, crop=self.CROP)
        return ImageSet(images=images, labels=np.array([number for _, number in found]))
