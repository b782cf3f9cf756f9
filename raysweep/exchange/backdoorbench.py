"""BackdoorBench's record folder: poisoned images as PNG files, the rest in `attack_result.pt`.

`write` makes one of a finished setting, `read` takes one in.

B. Wu et al.: BackdoorBench, NeurIPS 2022 Datasets and Benchmarks, arXiv:2206.12654.

Where we differ: indices are rows of the source's files in our order; `bd_test` holds the evaluation
set without the reserved clean images, and of it what the ASR counts. `poison_indicator` marks every
stored image, covers too, as theirs does; the list of the poisoned rows, which theirs leaves out for
attacks that train the victim, tells the covers of the target class from its poisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from raysweep.datasets import IntArray
from raysweep.datasets._decode import decoded
from raysweep.datasets._entries import content
from raysweep.errors import PlanError
from raysweep.exchange import Poisoned, new_folder, plain_state
from raysweep.exchange.folder import Foreign, Pixels
from raysweep.exchange.untrusted import class_labels, read_untrusted, row_numbers, weights

Entries = dict[int, dict[str, Any]]
# The file that lists the rows chosen for poison: a 0 or 1 for each training image.
POISONED = "train_poison_index_list.pickle"
# How the project normalizes, by its name of the data set.
NORMALIZED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def write(given: Poisoned, top: Path) -> Path:
    """Write one record folder below `top` and return it."""
    written = top / "record" / str(given)
    with new_folder(written) as folder:
        touched = np.flatnonzero(given.poison | given.cover)
        train = _pictures(
            folder, f"{given}/bd_train_dataset", given.images, touched, given.train_rows,
            given.labels, given.original_labels,
        )  # fmt: skip
        asked = np.flatnonzero(given.eligible)
        test = _pictures(
            folder, f"{given}/bd_test_dataset", given.test_images, asked, given.test_rows,
            given.mapped, given.test_labels,
        )  # fmt: skip
        poisoned = _indicator(given.train_total, given.train_rows[given.poison])
        torch.save(poisoned, folder / POISONED)
        stored = _indicator(given.train_total, given.train_rows[touched])
        shown = given.test_rows[asked]
        channels, height, width = given.images.shape[1:]
        result = {
            "model_name": given.model.replace("_", ""),
            "num_classes": given.num_classes,
            "model": plain_state(given.state),
            "data_path": f"./data/{given.dataset}",
            "img_size": (height, width, channels),
            "clean_data": given.dataset,
            "bd_train": _described(f"{given}/bd_train_dataset", train, stored, given.train_rows),
            "bd_test": _described(
                f"{given}/bd_test_dataset", test, _indicator(given.test_total, shown), shown
            ),
        }
        torch.save(result, folder / "attack_result.pt")
        arguments = {
            "attack": given.attack, "pratio": given.rate, "cover_rate": given.cover_rate,
            "attack_target": given.target,
            "random_seed": given.seed, "dataset": given.dataset, "model": given.model,
        }  # fmt: skip
        torch.save(arguments, folder / "info.pickle")
        last = {"epoch": ["last"], "test_acc": [given.ca], "test_asr": [given.asr]}
        pd.DataFrame(last).to_csv(folder / "attack_df_summary.csv", index=False, encoding="utf-8")
    return written


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
        file = folder / Path(name).name / str(original) / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = images[at].permute(1, 2, 0).numpy()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file)
        entries[row] = {
            "path": f"./record/{name}/{original}/{row}.png",
            "other_info": [int(labels[at]), original],
        }
    return entries


def _described(
    name: str,
    entries: Entries,
    indicator: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> dict[str, Any]:
    path = f"./record/{name}"
    container = {"save_folder_path": path, "data_dict": entries, "save_file_format": ".png"}
    return {
        "bd_data_container": container,
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": rows,
        "poison_indicator": indicator,
        "save_folder_path": path,
    }


def read(folder: Path) -> Foreign:
    """Return the poisoned set and the victim of a record folder.

    Raises:
        PlanError: if the folder is not of this form, or holds objects that are not to be trusted.
    """
    file = folder / "attack_result.pt"
    if not file.is_file():
        raise PlanError(
            f"{folder}: has no attack_result.pt; give the folder of one attack's record"
        )
    result = read_untrusted(file)
    if not isinstance(result, dict) or not isinstance(result.get("bd_train"), dict):
        raise PlanError(
            f"{file}: bd_train is no poisoned training set; attacks that train the victim "
            f"themselves leave none, and cannot be imported"
        )
    train, test = (_stored(folder, result, part) for part in ("bd_train", "bd_test"))
    total = len(result["bd_train"]["poison_indicator"])
    listed = _listed(folder / POISONED, total)
    chosen = np.ones(len(train.rows), bool) if listed is None else listed[train.rows]
    target = _target(train, test, chosen)
    kept = train.labels == train.originals
    # Images of the target class keep their label as poisons too, as all of a clean-label attack do.
    either = kept & (train.labels == target)
    poison = ~kept | (either & chosen)
    cover = ~poison
    attacked = set(test.originals.tolist())
    named = str(folder.resolve().name).split("_")
    said = _arguments(folder / "info.pickle")
    dataset = str(result["clean_data"])
    mean, std = NORMALIZED.get(dataset, (None, None))
    return Foreign(
        source="backdoorbench", dataset=dataset,
        attack=str(said.get("attack") or "_".join(named[2:]) or folder.name),
        train_total=len(result["bd_train"]["original_index_array"]),
        split_total=total, target=target, rate=said.get("pratio"),
        cover_rate=said.get("cover_rate"),
        sources=(
            tuple(sorted(attacked))
            if target is not None and 0 < len(attacked) < int(result["num_classes"]) - 1
            else None
        ),
        poison_rows=train.rows[poison], poison_images=train.images[poison],
        poison_labels=train.labels[poison],
        cover_rows=train.rows[cover], cover_images=train.images[cover],
        test_rows=test.rows, test_images=test.images,
        known_rows=train.rows, known_labels=train.originals,
        state=weights(result.get("model"), file),
        mean=mean, std=std, ignored=train.ignored + test.ignored,
        unsure=int(either.sum()) if listed is None and cover.any() else 0,
    )  # fmt: skip


def _arguments(file: Path) -> dict[str, Any]:
    """Return the attack's name and rates of the arguments it was run with, as far as they are told.

    They name the record when it is exported again, and change nothing else.
    """
    try:
        given = read_untrusted(file)
    except PlanError:
        return {}
    told = given if isinstance(given, dict) else {}
    kinds = {"attack": str, "pratio": float, "cover_rate": float}
    return {name: told[name] for name, kind in kinds.items() if isinstance(told.get(name), kind)}


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The stored images of one `bd_*` part that its data set shows, by row.

    Attributes:
        rows, labels, originals: (M,) rows of the source's split, labels with and before the attack.
        images: (M, C, H, W) uint8.
        ignored: number of stored images that the data set does not show.
    """

    rows: IntArray
    labels: IntArray
    originals: IntArray
    images: Pixels
    ignored: int


