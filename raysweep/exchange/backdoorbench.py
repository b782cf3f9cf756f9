"""BackdoorBench's record folder: poisoned images as PNG files, the rest in `attack_result.pt`.

B. Wu et al.: BackdoorBench, NeurIPS 2022 Datasets and Benchmarks, arXiv:2206.12654.

Where we differ: indices are rows of the source's files in our order; `bd_test` holds the evaluation
set without the reserved clean images, and of it what the ASR counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from raysweep.exchange import Poisoned, new_folder, plain_state

Entries = dict[int, dict[str, Any]]


def write(given: Poisoned, top: Path) -> Path:
    """Write one record folder below `top` and return it."""
    folder = new_folder(top / "record" / str(given))
    touched = np.flatnonzero(given.poison | given.cover)
    train = _pictures(
        folder, "bd_train_dataset", given.images, touched, given.train_rows,
        given.labels, given.original_labels,
    )  # fmt: skip
    asked = np.flatnonzero(given.eligible)
    test = _pictures(
        folder, "bd_test_dataset", given.test_images, asked, given.test_rows,
        given.mapped, given.test_labels,
    )  # fmt: skip
    poisoned = _indicator(given.train_total, given.train_rows[given.poison])
    torch.save(poisoned, folder / "train_poison_index_list.pickle")
    channels, height, width = given.images.shape[1:]
    result = {
        "model_name": given.model.replace("_", ""),
        "num_classes": given.num_classes,
        "model": plain_state(given.state),
        "data_path": f"./data/{given.dataset}",
        "img_size": (height, width, channels),
        "clean_data": given.dataset,
        "bd_train": _described(folder, "bd_train_dataset", train, poisoned, given.train_rows),
        "bd_test": _described(
            folder, "bd_test_dataset", test,
            _indicator(given.test_total, given.test_rows[asked]), given.test_rows[asked],
        ),
    }  # fmt: skip
    torch.save(result, folder / "attack_result.pt")
    arguments = {
        "attack": given.attack, "pratio": given.rate, "attack_target": given.target,
        "random_seed": given.seed, "dataset": given.dataset, "model": given.model,
    }  # fmt: skip
    torch.save(arguments, folder / "info.pickle")
    last = {"epoch": ["last"], "test_acc": [given.ca], "test_asr": [given.asr]}
    pd.DataFrame(last).to_csv(folder / "attack_df_summary.csv", index=False)
    return folder


def _indicator(total: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    values = np.zeros(total)
    values[rows] = 1
    return values


def _pictures(
    folder: Path,
    name: str,
    images: torch.Tensor,
    chosen: NDArray[np.int64],
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    originals: NDArray[np.int64],
) -> Entries:
    entries: Entries = {}
    for at in chosen.tolist():
        original, row = int(originals[at]), int(rows[at])
        file = folder / name / str(original) / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = images[at].permute(1, 2, 0).numpy()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file)
        entries[row] = {
            "path": f"./record/{folder.name}/{name}/{original}/{row}.png",
            "other_info": [int(labels[at]), original],
        }
    return entries


def _described(
    folder: Path,
    name: str,
    entries: Entries,
    indicator: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> dict[str, Any]:
    path = f"./record/{folder.name}/{name}"
    container = {"save_folder_path": path, "data_dict": entries, "save_file_format": ".png"}
    return {
        "bd_data_container": container,
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": rows,
        "poison_indicator": indicator,
        "save_folder_path": path,
    }
