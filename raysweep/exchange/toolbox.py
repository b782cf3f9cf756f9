"""The poisoned set of backdoor-toolbox and of Confusion Training's code: files without extension.

T. Xie, X. Qi et al.: backdoor-toolbox, 2022; X. Qi et al.: Towards a Proactive ML Approach for
Detecting Backdoor Poison Samples, USENIX Security 2023, arXiv:2205.13616.

Where we differ: the training set is the sweep's, in our order; triggered test images have no place
in this format, so that the attack must be known to whoever reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from raysweep.exchange import Poisoned, new_folder, plain_state


def write(given: Poisoned, top: Path) -> Path:
    """Write `poisoned_train_set` and, once, `clean_set` below `top`; return the former's folder."""
    cover = f"_cover={given.cover_rate:.3f}" if given.cover.any() else ""
    name = f"{given.attack}_{given.rate:.3f}{cover}_poison_seed={given.seed}"
    folder = new_folder(top / "poisoned_train_set" / given.dataset / name)
    torch.save(given.images.float() / 255, folder / "imgs")
    torch.save(torch.from_numpy(given.labels), folder / "labels")
    torch.save(np.flatnonzero(given.poison).tolist(), folder / "poison_indices")
    torch.save(np.flatnonzero(given.cover).tolist(), folder / "cover_indices")
    torch.save(plain_state(given.state), folder / f"full_base_aug_seed={given.seed}.pt")
    clean = top / "clean_set" / given.dataset
    if not clean.exists():
        _write_split(clean / "clean_split", "clean_labels", given.clean_images, given.clean_labels)
        _write_split(clean / "test_split", "labels", given.test_clean, given.test_labels)
    return folder


def _write_split(folder: Path, labels_file: str, images: torch.Tensor, labels: np.ndarray) -> None:
    data = folder / "data"
    data.mkdir(parents=True)
    for row, image in enumerate(images):
        pixels = image.permute(1, 2, 0).numpy()
        plain = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
        Image.fromarray(plain).save(data / f"{row}.png")
    torch.save(torch.from_numpy(labels), folder / labels_file)
