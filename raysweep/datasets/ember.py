"""EMBER: 2,351 features of Windows programs, benign (0) or malware (1).

H. Anderson, P. Roth: EMBER, An Open Dataset for Training Static PE Malware Machine Learning Models,
2018, arXiv:1804.04637.

    path/X_train.dat  y_train.dat  X_test.dat  y_test.dat    float32 without a header, or .npy

Where we differ: unlabeled programs (label -1) are left out. Features stay as they are; the model
standardizes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.datasets import Dataset, Domain, ImageSet, Labels
from raysweep.errors import PlanError


class Ember(Dataset):
    """Feature vectors (N, features, 1, 1) float32."""

    DOMAIN: ClassVar[Domain] = "features"

    path: str = Field(description="folder that holds the vectorized features")
    features: int = Field(2351, ge=1, description="features of a program; 2,351 in version 1")

    def files(self) -> list[Path]:
        """Return the four files."""
        top = Path(self.path).expanduser()
        found = []
        for name in ("X_train", "y_train", "X_test", "y_test"):
            there = [file for s in (".dat", ".npy") if (file := top / f"{name}{s}").is_file()]
            if not there:
                raise PlanError(
                    f"dataset {self.name}: path must hold {name}.dat or {name}.npy, {str(top)!r} "
                    f"has neither; vectorize the features with the ember package"
                )
            found.append(there[0])
        return found

    def _values(self, file: Path) -> NDArray[np.float32]:
        """Map a file's values; nothing is read yet."""
        try:
            if file.suffix == ".npy":
                values: NDArray[np.float32] = np.load(file, mmap_mode="r", allow_pickle=False)
            else:
                values = np.memmap(file, np.float32, "r")
        except ValueError as error:
            raise PlanError(f"{file}: cannot be read as an array ({error})") from None
        return values

    def _labels(self, file: Path) -> NDArray[np.int64]:
        labels = np.asarray(self._values(file)).astype(np.int64)
        wrong = sorted(set(np.unique(labels)) - {-1, 0, 1})
        if labels.ndim != 1 or wrong:
            raise PlanError(
                f"{file}: labels must be -1, 0 or 1 of shape (N,), got {wrong[:5]} of shape "
                f"{labels.shape}"
            )
        return labels

    def read_labels(self) -> Labels:
        """Return the labels of the labeled programs."""
        _, train, _, test = self.files()
        labels = [part[part >= 0] for part in (self._labels(train), self._labels(test))]
        return Labels(train=labels[0], test=labels[1], classes=("benign", "malware"))

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the features of the labeled programs."""
        first, first_labels, second, second_labels = self.files()
        return self._set(first, first_labels), self._set(second, second_labels)

    def _set(self, file: Path, labels_file: Path) -> ImageSet:
        import torch

        labels, values = self._labels(labels_file), self._values(file)
        if values.size != len(labels) * self.features:
            raise PlanError(
                f"{file}: must hold {self.features} features for each of {len(labels)} labels, got "
                f"{values.size} values; correct `features`"
            )
        rows = np.flatnonzero(labels >= 0)
        table = values.reshape(len(labels), self.features)[rows].astype(np.float32)
        return ImageSet(images=torch.from_numpy(table)[:, :, None, None], labels=labels[rows])
