"""The folder that an import leaves: plain arrays and a manifest, which attack `imported` reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.datasets import IntArray
from raysweep.errors import PlanError
from raysweep.exchange import new_folder

FORMAT = 1
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A poisoned set as another project left it; rows count from 0 in the source's splits.

    Attributes:
        source, attack, dataset: the project, and its names.
        train_total: images of its training set.
        split_total: images of the source's training split, which contains the training set.
        rate, cover_rate: as the project names them; none: the shares that the images come to.
        target: the class that triggered inputs are given, if it is one; none: y + 1 (mod K).
        sources: the classes that are attacked; none: all.
        poison_rows, poison_images, poison_labels: (P,), (P, C, H, W), (P,) as trained on.
        cover_rows, cover_images: (Q,), (Q, C, H, W); their labels are the source's.
        test_rows, test_images: (T,), (T, C, H, W) triggered test inputs; may be none.
        known_rows, known_labels: training rows and their labels before the attack, by which the
            order of the data is checked.
        state: the victim's weights by their names there; may be none.
        mean, std: by which the project normalizes this data set, where that is known.
        ignored: stored images that the project's own loader does not show.
        unsure: poisons that may be covers, which the folder does not tell.
    """

    source: str
    attack: str
    dataset: str
    train_total: int
    split_total: int
    target: int | None
    sources: tuple[int, ...] | None
    poison_rows: IntArray
    poison_images: Pixels
    poison_labels: IntArray
    cover_rows: IntArray
    cover_images: Pixels
    test_rows: IntArray
    test_images: Pixels
    known_rows: IntArray
    known_labels: IntArray
    state: dict[str, NDArray[Any]] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    rate: float | None = None
    cover_rate: float | None = None
    ignored: int = 0
    unsure: int = 0

    def __str__(self) -> str:
        """Describe the content of the set in sentences."""
        text = (
            f"{self.source} {self.attack} on {self.dataset}: {len(self.poison_rows)} poisons, "
            f"{len(self.cover_rows)} covers of {self.train_total} images, {len(self.test_rows)} "
            f"triggered test inputs, {'with' if self.state else 'without'} a victim's weights"
        )
        if self.ignored:
            text += (
                f"\n{self.ignored} stored images are left out: the folder marks them as clean, and "
                f"the project's own loader shows the clean image instead"
            )
        if self.unsure:
            text += (
                f"\n{self.unsure} of the poisons keep the label {self.target}, the target: they "
                f"may be covers, which the folder does not tell"
            )
        return text


def read_foreign(read: Callable[[Path], Foreign], folder: Path) -> Foreign:
    """Return a foreign folder as a format's `read` understands it.

    Raises:
        PlanError: if the folder is not of that form, whatever its bytes are.
    """
    try:
        return read(folder)
    except PlanError:
        raise
    except Exception as error:  # noqa: BLE001  anything may stand where a value is expected
        raise PlanError(
            f"{folder}: is not of this format ({type(error).__name__}: {error}); give --format, or "
            f"write the folder again with the project's own code"
        ) from None


def save(foreign: Foreign, folder: Path) -> Path:
    """Write the folder and return it.

    Raises:
        PlanError: if it is there, or the set is not one that an attack can have left.
    """
    _check(foreign)
    arrays: dict[str, Any] = {
        name: getattr(foreign, name)
        for name in ("poison_rows", "poison_images", "poison_labels", "cover_rows", "cover_images",
                     "test_rows", "test_images", "known_rows", "known_labels")
    }  # fmt: skip
    manifest = {
        "format": FORMAT, "source": foreign.source, "attack": foreign.attack,
        "dataset": foreign.dataset, "train_total": foreign.train_total,
        "target": foreign.target, "sources": foreign.sources,
        "poison": len(foreign.poison_rows), "cover": len(foreign.cover_rows),
        "triggered": len(foreign.test_rows), "victim": bool(foreign.state),
        "mean": foreign.mean, "std": foreign.std,
        "rate": foreign.rate, "cover_rate": foreign.cover_rate,
    }  # fmt: skip
    with new_folder(folder) as unfinished:
        np.savez_compressed(unfinished / "arrays.npz", **arrays)
        if foreign.state:
            # With a prefix no name of theirs can be an argument of savez.
            state: dict[str, Any] = {f"model.{n}": array for n, array in foreign.state.items()}
            np.savez(unfinished / "victim.npz", **state)
        text = json.dumps(manifest, indent=2) + "\n"
        (unfinished / "manifest.json").write_text(text, encoding="utf-8")
    return folder


def _check(foreign: Foreign) -> None:
    total = foreign.split_total
    if "/" in foreign.attack or not foreign.attack.isprintable():
        raise PlanError(
            f"{foreign.source}: the name of the attack must be printable and without '/', got "
            f"{foreign.attack!r}; rename the folder"
        )
    for name in ("poison", "cover", "test"):
        rows, images = getattr(foreign, f"{name}_rows"), getattr(foreign, f"{name}_images")
        most = total - 1 if name != "test" else np.iinfo(np.int64).max
        inside = not len(rows) or 0 <= rows.min() <= rows.max() <= most
        if len(np.unique(rows)) != len(rows) or not inside:
            raise PlanError(
                f"{foreign.source} {foreign.attack}: {name} rows must be distinct and from 0 to "
                f"{most}, got {len(rows)} from {rows.min()} to {rows.max()}"
            )
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(rows):
            raise PlanError(
                f"{foreign.source} {foreign.attack}: {name} images must be uint8 of shape "
                f"({len(rows)}, C, H, W), got {images.dtype} of shape {images.shape}"
            )
    both = np.intersect1d(foreign.poison_rows, foreign.cover_rows)
    if len(both):
        raise PlanError(
            f"{foreign.source} {foreign.attack}: row {both[0]} is both a poison and a cover, as "
            f"are {len(both)} rows in all; an image can be one of them"
        )
    if not len(foreign.poison_rows):
        raise PlanError(f"{foreign.source} {foreign.attack}: has no poisoned image; give another")
