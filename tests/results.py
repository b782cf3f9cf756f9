"""Results of each method on small inputs, as a few numbers that a change of results moves.

`results.json` holds them with the version under which they were found. A refactoring leaves them
alone; another CPU moves them by rounding, less than `TOLERANCE` of an array's spread.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysweep import methods
from raysweep.arrays import Array
from raysweep.methods.context import Context
from raysweep.testing import attacks as contract_of_attacks
from raysweep.testing import models as contract_of_models
from raysweep.testing import toy
from tests.contracts import test_attacks, test_defenses, test_models

FILE = Path(__file__).with_name("results.json")
BLOCKS = 8
TOLERANCE = 1e-3
# Training that runs away from its rounding, and searches that end early: measured with AMX, AVX2
# and SSE, one thread and two. Another seed moves each by at least twice of what is allowed.
LOOSER = {
    "defenses/abl": 0.02,
    "defenses/cognitive_distillation": 0.02,
    "defenses/confusion_training": 0.2,
    "defenses/frequency": 0.2,
    "defenses/neural_cleanse": 0.005,
    "defenses/sentinet": 0.05,
}
# Steps in between that rounding alone turns over; what comes of them is pinned.
UNSTEADY = {
    "defenses/confusion_training": {
        "statistics.predicted", "statistics.axes", "statistics.whitened", "statistics.chunklet",
        "spaces.confused_axes",
    },
    "defenses/ispl": {"scores", "statistics.members"},
}  # fmt: skip
# Networks whose first weights torch draws in another way since 2.14, the release of their numbers.
TRUNCATED = ("models/convnext_tiny", "models/vit_b_16", "models/vit_tiny")

Numbers = list[float] | str


def numbers(values: Array) -> Numbers:
    """Return the spread of an array, and of `BLOCKS` parts of it the mean, weighted by place.

    The weights tell the order of values apart, within a part too. Infinite values count as 0.
    """
    flat = np.asarray(values, np.float64).ravel()
    if not flat.size:
        return []
    flat = np.where(np.isfinite(flat), flat, 0.0)
    size = float(np.abs(flat).max())
    spread = float(flat.std())
    spread = spread if spread > 1e-6 * size else size  # all are equal, or but for rounding
    weighted = flat * (0.5 + np.arange(flat.size) * 0.6180339887 % 1)
    parts = np.array_split(weighted, min(BLOCKS, flat.size))
    return [float(f"{value:.6g}") for value in (spread, *(part.mean() for part in parts))]


def exactly(values: Array) -> str:
    """Return a digest of integers that no rounding may move: chosen rows, counts."""
    return hashlib.sha256(str(np.asarray(values).tolist()).encode()).hexdigest()[:16]


def distance(one: Numbers, other: Numbers) -> float:
    """Return how far numbers lie apart, in spreads; infinity where they cannot be compared."""
    if isinstance(one, str) or isinstance(other, str) or len(one) != len(other):
        return 0.0 if one == other else math.inf
    scale = (one[0] or 1.0) if one else 1.0
    return max((abs(a - b) / scale for a, b in zip(one, other, strict=True)), default=0.0)


def names() -> list[str]:
    """Return the names whose results are pinned."""
    every = {"defenses": test_defenses.NAMES, "attacks": test_attacks.NAMES}
    every["models"] = test_models.NAMES
    return ["stages/train"] + [
        f"{role}/{name}"
        for role in methods.ROLES
        for name in every.get(role, [])
        if methods.available(role)[name].startswith("raysweep.")
    ]


@functools.cache
def found(name: str) -> dict[str, Numbers]:
    """Return what a method gives on small inputs; computed once a process."""
    role, _, method = name.partition("/")
    arrays = {"stages": _victim, "defenses": _defense, "attacks": _attack, "models": _model}[role](
        method
    )
    kept = {n: a for n, a in arrays.items() if n not in UNSTEADY.get(name, ())}
    return {n: a if isinstance(a, str) else numbers(a) for n, a in kept.items()}


def moved(name: str, pinned: Mapping[str, Numbers], now: Mapping[str, Numbers]) -> list[str]:
    """Return how a method's results differ from the pinned ones; empty if they are the same."""
    allowed = LOOSER.get(name, TOLERANCE)
    missing = [f"{n} is {'no more' if n in pinned else 'new'}" for n in pinned.keys() ^ now.keys()]
    apart = {n: distance(pinned[n], now[n]) for n in pinned.keys() & now.keys()}
    return sorted(missing) + [
        f"{n} moved by {by:.2g} of its spread (allowed: {allowed:g})"
        for n, by in sorted(apart.items())
        if not by <= allowed
    ]


