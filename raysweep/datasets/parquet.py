"""A user's own images in Parquet files, in the layout that Hugging Face datasets are published in.

The layout: an image column of {bytes, path} structures (or plain bytes) and an integer label
column; class names in the schema's `huggingface` metadata, where present.

Where we differ: nothing is downloaded; the folder holds the files. Classes are mapped by name to
the list of the first training file. Images are turned as their EXIF orientation says.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from raysweep.datasets import SPLITS, Dataset, ImageSet, Labels, Size
from raysweep.datasets._decode import first_size, parquet_images, parquet_row, split_labels
from raysweep.datasets._entries import skipped
from raysweep.errors import PlanError
from raysweep.paths import DataPath


class Parquet(Dataset):
    """All files of a folder that match `train` and `test`, in the order of their names."""

    VERSION: ClassVar[int] = 2

    path: DataPath = Field(description="folder of the files")
    train: str = Field("*train*.parquet", description="pattern of the training files")
    test: str = Field("*test*.parquet", description="pattern of the test files")
    image_column: str | None = Field(None, description="none: img or image")
    label_column: str | None = Field(None, description="none: label, fine_label or labels")
    grey: bool = Field(False, description="decode to one channel instead of three")

    def _matching(self, pattern: str) -> list[Path]:
        try:
            found = sorted(file for file in Path(self.path).glob(pattern) if not skipped(file.name))
        except (ValueError, NotImplementedError) as error:
            raise PlanError(
                f"dataset {self.name}: train and test must be patterns of files below "
                f"{self.path!r}, got {pattern!r} ({error})"
            ) from None
        if not found:
            raise PlanError(
                f"dataset {self.name}: no file in {self.path!r} matches {pattern!r}; "
                f"set path to the folder that holds the files themselves, or set train and test"
            )
        for file in found:
            if not file.is_file():
                what = "a folder" if file.is_dir() else "a broken link, or no file"
                raise PlanError(
                    f"dataset {self.name}: {file}, which matches {pattern!r}, is {what}; remove "
                    f"it, or set train and test to patterns of the files alone"
                )
        return found

    def _split(self) -> tuple[list[Path], list[Path]]:
        train, test = self._matching(self.train), self._matching(self.test)
        for file in train:
            if file in test:
                raise PlanError(
                    f"dataset {self.name}: {file} matches both train {self.train!r} and test "
                    f"{self.test!r}; no image may be trained and tested on"
                )
        return train, test

    def files(self) -> list[Path]:
        """Return the training files, then the test files."""
        train, test = self._split()
        return [*train, *test]

    def where(self, split: str, row: int) -> str:
        """Return the file and its row."""
        return parquet_row(self._split()[SPLITS.index(split)], row)

    def read_labels(self) -> Labels:
        """Return labels and class names."""
        return split_labels(*self._split(), self.label_column)

    def first_sizes(self) -> list[Size]:
        """Return the size of the first image of each split."""
        return [first_size(files[0], self.image_column, grey=self.grey) for files in self._split()]

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the decoded sets."""
        labels, (train, test) = self.read_labels(), self._split()
        return (
            parquet_images(train, labels.train, self.image_column, grey=self.grey),
            parquet_images(test, labels.test, self.image_column, grey=self.grey),
        )
