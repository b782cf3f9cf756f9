"""The common base of published datasets: Parquet from RAYSWEEP_DATA, else torchvision's files."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from raysweep import paths
from raysweep.datasets import SPLITS, Dataset, ImageSet, Labels, Size
from raysweep.datasets._decode import (
    encoding,
    first_size,
    parquet_images,
    parquet_row,
    split_labels,
)
from raysweep.errors import PlanError
from raysweep.identity import Stamp, cache_folder, stamp


class Published(Dataset):
    """A dataset that is read from its own pair of Parquet files, else from torchvision's download.

    Class variables:
        TORCHVISION: torchvision's class of it.
        SPLITS: arguments by which that class gives the training and the test set.
        GREY: whether images have one channel.
        SIDE: height and width in pixels of its images.
    """

    TORCHVISION: ClassVar[str]
    SPLITS: ClassVar[tuple[Mapping[str, Any], ...]] = ({"train": True}, {"train": False})
    GREY: ClassVar[bool] = False
    SIDE: ClassVar[int] = 32

    @abstractmethod
    def downloaded_labels(self) -> Labels:
        """Return the labels of `sets`."""

    @abstractmethod
    def downloaded_images(self) -> tuple[ImageSet, ImageSet]:
        """Return the decoded images of `sets`."""

    def source(self) -> str:
        """Return the kind of copy: Parquet and the encoding of its images, or torchvision."""
        pair = parquet_pair(self.name)
        if not pair:
            return "torchvision"
        return f"parquet of {_encoding(pair[0], stamp(pair[0]))}"

    def files(self) -> list[Path]:
        """Return the Parquet pair, else the files of torchvision's download, made now if need be.

        Raises:
            PlanError: if there is neither; the message names the places that were searched.
        """
        pair = parquet_pair(self.name)
        if pair:
            return list(pair)
        self.sets()
        return self._downloaded()

    def local_files(self) -> list[Path]:
        """Return the Parquet pair, else the files that torchvision has downloaded already."""
        pair = parquet_pair(self.name)
        return list(pair) if pair else self._downloaded()

    def _downloaded(self) -> list[Path]:
        # Archives are left out: what was unpacked from them is the data.
        kept = (p for p in _downloads(self.name).rglob("*") if p.suffix not in (".gz", ".zip"))
        return sorted(p for p in kept if p.is_file())

    def read_labels(self) -> Labels:
        """Return the labels."""
        pair = parquet_pair(self.name)
        return split_labels([pair[0]], [pair[1]], None) if pair else self.downloaded_labels()

    def first_sizes(self) -> list[Size]:
        """Return the size of the first image of each Parquet file, else the published size."""
        pair = parquet_pair(self.name)
        if not pair:
            return [(1 if self.GREY else 3, self.SIDE, self.SIDE)]
        return [first_size(file, None, grey=self.GREY) for file in pair]

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the decoded sets."""
        pair = parquet_pair(self.name)
        if not pair:
            return self.downloaded_images()
        labels = self.read_labels()
        return (
            parquet_images([pair[0]], labels.train, None, grey=self.GREY),
            parquet_images([pair[1]], labels.test, None, grey=self.GREY),
        )

    def where(self, split: str, row: int) -> str:
        """Return the Parquet file and its row, if the copy is one."""
        pair = parquet_pair(self.name)
        if not pair:
            return super().where(split, row)
        return parquet_row([pair[SPLITS.index(split)]], row)

    def sets(self) -> list[Any]:
        """Return torchvision's training and test sets, downloaded once.

        Raises:
            PlanError: if there is no network and no earlier download.
        """
        import torchvision.datasets

        root = _downloads(self.name)
        try:
            root.mkdir(parents=True, exist_ok=True)
            kind = getattr(torchvision.datasets, self.TORCHVISION)
            return [kind(root=str(root), download=True, **split) for split in self.SPLITS]
        except (OSError, RuntimeError) as error:
            looked = paths.setting("RAYSWEEP_DATA") or "not set"
            raise PlanError(
                f"dataset {self.name}: neither {self.name}-train.parquet and "
                f"{self.name}-test.parquet in RAYSWEEP_DATA ({looked}) nor torchvision's download "
                f"to {root} ({error}); set RAYSWEEP_DATA to a folder that holds the files, or "
                f"download on a host with internet"
            ) from None


def parquet_pair(name: str) -> tuple[Path, Path] | None:
    """Return <name>-train.parquet and <name>-test.parquet in RAYSWEEP_DATA, if both are there.

    Raises:
        PlanError: if RAYSWEEP_DATA names no folder, or one of the two is missing: to take
            torchvision's copy instead would be to take another data set.
    """
    folder = paths.setting("RAYSWEEP_DATA")
    if folder is None:
        return None
    if not folder.is_dir():
        raise PlanError(
            f"dataset {name}: RAYSWEEP_DATA must name a folder, got {str(folder)!r}; correct it, "
            f"or unset it for torchvision's download"
        )
    pair = (folder / f"{name}-train.parquet", folder / f"{name}-test.parquet")
    there = [file.name for file in pair if file.is_file()]
    missing = [file.name for file in pair if file.name not in there]
    if there and missing:
        raise PlanError(
            f"dataset {name}: RAYSWEEP_DATA ({folder}) holds {there[0]} but not {missing[0]}; "
            f"add it, or unset RAYSWEEP_DATA for torchvision's download"
        )
    return pair if there else None


@functools.cache
def _encoding(file: Path, changed: Stamp) -> str:
    del changed  # only a part of the cache's key
    return encoding(file)


def _downloads(name: str) -> Path:
    return cache_folder() / "torchvision" / name
