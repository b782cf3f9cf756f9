"""Material for reports, as a sweep leaves it but without a sweep: frames, curves, pictures."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd

from raysweep.defenses import Curve
from raysweep.metrics.curves import Losses, Roc, Scored
from raysweep.reports.material import Material
from raysweep.results.account import (
    CandidateRow,
    CandidateState,
    CurvePoint,
    DecisionCurve,
    SearchAccount,
)
from raysweep.results.description import Description
from raysweep.results.tuned import Tuned, TunedMetric, TunedRow
from raysweep.sweep.tuning import MetricName, Objective, Tune

# name, label, kind, badges, ASR left of the victim's, CA lost, TPR, FPR
DEFENSES = (
    ("none", "none", "control", "", 1.0, 0.0, None, None),
    ("perfect_filter", "perfect_filter", "control", "oracle: poison mask", 0.01, 0.0, 1.0, 0.0),
    ("spectral_signatures", "spectral_signatures(fraction=0.15)", "filter",
     "oracle: poison rate", 0.3, 0.01, 0.8, 0.12),
    ("activation_clustering", "activation_clustering", "filter", "", 0.6, 0.0, 0.5, 0.03),
    ("strip", "strip", "detector", "", 0.2, 0.05, 0.85, 0.05),
    ("abl", "abl", "robust training", "", 0.02, 0.12, 0.4, 0.01),
    ("neural_cleanse", "neural_cleanse", "inspector + repair", "", 0.1, 0.01, None, None),
)  # fmt: skip
MORE = tuple(
    (f"filter_{n}", f"filter_{n}(strength={n / 10})", "filter", "", 0.15 * n, 0.01 * n, 0.8, 0.05)
    for n in range(1, 6)
)
MANY_ATTACKS = ("badnets", "blend", "wanet", "input_aware", "trojan", "low_frequency", "sig")
ROLES = ("poison", "train", "features", "defend", "decide", "evaluate")
ATTACKS = {"badnets": 0.99, "blend": 0.95, "sig": 0.3}
N_TRAIN, N_TEST, N_ELIGIBLE = 5000, 3200, 2880


def opened(page: str, key: str) -> Any:
    """Return what a compressed block of a page holds."""
    found = re.search(rf'id="block-{key}">([^<]*)<', page)
    assert found, key
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def album(page: str, key: str) -> dict[str, Any]:
    """Return the figures of a section of a page: title → its lines and axes, and its cells."""
    found = re.search(rf'id="drawings-{key}">(.*?)</script>', page, re.DOTALL)
    assert found, key
    return {
        one["title"]: json.loads(gzip.decompress(base64.b64decode(one["data"])))
        | {"cells": one["cells"]}
        for one in json.loads(found[1])
    }


def column(packed: dict[str, Any]) -> list[Any]:
    """Return the values of a column as a page holds it."""
    if "values" in packed:
        return list(packed["values"])
    return [None if code < 0 else packed["distinct"][code] for code in packed["codes"]]


def row(**given: Any) -> dict[str, Any]:
    """Return one finished undefended trial, changed as asked."""
    base: dict[str, Any] = {
        "sweep": "s", "trial": "t", "dataset": "digits", "model": "tiny_cnn", "attack": "badnets",
        "attack_name": "badnets", "rate": 0.05, "target": 0, "defense": "none",
        "defense_name": "none", "kind": "control", "badges": "", "seed": 0, "status": "ok",
        "error": "", "error_stage": "", "log": "", "ca": 0.9, "ca_n": 100, "asr": 0.9, "asr_n": 90,
    }  # fmt: skip
    return {**base, **given}


def _trial(
    name: str, asr: float, rate: float, spec: tuple[Any, ...], seed: int, rng: np.random.Generator
) -> dict[str, Any]:
    defense, label, kind, badges, left, lost, tpr, fpr = spec
    poisoned = rate > 0

    def near(value: float | None, width: float = 0.02) -> float:
        return math.nan if value is None else float(np.clip(rng.normal(value, width), 0, 1))

    detector = kind == "detector"
    flags = (near(tpr if poisoned else None), near(fpr))
    none = (math.nan, math.nan)
    own = {
        "trial": f"{name}-{rate}-{defense}-{seed}", "attack": name, "attack_name": name,
        "rate": rate, "defense": label, "defense_name": defense, "kind": kind, "badges": badges,
        "seed": seed, "ca": near(0.9 - lost, 0.005), "ca_n": N_TEST,
        "asr": near(asr * left if poisoned else 0.01), "asr_n": N_ELIGIBLE, "n_train": N_TRAIN,
        "ra": near(0.05), "ra_n": N_ELIGIBLE, "poison_count": round(rate * N_TRAIN),
        "cover_count": 0, "relabeled_count": round(0.9 * rate * N_TRAIN),
        "tpr": none[0] if detector else flags[0], "fpr": none[1] if detector else flags[1],
        "input_tpr": flags[0] if detector else none[0],
        "input_fpr": flags[1] if detector else none[1],
        "auroc": near(0.9) if tpr and poisoned and not detector else math.nan,
        "own_seconds": float(rng.exponential(3)), "shared_seconds": 2.0,
        "standalone_seconds": 20.0, "gpu_seconds": 0.0, "host": "node-1", "git_commit": "abc123",
        "finished_at": 1.8e9, "recipe.epochs": 8, "defense.fraction": 0.15, "attack.alpha": None,
        "key_train": f"train-{name}-{rate}-{seed}", "key_evaluate": f"evaluate-{label}-{seed}",
    }  # fmt: skip
    if "inspector" in kind:
        own |= {"verdict": poisoned, "verdict_classes": "0" if poisoned else "",
                "verdict_correct": True, "target_found": True if poisoned else None,
                "anomaly": 3.1, "p_value": None}  # fmt: skip
    if defense == "spectral_signatures":
        own |= {
            "found.<i>models</i>": 500.0,
            "found.agreement": near(0.4),
            "separability_features": near(0.8) if poisoned else None,
        }
    return row(**own)


def _losses(rng: np.random.Generator) -> Losses:
    """Return quartiles of losses over 8 steps: poison falls, the rest stays at 0.5."""
    steps = np.arange(8)
    poison = 2.3 * 0.4**steps + rng.normal(0, 1e-3, 8)
    spread = np.array([0.8, 1.0, 1.2])[:, None]
    rest = np.maximum(2.3 * 0.8**steps, 0.5)
    return Losses(poison=spread * poison, rest=spread * rest, auroc=None)


def _measured(seed: int) -> dict[str, Curve]:
    """Return two curves of one pair of axes and one of another."""
    x = np.arange(5.0)
    axes = {"x_title": "k, samples", "y_title": "g(k), <i>margin</i>"}
    strength = Curve(x=x, y=2 / (1 + x), x_title="k, samples", y_title="s(k), per sample")
    levels = {"g of poison": x + seed, "g of <b>bird</b>": x / 2}
    return {n: Curve(x=x, y=y, **axes) for n, y in levels.items()} | {"s of poison": strength}


def _stages(trials: int) -> pd.DataFrame:
    lines = [("prepare", "done", 2.0, trials), ("poison", "cached", 0.3, trials // 3),
             ("train", "done", 12.0, trials // 9), ("train", "failed", 0.0, 1),
             ("defend", "done", 3.0, 2), ("decide", "upstream_failed", 0.0, 1),
             ("evaluate", "pending", 0.0, 1)]  # fmt: skip
    table = [
        {"key": f"{kind}-{n:032x}", "kind": kind, "status": status, "seconds": seconds,
         "gpu_seconds": 0.0, "trials": used, "host": "node-2",
         "error": "NonFiniteLoss: step 7" if status == "failed" else "", "log": ""}
        for n, (kind, status, seconds, used) in enumerate(lines)
    ]  # fmt: skip
    return pd.DataFrame(table)


def _images(rng: np.random.Generator, channels: int) -> tuple[np.ndarray, np.ndarray]:
    ramp = np.linspace(40, 200, 32)[None, None, None, :] + rng.normal(0, 12, (3, channels, 32, 32))
    clean = ramp.clip(0, 255).astype(np.uint8)
    triggered = clean.copy()
    triggered[:, :, -5:-1, -5:-1] = np.indices((4, 4)).sum(0) % 2 * 255
    return clean, triggered


def _curves(rows: pd.DataFrame) -> dict[tuple[str, Scored], Roc]:
    """Return binormal curves, through what each trial's decision made of its scores."""
    fpr = np.linspace(0, 1, 101)
    curves: dict[tuple[str, Scored], Roc] = {}
    scored: tuple[tuple[Scored, str], ...] = (("train", "tpr"), ("input", "input_tpr"))
    for line in rows[(rows["rate"] > 0) & (rows["status"] == "ok")].to_dict("records"):
        for what, metric in scored:
            if line[metric] == line[metric]:
                curves[line["trial"], what] = Roc(fpr=fpr, tpr=fpr ** (1 - 0.98 * line[metric]))
    return curves


