"""What CIFAR-10 and CIFAR-100 share: a Parquet pair, else the download of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from raysweep.datasets import Dataset, ImageSet, Labels
from raysweep.datasets import _published as published


class CIFAR(Dataset):
    """50,000 training and 10,000 test images, (N, 3, 32, 32).

    Class variables:
        TORCHVISION: torchvision's class of it.
    """

    TORCHVISION: ClassVar[str]

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
        return published.torchvision_sets(self.name, self.TORCHVISION, splits)

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
