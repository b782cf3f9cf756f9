"""EMBER: 2,351 features of Windows programs, benign (0) or malware (1).

H. Anderson, P. Roth: EMBER, An Open Dataset for Training Static PE Malware Machine Learning Models,
2018, arXiv:1804.04637.

    path/X_train.dat  y_train.dat  X_test.dat  y_test.dat    float32 without a header, or .npy
    path/train_ember_*.parquet  test_ember_*.parquet         a column Label beside the features,
                                                             as the sets are republished

Where we differ: unlabeled programs (label -1) are left out. Features stay as they are; the model
standardizes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.datasets import Dataset, Domain, ImageSet, Labels
from raysweep.errors import PlanError
from raysweep.paths import DataPath

LABEL: Final = "Label"
PART: Final = 4096  # rows read at a time


class Ember(Dataset):
    """Feature vectors (N, features, 1, 1) float32."""

    DOMAIN: ClassVar[Domain] = "features"

    path: DataPath = Field(description="folder that holds the vectorized features")
    features: int = Field(2351, ge=1, description="features of a program; 2,351 in version 1")

    def files(self) -> list[Path]:
        """Return the four files of arrays, or the two of Parquet."""
        top = Path(self.path)
        tables = [sorted(top.glob(f"{split}_ember_*.parquet")) for split in ("train", "test")]
        if any(tables):
            if [len(found) for found in tables] != [1, 1]:
                raise PlanError(
                    f"dataset {self.name}: path must hold one train_ember_*.parquet and one "
                    f"test_ember_*.parquet, {str(top)!r} has {[len(found) for found in tables]}"
                )
            return [file for (file,) in tables]
        found = []
        for name in ("X_train", "y_train", "X_test", "y_test"):
            there = [file for s in (".dat", ".npy") if (file := top / f"{name}{s}").is_file()]
            if not there:
                raise PlanError(
                    f"dataset {self.name}: path must hold {name}.dat, {name}.npy or Parquet files, "
                    f"{str(top)!r} has none; vectorize the features with the ember package"
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
        """Return the labels (N,) of a file of labels, or of a table."""
        raw = _column(file) if _is_table(file) else np.asarray(self._values(file))
        labels = raw.astype(np.int64)
        wrong = sorted(set(np.unique(labels)) - {-1, 0, 1})
        if labels.ndim != 1 or wrong:
            raise PlanError(
                f"{file}: labels must be -1, 0 or 1 of shape (N,), got {wrong[:5]} of shape "
                f"{labels.shape}"
            )
        return labels

    def _splits(self) -> list[tuple[Path, Path]]:
        """Return the files of features and labels of each split."""
        files = self.files()
        return (
            [(f, f) for f in files]
            if len(files) == 2
            else [(files[0], files[1]), (files[2], files[3])]
        )

    def read_labels(self) -> Labels:
        """Return the labels of the labeled programs."""
        train, test = (self._labels(labels) for _, labels in self._splits())
        return Labels(train=train[train >= 0], test=test[test >= 0], classes=("benign", "malware"))

    def decode(self) -> tuple[ImageSet, ImageSet]:
        """Return the features of the labeled programs."""
        train, test = (self._set(*split) for split in self._splits())
        return train, test

    def _set(self, file: Path, labels_file: Path) -> ImageSet:
        import torch

        labels = self._labels(labels_file)
        labeled = labels >= 0
        values = self._table(file, labeled) if _is_table(file) else self._array(file, labeled)
        return ImageSet(images=torch.from_numpy(values)[:, :, None, None], labels=labels[labeled])

    def _array(self, file: Path, labeled: NDArray[np.bool_]) -> NDArray[np.float32]:
        values = self._values(file)
        if values.size != len(labeled) * self.features:
            raise PlanError(
                f"{file}: must hold {self.features} features for each of {len(labeled)} labels, "
                f"got {values.size} values; correct `features`"
            )
        return values.reshape(len(labeled), self.features)[labeled].astype(np.float32)

    def _table(self, file: Path, labeled: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Read a table by parts: as columns, the whole would take several times its memory."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        values = np.empty((labeled.sum(), self.features), np.float32)
        try:
            with ParquetFile(file) as table:
                columns = [name for name in table.schema_arrow.names if name != LABEL]
                if len(columns) != self.features:
                    raise PlanError(
                        f"{file}: must have {self.features} columns beside {LABEL}, got "
                        f"{len(columns)}; correct `features`"
                    )
                seen = filled = 0
                for part in table.iter_batches(batch_size=PART, columns=columns):
                    rows = labeled[seen : seen + len(part)]
                    kept = np.stack([column.to_numpy(zero_copy_only=False) for column in part], 1)
                    values[filled : filled + rows.sum()] = kept[rows]
                    seen, filled = seen + len(part), filled + rows.sum()
        except (ArrowException, ValueError, TypeError) as error:
            raise PlanError(f"{file}: cannot be read as a table of numbers ({error})") from None
        return values


def _is_table(file: Path) -> bool:
    return file.suffix == ".parquet"


def _column(file: Path) -> NDArray[np.generic]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        labels: NDArray[np.generic] = read_table(file, columns=[LABEL])[LABEL].to_numpy()
    except (ArrowException, KeyError) as error:
        raise PlanError(f"{file}: must have a column {LABEL} ({error})") from None
    return labels
