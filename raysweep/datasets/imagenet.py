"""ImageNet-1k: photographs in 1,000 classes, or in a list of them.

O. Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, IJCV 2015,
arXiv:1409.0575.

    path/train/<wnid>/*.JPEG      path/val/<wnid>/*.JPEG

Where we differ: the shorter side is resized to `side` and the middle is cut out once, when the data
are decoded; random resized crops of the large pictures are not drawn. Classes are named by their
WordNet ids and numbered in the order of `classes`, else sorted.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from raysweep.datasets._folders import Folders
from raysweep.errors import PlanError


class ImageNet(Folders):
    """Images (N, 3, side, side); the validation set is the test set."""

    SPLITS: ClassVar[tuple[str, str]] = ("train", "val")
    CROP: ClassVar[bool] = True

    side: int = Field(224, ge=8, le=1024, description="height and width in pixels")
    classes: tuple[str, ...] | None = Field(
        None, min_length=2, description="WordNet ids of a subset, in the order of its labels"
    )

    def chosen(self) -> list[str]:
        """Return the class folders in the order of their labels.

        Raises:
            PlanError: if a class of the list is named twice, or missing in a split.
        """
        there = [set(self.folders(split)) for split in self.SPLITS]
        names = list(self.classes or sorted(there[0]))
        twice = sorted({name for name in names if names.count(name) > 1}) if self.classes else []
        if twice:
            raise PlanError(
                f"dataset {self.name}: classes must name each class once, {', '.join(twice)} "
                f"stand there twice"
            )
        for split, found in zip(self.SPLITS, there, strict=True):
            missing = [name for name in names if name not in found]
            if missing:
                raise PlanError(
                    f"dataset {self.name}: {str(self.top / split)!r} has no folder "
                    f"{', '.join(missing[:5])}; leave these classes out of `classes`, or add them"
                )
        return names
