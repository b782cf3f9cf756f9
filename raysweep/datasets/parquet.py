"""A user's own images in Parquet files, in the layout that Hugging Face datasets are published in.

The layout: an image column of {bytes, path} structures (or plain bytes) and an integer label
column; class names in the schema's `huggingface` metadata, where present.

Where we differ: nothing is downloaded; the folder holds the files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from raysweep.datasets import Dataset, ImageSet, Labels
from raysweep.datasets._decode import class_names, parquet_images, parquet_labels
from raysweep.errors import PlanError


class Parquet(Dataset):
    """All files of a folder that match `train` and `test`, in the order of their names."""

    path: str = Field(description="folder of the files")
    train: str = Field("*train*.parquet", description="pattern of the training files")
    test: str = Field("*test*.parquet", description="pattern of the test files")
    image_column: str | None = Field(None, description="none: img or image")
    label_column: str | None = Field(None, description="none: label, fine_label or labels")
    grey: bool = Field(False, description="decode to one channel instead of three")

    def _matching(self, pattern: str) -> list[Path]:
        found = sorted(Path(self.path).expanduser().glob(pattern))
        if not found:
            raise PlanError(
                f"dataset {self.name}: no file in {self.path!r} matches {pattern!r}; "
                f"set path, train and test"
            )
        return found

    def files(self) -> list[Path]:
        """Return the training files, then the test files."""
        return [*self._matching(self.train), *self._matching(self.test)]

    def read_labels(self) -> Labels:
        """Return labels and class names."""
        train = self._matching(self.train)
        labels = parquet_labels(train, self.label_column)
        test = parquet_labels(self._matching(self.test), self.label_column)
        both = np.concatenate([labels, test])
        names = class_names(train[0], self.label_column, both)
        if both.min() < 0 or both.max() >= len(names):
            raise PlanError(
                f"dataset {self.name}: labels must be from 0 to {len(names) - 1}, the classes "
                f"that are named, got {both.min()} to {both.max()}"
            )
        return Labels(train=labels, test=test, classes=names)

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the decoded sets."""
        train, test = (
            parquet_images(
                self._matching(pattern), self.image_column, self.label_column, grey=self.grey
            )
            for pattern in (self.train, self.test)
        )
        return train, test
