"""A user's own image files: one folder per class, below `train` and `test`.

    path/train/<class>/*.png      path/test/<class>/*.png

The layout is that of torchvision's ImageFolder.

Where we differ: classes are those of the training folder, in the order of their names; all images
are resized bilinearly to one side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from raysweep.datasets import Dataset, ImageSet, Labels
from raysweep.datasets._decode import decoded
from raysweep.errors import PlanError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"})


class ImageFolder(Dataset):
    """Images below `path`, resized to `side` x `side`."""

    path: str = Field(description="folder that holds train and test")
    side: int = Field(32, ge=8, le=1024, description="height and width in pixels")
    grey: bool = Field(False, description="decode to one channel instead of three")

    def _classes(self) -> list[str]:
        found = {}
        for split in ("train", "test"):
            top = Path(self.path).expanduser() / split
            folders = top.iterdir() if top.is_dir() else ()
            found[split] = sorted(folder.name for folder in folders if folder.is_dir())
            if not found[split]:
                raise PlanError(
                    f"dataset {self.name}: path must hold a folder {split} with a folder per "
                    f"class, {str(top)!r} is none"
                )
        strays = [name for name in found["test"] if name not in found["train"]]
        if strays:
            raise PlanError(
                f"dataset {self.name}: {self.path!r} has classes of test that train lacks: "
                f"{', '.join(strays)}; add them to train, or remove them"
            )
        return found["train"]

    def _found(self, split: str) -> list[tuple[Path, int]]:
        found = []
        for number, name in enumerate(self._classes()):
            folder = Path(self.path).expanduser() / split / name
            images = sorted(f for f in folder.glob("*") if f.suffix.lower() in SUFFIXES)
            if not images:
                raise PlanError(
                    f"dataset {self.name}: {str(folder)!r} holds no image; every class needs "
                    f"images in train and in test ({', '.join(sorted(SUFFIXES))})"
                )
            found += [(image, number) for image in images]
        return found

    def files(self) -> list[Path]:
        """Return all image files, training first."""
        return [file for split in ("train", "test") for file, _ in self._found(split)]

    def read_labels(self) -> Labels:
        """Return the labels, from the folders' names."""
        train, test = (np.array([n for _, n in self._found(s)]) for s in ("train", "test"))
        return Labels(train=train, test=test, classes=tuple(self._classes()))

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the decoded sets."""
        train, test = (
            ImageSet(
                images=decoded(
                    ((str(f), f.read_bytes()) for f, _ in found),
                    total=len(found),
                    grey=self.grey,
                    side=self.side,
                ),
                labels=np.array([n for _, n in found]),
            )
            for found in (self._found("train"), self._found("test"))
        )
        return train, test
