"""The folder that an import leaves: plain arrays and a manifest, which attack `imported` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysweep.datasets import IntArray
from raysweep.errors import PlanError
from raysweep.exchange import new_folder

FORMAT = 1
Pixels = NDArray[np.uint8]

# What a file of these formats holds beside tensors and plain values: NumPy's arrays and numbers, by
# the module names of NumPy 1 too.
_CORE = np._core.multiarray  # type: ignore[attr-defined]
ALLOWED: list[Any] = [
    np.ndarray, np.dtype,
    bytes,  # an array without elements
    *(getattr(np.dtypes, f"{n}DType") for n in (
        "Bool", "Int8", "UInt8", "Int16", "Int32", "Int64", "Float16", "Float32", "Float64",
    )),
    *(
        (function, f"numpy.{module}.multiarray.{name}")
        for module in ("core", "_core")
        for name, function in (("_reconstruct", _CORE._reconstruct), ("scalar", _CORE.scalar))
    ),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A poisoned set as another project left it; rows count from 0 in the source's splits.

    Attributes:
        source, attack, dataset: the project, and its names.
        train_total: images of its training set.
        split_total: images of the source's training split, which contains the training set.
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


def read_untrusted(file: Path) -> Any:
    """Return the content of another project's file, without running any code in it.

    Raises:
        PlanError: if it cannot be read, or holds more than tensors, arrays and plain values.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch and its unpickler raise whatever bytes provoke
        detail = str(error).partition("Please file")[0]
        first = next((line for line in detail.splitlines() if "GLOBAL" in line), detail[:200])
        raise PlanError(
            f"{file}: holds more than tensors, arrays and plain values, and is not opened, since "
            f"reading such a file can run any program ({first.strip()}); ask whoever made it for "
            f"one without objects, with images as files"
        ) from None


def weights(given: Any, file: Path) -> dict[str, NDArray[Any]]:
    """Return a network's weights by their names in it; none, if nothing is given.

    A training script may have put them beside other entries, and `DataParallel` or `compile` a
    prefix before every name. NumPy lacks bfloat16, which becomes float32.

    Raises:
        PlanError: if the value is no state dict, and does not hold exactly one.
    """
    if given is None:
        return {}
    held = list(given.values()) if isinstance(given, Mapping) else []
    states = [state for state in (given, *held) if _is_state(state)]
    if len(states) != 1:
        raise PlanError(
            f"{file}: a victim must be a state dict, tensors by name, or hold one, got "
            f"{type(given).__name__} {str(list(given) if held else given)[:80]}; leave the victim "
            f"out, or save its state dict alone"
        )
    state: dict[str, torch.Tensor] = states[0]
    for prefix in ("module.", "_orig_mod.") * 2:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {
        name: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy()
        for name, t in state.items()
    }


def _is_state(given: Any) -> bool:
    return (
        isinstance(given, Mapping)
        and len(given) > 0
        and all(isinstance(t, torch.Tensor) for t in given.values())
    )


def read_foreign(read: Callable[[Path], Foreign], folder: Path) -> Foreign:
    """Return a foreign folder as a format's `read` understands it.

    Raises:
        PlanError: if the folder is not of that form, whatever its bytes are.
    """
    try:
        return read(folder)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
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
    }  # fmt: skip
    with new_folder(folder):
        np.savez_compressed(folder / "arrays.npz", **arrays)
        if foreign.state:
            # With a prefix no name of theirs can be an argument of savez.
            state: dict[str, Any] = {f"model.{n}": array for n, array in foreign.state.items()}
            np.savez(folder / "victim.npz", **state)
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return folder


def _check(foreign: Foreign) -> None:
    total = foreign.split_total
    for name in ("poison", "cover"):
        rows, images = getattr(foreign, f"{name}_rows"), getattr(foreign, f"{name}_images")
        inside = not len(rows) or 0 <= rows.min() <= rows.max() < total
        if len(np.unique(rows)) != len(rows) or not inside:
            raise PlanError(
                f"{foreign.source} {foreign.attack}: {name} rows must be distinct and from 0 to "
                f"{total - 1}, got {len(rows)} from {rows.min()} to {rows.max()}"
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
