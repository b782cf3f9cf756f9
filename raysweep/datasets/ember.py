"""EMBER: 2,351 features of Windows programs, benign (0) or malware (1).

H. Anderson, P. Roth: EMBER, An Open Dataset for Training Static PE Malware Machine Learning Models,
2018, arXiv:1804.04637.

    path/X_train.dat  y_train.dat  X_test.dat  y_test.dat    float32 without a header, or .npy
    path/train_ember_*.parquet  test_ember_*.parquet         a column Label beside the features,
                                                             as the sets are republished

Where we differ: unlabeled programs (label -1) are left out. Features stay as they are; the model
standardizes them. Columns of tables are taken by name, in the order of the training table's.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.datasets import SPLITS, Dataset, Domain, ImageSet, Labels
from raysweep.datasets._decode import opened, reading
from raysweep.datasets._entries import placeholder_of
from raysweep.errors import PlanError
from raysweep.paths import DataPath

LABEL: Final = "Label"
PART: Final = 4096  # rows read at a time


class Ember(Dataset):
    """Feature vectors (N, features, 1, 1) float32."""

    DOMAIN: ClassVar[Domain] = "features"
    AT_PLAN: ClassVar[int] = 512

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

    def _values(self, file: Path) -> NDArray[np.generic]:
        """Map a file's values; nothing is read yet.

        Raises:
            PlanError: if it holds no array of real numbers.
        """
        try:
            if file.suffix == ".npy":
                values: NDArray[np.generic] = np.load(file, mmap_mode="r", allow_pickle=False)
            else:
                values = np.memmap(file, np.float32, "r")
        except Exception as error:  # noqa: BLE001  NumPy raises whatever bytes provoke
            raise PlanError(
                f"{file}: cannot be read as an array"
                + (
                    f": it {fault}"
                    if (fault := placeholder_of(file))
                    else f" ({error}); write or copy it again"
                )
            ) from None
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
            raise PlanError(
                f"{file}: must hold one array of real numbers, got "
                f"{getattr(values, 'dtype', type(values).__name__)}"
            )
        return values

    def _labels(self, file: Path) -> NDArray[np.int64]:
        """Return the labels (N,) of a file of labels, or of a table."""
        raw = _column(file) if _is_table(file) else np.asarray(self._values(file))
        wrong = np.flatnonzero(~np.isin(raw, (-1, 0, 1)))
        if raw.ndim != 1 or len(wrong):
            raise PlanError(
                f"{file}: labels must be -1, 0 or 1 of shape (N,), got "
                + (f"{raw[wrong[0]]!r} in row {wrong[0]}, the first of {len(wrong)}"
                   if raw.ndim == 1 else f"shape {raw.shape}")
            )  # fmt: skip
        return raw.astype(np.int64)

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
        shape = (len(labeled), self.features)
        flat = file.suffix == ".dat" and values.size == shape[0] * shape[1]
        if values.shape != shape and not flat:
            raise PlanError(
                f"{file}: must hold {self.features} features for each of {len(labeled)} labels, "
                f"got {values.size} values of shape {values.shape}; correct `features`, or write "
                f"the array again as one row a program"
            )
        return _as_float32(values.reshape(shape)[labeled])

    def _table(self, file: Path, labeled: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Read a table by parts: as columns, the whole would take several times its memory."""
        values = np.empty((labeled.sum(), self.features), np.float32)
        columns = self._columns()
        seen = filled = 0
        with reading(file):
            for part in opened(file).iter_batches(batch_size=PART, columns=columns):
                rows = labeled[seen : seen + len(part)]
                # By name, since `iter_batches` keeps the table's own order.
                given = (part.column(name).to_numpy(zero_copy_only=False) for name in columns)
                kept = np.stack(list(given), 1)[rows]
                values[filled : filled + rows.sum()] = _as_float32(kept)
                seen, filled = seen + len(part), filled + rows.sum()
        return values

    def _columns(self) -> list[str]:
        """Return the names of the features, in the order of the training table.

        Raises:
            PlanError: if a table lacks one, has others, or holds no numbers in one.
        """
        common: list[str] = []
        for file in self.files():
            own = _features(file)
            if len(own) != self.features or len(set(own)) != len(own):
                raise PlanError(
                    f"{file}: must have {self.features} columns beside {LABEL}, got {len(own)}"
                    + (", some of one name" if len(set(own)) != len(own) else "")
                    + "; correct `features`"
                )
            common = common or own
            odd = sorted(set(own) ^ set(common))
            if odd:
                raise PlanError(
                    f"{file}: must have the columns of the training table, "
                    f"{', '.join(map(repr, odd[:5]))} stand{'s' * (len(odd) == 1)} in one of them "
                    f"alone; write both tables with the same features"
                )
        return common

    def where(self, split: str, row: int) -> str:
        """Return the name of the file and the row of a labeled program."""
        file, labels = self._splits()[SPLITS.index(split)]
        return f"{file}, row {np.flatnonzero(self._labels(labels) >= 0)[row]}"

    def column(self, feature: int) -> str:
        """Return the name of a feature's column in a table, else its number."""
        if _is_table(self.files()[0]):
            return f"column {self._columns()[feature]!r}"
        return super().column(feature)


def _as_float32(values: NDArray[np.generic]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # the check of finite values names what float32 cannot hold
        return values.astype(np.float32)


def _features(file: Path) -> list[str]:
    """Return the names of a table's columns of features.

    Raises:
        PlanError: if the file is no table, or a column holds no numbers.
    """
    import pyarrow

    with reading(file):
        schema = opened(file).schema_arrow
    for entry in schema:
        kind = entry.type
        if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)):
            raise PlanError(f"{file}, column {entry.name!r}: must hold numbers, got {kind}")
    return [name for name in schema.names if name != LABEL]


def _is_table(file: Path) -> bool:
    return file.suffix == ".parquet"


def _column(file: Path) -> NDArray[np.generic]:
    table = opened(file)
    if table.schema_arrow.names.count(LABEL) != 1:
        raise PlanError(
            f"{file}: must have a column {LABEL}, once; its columns are "
            f"{', '.join(table.schema_arrow.names[:9])}"
        )
    with reading(file):
        labels: NDArray[np.generic] = table.read([LABEL])[LABEL].to_numpy()
    return labels
