"""Charts and pictures of a trial, drawn as W&B's own when its run is written.

Charts are line series, which W&B draws without a definition of ours. Images of a dataset are
among them only where they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from raysweep.arrays import WEIGHTS, Array, Arrays, Bools, Floats
from raysweep.errors import StoreError
from raysweep.metrics.curves import Curves, Roc, Scored
from raysweep.metrics.names import INPUT, cases
from raysweep.results.columns import Cell
from raysweep.results.entries.entry import numbers
from raysweep.results.text import visible
from raysweep.stages.content import Predictions, StoredFindings
from raysweep.stages.stage import Outcome
from raysweep.store import Store

if TYPE_CHECKING:
    import wandb
    from wandb.plot import CustomChart

    from raysweep.defenses import Curve

BINS = 40
EXAMPLES, HIGHEST = 4, 16  # images of a kind, at most
CHANNELS = (1, 3)
SERIES = ("step", "lineKey", "lineVal")  # columns of W&B's chart of lines
SCORED: Mapping[Scored, str] = {"train": "training samples", "input": "inputs"}
READ = ("evaluate", "defend", "poison", "tested")  # roles of artifacts
INPUTS = ("clean", "triggered")  # that a detector scores
Line = tuple[Floats, Floats]
Media = dict[str, "CustomChart | list[wandb.Image]"]


def trial_media(
    row: Mapping[str, Cell], keys: Mapping[str, str], store: Store, *, images: bool
) -> Media:
    """Return the charts and pictures of a finished trial by name, as wandb takes them.

    `roc`, `precision_recall`, `scores_of_training_samples` and `scores_of_inputs`; `curve/<axis>`:
    what the defense measured of its own run; `trigger` as it was estimated, one image per class.
    With `images`, `examples` with and without the trigger, and the `highest_scored` samples.

    Args:
        row: of the trial.
        keys: role → key of a stage.
        store: where their artifacts are; what is gone is left out.
        images: whether images of the dataset may be shown.
    """
    read = {role: _arrays(store, key) for role, key in keys.items() if role in READ}
    found = StoredFindings.unpacked(read.get("defend", {}), _outcome(store, keys.get("defend")))
    scores, trigger = found.findings.train_scores, found.findings.trigger
    poison = None
    if scores is not None and "poison_rows" in read.get("poison", {}):
        poison = np.zeros(len(scores), bool)
        poison[read["poison"]["poison_rows"]] = True
    media: Media = {**_ranked(row, Curves.unpack(read.get("evaluate", {})).rocs())}
    if scores is not None:
        groups = {"all": scores}
        if poison is not None:
            groups = {"poison": scores[poison], "rest": scores[~poison]}
        media |= _histogram("training samples", groups)
    inputs = {name: found.input_scores[name] for name in INPUTS if name in found.input_scores}
    media |= _histogram("inputs", inputs)
    media |= _measured(found.findings.curves)
    if trigger is not None:
        bits = [np.asarray(255 * np.clip(one, 0, 1), np.uint8) for one in trigger]
        media |= _pictures("trigger", ((one, f"class {n}") for n, one in enumerate(bits)))
    if images:
        media |= _examples(read.get("tested", {}))
        if scores is not None and "data" in keys:
            data = _arrays(store, keys["data"])
            media |= _highest(data, read.get("poison", {}), scores, poison)
    return media


def _arrays(store: Store, key: str) -> Arrays:
    """Return the arrays of an artifact, but for a network's weights: no chart is of them."""
    try:
        arrays = store.arrays(key)
        return {name: array for name, array in arrays.items() if not name.startswith(WEIGHTS)}
    except StoreError:
        return {}


def _outcome(store: Store, key: str | None) -> Outcome:
    try:
        return (store.outcome(key) if key else None) or {}
    except StoreError:
        return {}


# Charts


def precision_recall(roc: Roc, positives: float, negatives: float) -> Line:
    """Return the recalls (P,) and precisions (P,) of a ROC curve, but for points of no positives.

    Args:
        roc: the curve.
        positives, negatives: how many samples it ranks.
    """
    hits, errors = roc.tpr * positives, roc.fpr * negatives
    some = hits + errors > 0
    return roc.tpr[some], hits[some] / (hits + errors)[some]


