"""The poisoned set of backdoor-toolbox and of Confusion Training's code: files without extension.

T. Xie, X. Qi et al.: backdoor-toolbox, 2022; X. Qi et al.: Towards a Proactive ML Approach for
Detecting Backdoor Poison Samples, USENIX Security 2023, arXiv:2205.13616.

Where we differ: the training set is the sweep's, in our order; triggered test images have no place
in this format, so that the attack must be known to whoever reads it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from raysweep.datasets import IntArray
from raysweep.errors import PlanError
from raysweep.exchange import Poisoned, new_folder, plain_state
from raysweep.exchange.folder import Foreign, Pixels
from raysweep.exchange.untrusted import class_labels, read_untrusted, row_numbers, weights

# How the project normalizes, by its name of the data set.
NORMALIZED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "gtsrb": ((0.3337, 0.3064, 0.3171), (0.2672, 0.2564, 0.2629)),
}


# The folder's name, as `write` and theirs make it.
NAMED = re.compile(
    r"(?P<attack>.+)_(?P<rate>\d\.\d+)(_cover=(?P<cover>\d\.\d+))?(_alpha=[\d.]+)?_poison_seed=.+"
)


def write(given: Poisoned, top: Path) -> Path:
    """Write `poisoned_train_set` and, once, `clean_set` below `top`; return the poisoned folder."""
    cover = f"_cover={given.cover_rate:.3f}" if given.cover.any() else ""
    name = f"{given.attack}_{given.rate:.3f}{cover}_poison_seed={given.seed}"
    written = top / "poisoned_train_set" / given.dataset / name
    with new_folder(written) as folder:
        torch.save(given.images.float() / 255, folder / "imgs")
        torch.save(torch.from_numpy(given.labels), folder / "labels")
        torch.save(np.flatnonzero(given.poison).tolist(), folder / "poison_indices")
        torch.save(np.flatnonzero(given.cover).tolist(), folder / "cover_indices")
        torch.save(plain_state(given.state), folder / f"full_base_aug_seed={given.seed}.pt")
    clean = top / "clean_set" / given.dataset
    if not clean.exists():
        with new_folder(clean) as folder:
            _write_split(
                folder / "clean_split", "clean_labels", given.clean_images, given.clean_labels
            )
            _write_split(folder / "test_split", "labels", given.test_clean, given.test_labels)
    return written


def _write_split(folder: Path, labels_file: str, images: torch.Tensor, labels: np.ndarray) -> None:
    data = folder / "data"
    data.mkdir(parents=True)
    for row, image in enumerate(images):
        pixels = image.permute(1, 2, 0).numpy()
        plain = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
        Image.fromarray(plain).save(data / f"{row}.png")
    torch.save(torch.from_numpy(labels), folder / labels_file)


def read(folder: Path) -> Foreign:
    """Return the poisoned set of `poisoned_train_set/DATASET/NAME`, and its victim if it has one.

    Raises:
        PlanError: if the folder is not of this form, or holds objects that are not to be trusted.
    """
    for name in ("imgs", "labels", "poison_indices"):
        if not (folder / name).is_file():
            raise PlanError(
                f"{folder}: has no file {name!r}; give a folder poisoned_train_set/DATASET/NAME "
                f"whose images are in one tensor `imgs`"
            )
    labels = class_labels(read_untrusted(folder / "labels"), folder / "labels")
    images, scale = _images(folder / "imgs", len(labels))
    poison, cover = (
        np.sort(row_numbers(read_untrusted(file), file, len(labels)))
        if (file := folder / f"{part}_indices").is_file()
        else np.empty(0, np.int64)
        for part in ("poison", "cover")
    )
    known = np.setdiff1d(np.arange(len(labels)), poison)
    targets = np.unique(labels[poison])
    dataset = folder.resolve().parent.name
    mean, std = NORMALIZED.get(dataset, (None, None))
    named = NAMED.fullmatch(folder.resolve().name)
    return Foreign(
        source="backdoor-toolbox", attack=named["attack"] if named else folder.resolve().name,
        dataset=dataset, train_total=len(labels), split_total=len(labels),
        rate=float(named["rate"]) if named else None,
        cover_rate=float(named["cover"] or 0) if named else None,
        target=int(targets[0]) if len(targets) == 1 else None, sources=None,
        poison_rows=poison, poison_images=_bytes(images, scale, poison),
        poison_labels=labels[poison], cover_rows=cover, cover_images=_bytes(images, scale, cover),
        test_rows=np.empty(0, np.int64),
        test_images=np.empty((0, *images.shape[1:]), np.uint8),
        known_rows=known, known_labels=labels[known], state=_victim(folder),
        mean=mean, std=std,
    )  # fmt: skip


def _victim(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the weights of the folder's victim; none, if there is none.

    Raises:
        PlanError: if there are several.
    """
    victims = sorted(folder.glob("full_base_aug_seed=*.pt"))
    if len(victims) > 1:
        raise PlanError(
            f"{folder}: holds {len(victims)} victims, {', '.join(file.name for file in victims)}; "
            f"leave one of them in the folder"
        )
    return weights(read_untrusted(victims[0]), victims[0]) if victims else {}


def _images(file: Path, count: int) -> tuple[torch.Tensor, int]:
    """Return the images, (N, C, H, W), and the factor that scales their values to 0 to 255.

    Raises:
        PlanError: if shape or values are ambiguous.
    """
    images = read_untrusted(file)
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    shape = tuple(getattr(images, "shape", ()))
    channels = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] in (1, 3)]
    plain = isinstance(images, torch.Tensor) and (
        images.layout == torch.strided and not (images.is_complex() or images.is_quantized)
    )
    if not plain or shape[:1] != (count,) or len(channels) != 1:
        raise PlanError(
            f"{file}: must be a dense tensor (N, C, H, W) or (N, H, W, C) of real numbers, with 1 "
            f"or 3 channels and one image for each of {count} labels, got "
            f"{getattr(images, 'dtype', type(images).__name__)} of shape {shape}; save the images "
            f"again in one of these forms"
        )
    images = images.detach().movedim(channels[0], 1)
    low, high = (float(value) for value in images.aminmax())
    decimal = images.is_floating_point()
    # What is less than half a level beyond the range comes from interpolation, and is rounded off.
    if decimal and low > -0.5 / 255 and high < 1 + 0.5 / 255:
        return images, 255
    if low >= 0 and 1 < high <= 255 and (not decimal or bool((images == images.round()).all())):
        return images, 1
    raise PlanError(
        f"{file}: values must be floats from 0 to 1, or whole numbers from 0 to 255 of which some "
        f"are above 1; got {images.dtype} from {low:g} to {high:g}; undo a normalization, and save "
        f"the images again in one of these forms"
    )


def _bytes(images: torch.Tensor, scale: int, rows: IntArray) -> Pixels:
    chosen = images[torch.from_numpy(rows)].float().mul(scale).round()
    pixels: Pixels = chosen.to(torch.uint8).numpy()
    return pixels
