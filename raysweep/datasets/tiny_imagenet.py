"""Tiny ImageNet: 200 classes of ImageNet at 64 x 64 pixels, 500 training images each.

Y. Le, X. Yang: Tiny ImageNet Visual Recognition Challenge, Stanford CS231N 2015.

    path/train/<wnid>/images/*.JPEG    path/val/images/*.JPEG    path/val/val_annotations.txt

Where we differ: `path` is the unpacked folder tiny-imagenet-200. Its validation set is the test
set, as everywhere in the field; the published test set has no labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from raysweep.datasets._entries import content
from raysweep.datasets._folders import Folders, Found
from raysweep.errors import PlanError


class TinyImageNet(Folders):
    """Images (N, 3, 64, 64); classes are numbered by their sorted WordNet ids."""

    SPLITS: ClassVar[tuple[str, str]] = ("train", "val")
    INSIDE: ClassVar[str] = "images"

    side: int = Field(64, ge=8, le=1024, description="height and width in pixels")

    def chosen(self) -> list[str]:
        """Return the class folders of the training set."""
        return list(self.folders("train"))

    def class_names(self) -> tuple[str, ...]:
        """Return the names of words.txt, else the WordNet ids."""
        words = self.top / "words.txt"
        lines = content(words).decode("utf-8", "replace").split("\n") if words.is_file() else []
        names = dict(line.rstrip("\r").split("\t", 1) for line in lines if "\t" in line)
        return tuple(names.get(wnid, wnid) for wnid in self.chosen())

    def caution(self) -> str:
        """Return "": what lies beside the images is known."""
        return ""

    def found(self, split: str) -> Found:
        """Return the images of a split with their labels, for val from its annotations."""
        if split == "train":
            return super().found(split)
        notes = self.top / "val" / "val_annotations.txt"
        if not notes.is_file():
            raise PlanError(
                f"dataset {self.name}: path must hold val/val_annotations.txt, {str(notes)!r} is "
                f"missing; give the unpacked folder tiny-imagenet-200"
            )
        numbers = {wnid: number for number, wnid in enumerate(self.chosen())}
        found: Found = []
        named: set[Path] = set()
        for row, line in enumerate(content(notes).decode("utf-8", "replace").splitlines(), 1):
            image, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0]
            file = self.top / "val" / "images" / image
            if wnid not in numbers or not file.is_file() or file in named:
                raise PlanError(
                    f"{notes}, line {row}: must name an image of val/images, once, and a class of "
                    f"train, got {line!r}; unpack the archive again"
                )
            named.add(file)
            found.append((file, numbers[wnid]))
        return sorted(found)