def generated(seeds: int = 3, seed: int = 0) -> Material:
    """Return the material of a sweep of 3 attacks (one of which fails) at 3 rates."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        [
            _trial(attack, asr, rate, spec, number, rng)
            for attack, asr in ATTACKS.items()
            for rate in (0.0, 0.01, 0.05)
            for spec in DEFENSES
            for number in range(seeds)
        ]
    )
    bad = rows.index[-2:]
    rows.loc[bad, ["status", "error", "error_stage", "log"]] = [
        ["failed", "NonFiniteLoss: step 7", "train-3", "/logs/train-3.txt"],
        ["upstream_failed", "NonFiniteLoss: step 7", "train-3", "/logs/train-3.txt"],
    ]
    rows.loc[bad, ["ca", "asr", "ra", "tpr", "fpr", "auroc", "verdict"]] = None
    trained = rows[(rows["defense_name"] == "abl") & (rows["rate"] == 0.05)]
    inspected = rows[(rows["defense_name"] == "neural_cleanse") & (rows["seed"] == 0)]
    drawn = trained[trained["attack"] == "blend"].set_index("trial")["seed"]
    return Material(
        sweep=Description(
            name="generated", question="Which defenses hold against three triggers?",
            text="name: generated\nattacks: [badnets, blend, sig]\n", created_at=1.8e9,
            storage="/tmp/store", versions={"raysweep": "0", "torch": "2"}, git_commit="abc123",
        ),
        rows=rows,
        stages=_stages(len(rows)),
        curves=_curves(rows),
        pictures={"badnets": _images(rng, 3), "blend": _images(rng, 1)},
        triggers={t: rng.random((10, 3, 16, 16)) for t in inspected["trial"]},
        losses={trial: _losses(rng) for trial in trained["trial"]},
        measured={trial: _measured(seed) for trial, seed in drawn.items()},
        tuned=_tuned(),
    )  # fmt: skip


def many(seeds: int = 5, settings: int = 4, seed: int = 0) -> Material:
    """Return the material of 7 attacks, 3 rates and 12 defenses: 252 trials a setting and seed.

    A setting is one of 2 datasets with one of 2 models.

    Keys, seconds and metrics differ from trial to trial, as they do in a sweep; every trial that
    has scores has a ROC curve.
    """
    rng = np.random.default_rng(seed)
    attacks = dict(zip(MANY_ATTACKS, np.linspace(0.99, 0.3, len(MANY_ATTACKS)), strict=True))
    lines = []
    places = list(itertools.product(("cifar10", "gtsrb"), ("resnet18", "vgg16")))[:settings]
    cells = itertools.product(places, attacks.items(), (0.005, 0.01, 0.05), (*DEFENSES, *MORE))
    for (dataset, model), (attack, asr), rate, spec in cells:
        for number in range(seeds):
            one = _trial(attack, asr, rate, spec, number, rng)
            keys = {f"key_{role}": f"{role}-{rng.bytes(16).hex()}" for role in ROLES}
            where = {"dataset": dataset, "model": model, "trial": rng.bytes(10).hex()}
            lines.append({**one, **where, **keys})
    rows = pd.DataFrame(lines)
    return Material(
        sweep=Description(name="many", question="Which defenses hold?", text="name: many\n"),
        rows=rows, stages=_stages(len(rows)), curves=_curves(rows),
        pictures={"badnets": _images(rng, 3)},
    )  # fmt: skip


def _tuned() -> Tuned:
    """Return what a tuning of two objectives leaves: a front of two points, for each part."""
    parts = ("badnets", "<b>blend</b>", "nothing")
    settings = Tune(
        labels="transfer", constraints=("fpr <= 0.05",), over="mean",
        metric=(Objective(name="tpr", goal="maximize"), Objective(name="seconds", goal="minimize")),
    )  # fmt: skip
    return Tuned(
        settings=settings,
        rows=tuple(_tuned_row(part, point) for part in parts for point in range(2)),
        means=(),
        searches=tuple(map(_search, parts)),
    )


def _search(part: str) -> SearchAccount:
    states: tuple[CandidateState, ...] = ("complete", "pruned", "fail")
    history = tuple(
        CandidateRow(
            number=n, state=states[n % 3], parameters={"overlays": 4 + n, "fpr": 0.01}, seconds=1.0,
            metrics={"tpr": 0.5 + n / 20, "seconds": 1.0 + n} if n % 3 < 2 else {},
        )
        for n in range(9)
    )  # fmt: skip
    points = tuple(CurvePoint(value=v, tpr=v**0.5, fpr=v) for v in np.geomspace(0.001, 0.3, 20))
    return SearchAccount(
        defense="strip", held_out=part, history=history,
        importance={"overlays": 0.75, "fpr": 0.25},
        curve=DecisionCurve(parameter="fpr", chosen=0.02, points=points),
    )  # fmt: skip


def _tuned_row(part: str, point: int) -> TunedRow:
    values: dict[MetricName, float] = {"tpr": 0.8 - 0.1 * point, "seconds": 3.0 - point}
    return TunedRow(
        defense="strip", labels="transfer", held_out=part, point=point,
        parameters={"overlays": 12 - point, "fpr": 0.02}, tried=9, seconds=40.5, gpu_seconds=20.0,
        note="",
        metrics={
            name: TunedMetric(
                tuned=value, default=0.9 * value, oracle=1.2 * value,
                interval=(0.9 * value, 1.1 * value),
            )
            for name, value in values.items()
        },
    )  # fmt: skip
