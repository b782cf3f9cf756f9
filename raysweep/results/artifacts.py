"""The artifacts of a finished trial as tables and arrays: scores, curves, images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import pandas as pd

from raysweep.arrays import Array
from raysweep.attacks import Attack
from raysweep.metrics.curves import Curves
from raysweep.stages.content import Predictions
from raysweep.stages.inputs import Inputs

SCORES = {
    "set": "string", "sample": "Int64", "label": "Int64", "poison": "boolean", "cover": "boolean",
    "score": "Float64", "kept": "boolean",
}  # fmt: skip
CURVES = {"curve": "string", "x_title": "string", "y_title": "string", "x": "Float64",
          "y": "Float64"}  # fmt: skip
QUARTILES = ("lower quartile", "median", "upper quartile")
Line = tuple[str, str, str, Array, Array]


def scores(given: Inputs, attack: Callable[[], Attack]) -> pd.DataFrame:
    """Return a defense's score of every sample beside the truth; columns as `SCORES` types them.

    Args:
        given: the artifacts of a trial, by role.
        attack: returns the trial's, which says which test inputs its ASR counts; called for a
            detector of inputs alone.
    """
    found, decided = given.findings("defend"), given.decided("decide")
    flags = None if decided is None else decided.flags
    threshold = None if decided is None else decided.decision.threshold
    parts: list[dict[str, str | bool | Array | None]] = []
    data = given.data
    if found.findings.train_scores is not None or flags is not None:
        parts.append({
            "set": "train", "sample": data.train_rows, "label": given.given_labels,
            "poison": given.mask("poison"), "cover": given.mask("cover"),
            "score": found.findings.train_scores, "kept": None if flags is None else ~flags,
        })  # fmt: skip
    for name in ("clean", "triggered") if found.input_scores else ():
        triggered = name == "triggered"
        labels, classes = data.test.labels, data.shape.num_classes
        shown = attack().eligible(labels, classes) if triggered else np.ones(len(labels), bool)
        values = found.input_scores[name][shown]
        parts.append({
            "set": name, "sample": data.test_rows[shown], "label": labels[shown],
            "poison": triggered, "cover": False, "score": values,
            "kept": None if threshold is None else values <= threshold,
        })  # fmt: skip
    frames = [pd.DataFrame(part).astype(SCORES) for part in parts]
    if not frames:
        return pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in SCORES.items()})
    return pd.concat(frames, ignore_index=True)


def curves(given: Inputs) -> pd.DataFrame:
    """Return all curves of a trial, a row per point; columns as `CURVES` types them."""
    frames = [
        pd.DataFrame({"curve": name, "x_title": x_title, "y_title": y_title, "x": x, "y": y})
        for name, x_title, y_title, x, y in _lines(given)
    ]
    if not frames:
        return pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in CURVES.items()})
    return pd.concat(frames, ignore_index=True).astype(CURVES)


def _lines(given: Inputs) -> Iterator[Line]:
    """Yield name, titles of both axes, x (P,) and y (P,) of every curve."""
    stored = Curves.unpack(given.read("evaluate"))
    for scored, roc in stored.rocs().items():
        yield f"ROC of {scored} scores", "FPR", "TPR", roc.fpr, roc.tpr
    losses = stored.losses
    if losses is not None:
        for who, quartiles in (("poison", losses.poison), ("rest", losses.rest)):
            for name, line in zip(QUARTILES, () if quartiles is None else quartiles, strict=False):
                yield f"loss of {who}, {name}", "step", "loss", _steps(line), line
        if losses.auroc is not None:
            steps = _steps(losses.auroc)
            yield "AUROC of low losses", "step", "AUROC", steps, losses.auroc
    for name, curve in given.findings("defend").findings.curves.items():
        yield name, curve.x_title, curve.y_title, cast("Array", curve.x), cast("Array", curve.y)


def _steps(line: Array) -> Array:
    return np.arange(1, len(line) + 1)


def images(given: Inputs) -> tuple[Array, Array] | None:
    """Return clean test images and the same with the trigger, uint8 (P, C, H, W); or none."""
    return Predictions.unpacked(given.read("tested")).pictures
