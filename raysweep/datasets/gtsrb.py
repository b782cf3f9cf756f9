"""GTSRB: photographs of German traffic signs in 43 classes, here at 32 x 32 pixels.

J. Stallkamp, M. Schlipsing, J. Salmen, C. Igel: The German Traffic Sign Recognition Benchmark: A
multi-class classification competition, IJCNN 2011.

Where we differ: with a folder named by RAYSWEEP_DATA that holds gtsrb-train.parquet and
gtsrb-test.parquet these are used (the published full set has 39,209 training images), else
torchvision's download (26,640), resized bilinearly. They are two data sets: identity is the digest
of the source files. Training images are sorted by class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from raysweep.datasets import Dataset, ImageSet, Labels
from raysweep.datasets import _published as published
from raysweep.datasets._decode import decoded


class GTSRB(Dataset):
    """Training and test images, (N, 3, 32, 32)."""

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
        self._samples()
        return published.files_below(self.name)

    def _samples(self) -> list[list[tuple[str, int]]]:
        splits: list[dict[str, Any]] = [{"split": "train"}, {"split": "test"}]
        sets = published.torchvision_sets(self.name, "GTSRB", splits)
        return [list(part._samples) for part in sets]

    def read_labels(self) -> Labels:
        """Return the labels."""
        pair = published.parquet_pair(self.name)
        if pair:
            return published.labels_of(pair)
        train, test = (np.array([label for _, label in part]) for part in self._samples())
        return Labels(train=train, test=test, classes=tuple(f"{c:02d}" for c in range(43)))

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the decoded sets."""
        pair = published.parquet_pair(self.name)
        if pair:
            return published.decode_pair(pair)
        train, test = (
            ImageSet(
                images=decoded(
                    ((file, Path(file).read_bytes()) for file, _ in part),
                    total=len(part),
                    grey=False,
                    side=32,
                ),
                labels=np.array([label for _, label in part]),
            )
            for part in self._samples()
        )
        return train, test