def faults(name: str, pinned: Mapping[str, Any], version: list[int]) -> list[str]:
    """Return how a name's results differ from those of `results.json`, and what to do.

    Args:
        name: the method.
        pinned: its entry in the file, or nothing.
        version: its version now.
    """
    raised = f"`python -m tests.versions {name} --raised`"
    same = f'`python -m tests.versions {name} --numbers "why"`'
    if not pinned:
        return [f"{name} has no pinned results: {same}"]
    if pinned["version"] != version:
        return [f"{name} has version {version}, its results are of {pinned['version']}: {raised}"]
    what = moved(name, pinned["results"], found(name))
    return what and [
        f"{name} gives other results under its unchanged version {version}: {'; '.join(what)}. "
        f"Raise its VERSION, then {raised}; if its code gives the same results and its input "
        f"changed (the toy, its victim, a library), {same}"
    ]


def of_later_torch(name: str) -> str:
    """Return why a name's pinned results are not those of this torch; empty if they are."""
    if name not in TRUNCATED or torch.__version__ >= "2.14":
        return ""
    return f"trunc_normal_ of torch {torch.__version__} draws other first weights than 2.14"


def read(file: Path = FILE) -> dict[str, dict[str, Any]]:
    """Return name → version, results and, where it was given, the reason of the last change."""
    return json.loads(file.read_text()) if file.is_file() else {}  # type: ignore[no-any-return]


def pin(name: str, version: list[int], why: str = "", file: Path = FILE) -> None:
    """Write one name's results as they are now; the entries of all others stay."""
    book = read(file) | {name: {"version": version, "results": found(name)}}
    book[name] |= {"why": why} if why else {}
    known = {n: book[n] for n in sorted(book) if n in names()}
    file.write_text(_short(json.dumps(known, indent=1)) + "\n")


def _short(text: str) -> str:
    """Put each list of numbers on one line."""
    parts = text.split("[")
    for at, part in enumerate(parts[1:], 1):
        inside, end, rest = part.partition("]")
        parts[at] = " ".join(inside.split()) + end + rest
    return "[".join(parts)


# ------------------------------------------------------------------ the runs


def _victim(kind: str) -> dict[str, Array]:
    del kind
    case = toy.toy()
    return {"features": case.features, "weights": _vector(case.weights)}


def _defense(name: str) -> dict[str, Array]:
    defense, case = test_defenses.make(name), toy.toy()
    findings = test_defenses.found(name)
    arrays: dict[str, Array] = {f"facts.{n}": np.array(v) for n, v in findings.facts.items()}
    arrays |= {f"statistics.{n}": np.asarray(a) for n, a in findings.statistics.items()}
    arrays |= {f"spaces.{n}": np.asarray(a) for n, a in findings.spaces.items()}
    arrays |= {f"curves.{n}": np.stack([c.x, c.y]) for n, c in findings.curves.items()}
    if findings.kept:
        arrays["kept"] = _vector(findings.kept)
    if findings.model is not None:
        # A tuned model lies close to the victim: the way from there is what the defense has done.
        arrays["model"] = _vector(findings.model) - _vector(case.weights)
    if findings.score_inputs is not None:
        ids = np.arange(50)
        arrays["inputs"] = findings.score_inputs(case.test.images[:50].float() / 255, ids)
    given = {"scores": findings.train_scores, "losses": findings.losses}
    given |= {"trigger": findings.trigger}
    if defense.gives() - {"model"}:
        decided = defense.decide(toy.evidence(defense, case, findings))
        given |= {"flags": decided.flags, "class_scores": decided.class_scores}
        given |= {"threshold": decided.threshold, "p_value": decided.p_value}
        given |= {"classes": decided.classes}
        if defense.REPAIRS:
            seen = toy.inputs(defense, case, found=dict(findings.kept), decision=decided)
            repaired = _vector(defense.repair(seen, Context(seed=5)))
            arrays["repaired"] = repaired - _vector(case.weights)
    return arrays | {n: np.asarray(value) for n, value in given.items() if value is not None}


def _attack(name: str) -> dict[str, Any]:
    attack = test_attacks.make(name, target=1, sources=None)
    choice = contract_of_attacks.chosen(attack)
    attack = contract_of_attacks.at_work(attack)
    rows = {"poison": exactly(choice.poison), "cover": exactly(choice.cover)}
    if name not in test_attacks.TRIGGERS:
        return rows
    shape = (1, 16, 16) if "images" in attack.DOMAINS else (60, 1, 1)
    images, ids = contract_of_attacks.pixels(shape), np.arange(8) * 4 + 1
    made = contract_of_attacks.artifact(attack, shape)
    parts: tuple[Any, ...] = ("poison", "cover", "test")
    return rows | {
        f"stamped.{part}": attack.stamp(images, ids=ids, part=part, artifact=made, seed=7).numpy()
        for part in parts
    }


def _model(name: str) -> dict[str, Any]:
    kind = test_models.kind_of(name)
    size = (3, 32, 32) if "images" in kind.DOMAINS else (2351, 1, 1)
    network = contract_of_models.network(kind, size)
    images = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    count = sum(weights.numel() for weights in network.parameters())
    with torch.no_grad():
        return {"parameters": str(count), "logits": network(images).numpy()}


def _vector(arrays: Mapping[str, Any]) -> Array:
    return np.concatenate([np.asarray(arrays[n], np.float64).ravel() for n in sorted(arrays)])