def _stored(folder: Path, result: dict[str, Any], part: str) -> _Stored:
    """Return one part's stored images, read as the project's loader reads them.

    It takes the stored image of a row whose indicator is not 0, and the clean image of any other.
    """
    described, classes = result[part], int(result["num_classes"])
    entries: Entries = described["bd_data_container"]["data_dict"]
    marks = np.asarray(described["poison_indicator"])
    if marks.ndim != 1 or marks.dtype.kind not in "biuf" or not np.isfinite(marks).all():
        raise PlanError(
            f"{folder}: poison_indicator of {part} must hold a number for each image, got "
            f"{marks.dtype} of shape {marks.shape}; write the record again"
        )
    given = described["original_index_array"]
    shown = row_numbers(given, f"{folder}: original_index_array of {part}", len(marks))
    rows = np.sort(shown[marks[shown] != 0])
    lacking = [row for row in rows.tolist() if row not in entries]
    if lacking:
        raise PlanError(
            f"{folder}: {part} marks row {lacking[0]} in poison_indicator, but has no image of it, "
            f"as of {len(lacking)} rows in all; write the record again with the project's own code"
        )
    height, width, channels = (int(n) for n in result["img_size"])
    labels = np.zeros((2, len(rows)), np.int64)
    images = np.zeros((len(rows), channels, height, width), np.uint8)
    for at, row in enumerate(rows.tolist()):
        entry = entries[row]
        labels[:, at] = class_labels(entry["other_info"], f"{folder}: row {row} of {part}")
        if labels[:, at].max() >= classes:
            raise PlanError(
                f"{folder}: row {row} of {part} has labels {labels[:, at].tolist()}, but the "
                f"record has {classes} classes; write the record again"
            )
        pixels = _picture(folder, str(entry["path"]), channels)
        if pixels.shape != images.shape[1:]:
            raise PlanError(
                f"{folder}: {entry['path']} has shape {pixels.shape}, img_size says "
                f"{images.shape[1:]}; export the record again"
            )
        images[at] = pixels
    return _Stored(
        rows=rows, labels=labels[0], originals=labels[1], images=images,
        ignored=len(entries) - len(rows),
    )  # fmt: skip


def _listed(file: Path, total: int) -> NDArray[np.bool_] | None:
    """Return a mask (N,) of the images chosen for poison, or None if the record has no list."""
    if not file.is_file():
        return None
    listed = np.asarray(read_untrusted(file))
    if listed.shape != (total,):
        raise PlanError(
            f"{file}: must hold a 0 or 1 for each of {total} training images, got shape "
            f"{listed.shape}; remove it to go by the labels alone"
        )
    marked: NDArray[np.bool_] = listed != 0
    return marked


def _target(train: _Stored, test: _Stored, chosen: NDArray[np.bool_]) -> int | None:
    """Return the one class that triggered inputs are given; none, if there are several.

    It is read from the test inputs; without them from the images that changed their label, and if
    none did, from the chosen images.
    """
    changed = train.labels[train.labels != train.originals]
    given = next((some for some in (test.labels, changed) if len(some)), train.labels[chosen])
    return int(given[0]) if len(set(given.tolist())) == 1 else None


def _picture(folder: Path, named: str, channels: int) -> Pixels:
    """Read an image below the folder, PART/LABEL/ROW.png; the beginning of the path is ignored.

    It begins at another machine's root, which may be one of Windows.
    """
    below = PureWindowsPath(named).parts[-3:]
    file = folder.joinpath(*below).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise PlanError(f"{folder}: {named} leads out of the folder, and is not read")
    where = f"{folder}: {named}"
    pixels: Pixels = decoded([(where, content(file))], total=1, grey=False)[0].numpy()
    if channels == 1 and (pixels == pixels[:1]).all():
        return pixels[:1]
    return pixels  # three channels, which img_size is compared with
