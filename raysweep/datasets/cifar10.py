"""CIFAR-10: 60,000 color images of 32 x 32 pixels in ten classes.

A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, technical report, University
of Toronto, 2009.

Where we differ: with a folder named by RAYSWEEP_DATA that holds cifar10-train.parquet and
cifar10-test.parquet these are used, else torchvision's download. A JPEG-encoded copy and the
original are two data sets: identity is the digest of the source files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raysweep.datasets import Dataset, ImageSet, Labels
from raysweep.datasets import _published as published


class CIFAR10(Dataset):
    """50,000 training and 10,000 test images, (N, 3, 32, 32)."""

    def source(self) -> str:
        """Return the kind of copy: Parquet and how its images are encoded, or torchvision."""
        return published.source(self.name)

    def files(self) -> list[Path]:
        """Return the Parquet pair, else the files of torchvision's download, made now if need be.

        Raises:
            PlanError: if there is neither; the message says where they were looked for.
        """
        pair = published.parquet_pair(self.name)
        if pair:
            return list(pair)
        self._sets()
        return published.files_below(self.name)

    def _sets(self) -> list[object]:
        splits = [{"train": True}, {"train": False}]
        return published.torchvision_sets(self.name, "CIFAR10", splits)

    def read_labels(self) -> Labels:
        """Return the labels."""
        pair = published.parquet_pair(self.name)
        if pair:
            return published.labels_of(pair)
        train, test = self._sets()
        return Labels(
            train=np.array(train.targets),  # type: ignore[attr-defined]
            test=np.array(test.targets),  # type: ignore[attr-defined]
            classes=tuple(train.classes),  # type: ignore[attr-defined]
        )

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the decoded sets."""
        import torch

        pair = published.parquet_pair(self.name)
        if pair:
            return published.decode_pair(pair)
        train, test = (
            ImageSet(
                images=torch.from_numpy(part.data.transpose(0, 3, 1, 2).copy()),  # type: ignore[attr-defined]
                labels=np.array(part.targets),  # type: ignore[attr-defined]
            )
            for part in self._sets()
        )
        return train, test