def _ranked(row: Mapping[str, Cell], rocs: Mapping[Scored, Roc]) -> Media:
    """Return ROC and precision-recall curves."""
    if not rocs:
        return {}
    n = numbers(row)
    poison = n.get("poison_count", 0.0)
    counts: Mapping[Scored, tuple[float, float]] = {
        "train": (poison, n.get("n_train", 0.0) - poison),
        "input": (n.get(cases(INPUT.of("tpr")), 0.0), n.get(cases(INPUT.of("fpr")), 0.0)),
    }
    curves = {SCORED[scored]: (roc.fpr, roc.tpr) for scored, roc in rocs.items()}
    precise = {
        SCORED[scored]: precision_recall(roc, *counts[scored])
        for scored, roc in rocs.items()
        if min(counts[scored]) > 0
    }
    charts: Media = {"roc": _chart("ROC: TPR by FPR", "FPR", curves)}
    if precise:
        charts["precision_recall"] = _chart("Precision by recall", "recall", precise)
    return charts


def _histogram(what: str, groups: Mapping[str, Floats]) -> Media:
    """Return the shares of scores in bins that several groups have in common."""
    finite = {name: scores[np.isfinite(scores)] for name, scores in groups.items()}
    known = [scores for scores in finite.values() if len(scores)]
    if not known:
        return {}
    edges = np.histogram_bin_edges(np.concatenate(known), BINS)
    middles = (edges[1:] + edges[:-1]) / 2
    lines = {
        name: (middles, np.histogram(scores, edges)[0] / len(scores))
        for name, scores in finite.items()
        if len(scores)
    }
    chart = _chart(f"Scores of {what}: share of each group", "score", lines)
    return {f"scores_of_{what.replace(' ', '_')}": chart}


def _measured(curves: Mapping[str, Curve]) -> Media:
    """Return the curves that a defense drew of its own run, those of one pair of axes together."""
    axes: dict[tuple[str, str], dict[str, Line]] = {}
    for name, curve in curves.items():
        axes.setdefault((curve.x_title, curve.y_title), {})[visible(name)] = (curve.x, curve.y)
    return {
        f"curve/{n}": _chart(visible(f"{y_title} by {x_title}"), visible(x_title), lines)
        for n, ((x_title, y_title), lines) in enumerate(axes.items())
    }


def _chart(title: str, x_title: str, lines: Mapping[str, Line]) -> CustomChart:
    """Return `wandb.plot.line_series` of lines; a value that is not finite ends none of the others.

    That function looks at the type of every point again, which takes most of its time.
    """
    import wandb

    points = [
        [float(one), name, float(other)]
        for name, (x, y) in lines.items()
        for one, other in zip(x[np.isfinite(y)], y[np.isfinite(y)], strict=True)
    ]
    table = wandb.Table(columns=[*SERIES], data=points[:1])
    table.data.extend(points[1:])
    return wandb.plot_table(
        vega_spec_name="wandb/lineseries/v0", data_table=table,
        fields={name: name for name in SERIES}, string_fields={"title": title, "xname": x_title},
    )  # fmt: skip


# Pictures


def _examples(tested: Arrays) -> Media:
    """Return a few test images, each without and with the trigger."""
    shown = Predictions.unpacked(tested).pictures if "clean_predicted" in tested else None
    if shown is None:
        return {}
    pairs = zip(*(some[:EXAMPLES] for some in shown), strict=True)
    named = (zip(pair, ("clean", "triggered"), strict=True) for pair in pairs)
    return _pictures("examples", (one for both in named for one in both))


def _highest(data: Arrays, replaced: Arrays, scores: Floats, poison: Bools | None) -> Media:
    """Return the training images of the highest scores as the victim saw them."""
    if "train_images" not in data:
        return {}
    place = {int(at): n for n, at in enumerate(replaced.get("poison_rows", ()))}
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:HIGHEST]
    who = "" if poison is None else "rest"
    return _pictures(
        "highest_scored",
        (
            (
                replaced["poison_images"][place[at]] if at in place else data["train_images"][at],
                f"{'poison' if at in place else who} {scores[at]:.4g}, row {at}".strip(),
            )
            for at in map(int, order)
        ),
    )


def _pictures(name: str, images: Iterable[tuple[Array, str]]) -> Media:
    """Return uint8 images (C, H, W) with captions; nothing where they are no pictures."""
    shown = [_picture(image, caption) for image, caption in images if _is_picture(image)]
    return {name: shown} if shown else {}


def _is_picture(image: Array) -> bool:
    return image.ndim == 3 and image.shape[0] in CHANNELS and min(image.shape[1:]) > 1


def _picture(image_CHW: Array, caption: str) -> wandb.Image:
    import wandb

    pixels = image_CHW[0] if image_CHW.shape[0] == 1 else image_CHW.transpose(1, 2, 0)
    return wandb.Image(np.ascontiguousarray(pixels), caption=caption)
