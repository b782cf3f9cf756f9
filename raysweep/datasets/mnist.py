"""MNIST: 70,000 gray images of handwritten digits, 28 x 28 pixels, in ten classes.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition,
Proceedings of the IEEE 1998.

Where we differ: with a folder named by RAYSWEEP_DATA that holds mnist-train.parquet and
mnist-test.parquet these are used, decoded to one channel, else torchvision's download of the
original files. They are two data sets: identity is the digest of the source files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from raysweep.datasets import Dataset, ImageSet, Labels
from raysweep.datasets import _published as published
from raysweep.datasets._decode import parquet_images


class MNIST(Dataset):
    """60,000 training and 10,000 test images, (N, 1, 28, 28)."""

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

    def _sets(self) -> list[Any]:
        return published.torchvision_sets(self.name, "MNIST", [{"train": True}, {"train": False}])

    def read_labels(self) -> Labels:
        """Return the labels."""
        pair = published.parquet_pair(self.name)
        if pair:
            return published.labels_of(pair)
        train, test = (part.targets.numpy().astype(np.int64) for part in self._sets())
        return Labels(train=train, test=test, classes=tuple(map(str, range(10))))

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the decoded sets."""
        pair = published.parquet_pair(self.name)
        if pair:
            train, test = (parquet_images([file], None, None, grey=True) for file in pair)
            return train, test
        train, test = (
            ImageSet(
                images=part.data[:, None].clone(), labels=part.targets.numpy().astype(np.int64)
            )
            for part in self._sets()
        )
        return train, test
