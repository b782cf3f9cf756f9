"""Published datasets: Parquet from RAYSWEEP_DATA if it is there, else torchvision's download."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from raysweep.datasets import ImageSet, Labels
from raysweep.datasets._decode import class_names, parquet_images, parquet_labels
from raysweep.errors import PlanError
from raysweep.identity import cache_folder


def parquet_pair(name: str) -> tuple[Path, Path] | None:
    """Return <name>-train.parquet and <name>-test.parquet in RAYSWEEP_DATA, if both are there."""
    folder = os.environ.get("RAYSWEEP_DATA")
    if not folder:
        return None
    pair = (Path(folder) / f"{name}-train.parquet", Path(folder) / f"{name}-test.parquet")
    return pair if all(file.is_file() for file in pair) else None


def labels_of(pair: tuple[Path, Path]) -> Labels:
    """Return labels and class names of a pair of Parquet files."""
    train, test = (parquet_labels([file], None) for file in pair)
    names = class_names(pair[0], None, np.concatenate([train, test]))
    return Labels(train=train, test=test, classes=names)


def decode_pair(pair: tuple[Path, Path]) -> tuple[ImageSet, ImageSet]:
    """Return the decoded pair."""
    train, test = (parquet_images([file], None, None, grey=False) for file in pair)
    return train, test


def torchvision_sets(name: str, cls: str, splits: list[dict[str, Any]]) -> list[Any]:
    """Return torchvision's sets, downloaded once.

    Raises:
        PlanError: if there is no network and no earlier download.
    """
    import torchvision.datasets

    root = cache_folder() / "torchvision" / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        kind = getattr(torchvision.datasets, cls)
        return [kind(root=str(root), download=True, **split) for split in splits]
    except (OSError, RuntimeError) as error:
        looked = os.environ.get("RAYSWEEP_DATA") or "not set"
        raise PlanError(
            f"dataset {name}: neither {name}-train.parquet and {name}-test.parquet in "
            f"RAYSWEEP_DATA ({looked}) nor torchvision's download to {root} ({error}); set "
            f"RAYSWEEP_DATA to a folder that holds the files, or download on a host with internet"
        ) from None


def files_below(name: str) -> list[Path]:
    """Return the files of an earlier torchvision download, archives left out."""
    root = cache_folder() / "torchvision" / name
    kept = (p for p in root.rglob("*") if p.is_file() and p.suffix not in (".gz", ".zip"))
    return sorted(kept)
