"""Published datasets: Parquet from RAYSWEEP_DATA if it is there, else torchvision's download."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from raysweep.datasets import ImageSet, Labels
from raysweep.datasets._decode import encoding, parquet_images, split_labels
from raysweep.errors import PlanError
from raysweep.identity import cache_folder


def parquet_pair(name: str) -> tuple[Path, Path] | None:
    """Return <name>-train.parquet and <name>-test.parquet in RAYSWEEP_DATA, if both are there.

    Raises:
        PlanError: if RAYSWEEP_DATA names no folder, or one of the two is missing: to take
            torchvision's copy instead would be to take another data set.
    """
    folder = os.environ.get("RAYSWEEP_DATA")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise PlanError(
            f"dataset {name}: RAYSWEEP_DATA must name a folder, got {folder!r}; correct it, or "
            f"unset it for torchvision's download"
        )
    pair = (Path(folder) / f"{name}-train.parquet", Path(folder) / f"{name}-test.parquet")
    there = [file.name for file in pair if file.is_file()]
    missing = [file.name for file in pair if file.name not in there]
    if there and missing:
        raise PlanError(
            f"dataset {name}: RAYSWEEP_DATA ({folder}) holds {there[0]} but not {missing[0]}; "
            f"add it, or unset RAYSWEEP_DATA for torchvision's download"
        )
    return pair if there else None


def source(name: str) -> str:
    """Return which copy of a published dataset would be used."""
    pair = parquet_pair(name)
    return f"parquet of {_encoding(pair[0], pair[0].stat().st_mtime_ns)}" if pair else "torchvision"


@functools.cache
def _encoding(file: Path, changed: int) -> str:
    del changed  # only a part of the cache's key
    return encoding(file)


def labels_of(pair: tuple[Path, Path]) -> Labels:
    """Return labels and class names of a pair of Parquet files."""
    return split_labels([pair[0]], [pair[1]], None)


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
