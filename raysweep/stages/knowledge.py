"""What a stage passes to a defense: what it declares, and nothing else (design decision 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from raysweep.datasets import ImageSet
from raysweep.defenses import Decision, DefenseInputs, Evidence
from raysweep.stages.inputs import Desk


def inputs(desk: Desk) -> DefenseInputs:
    """Return what the defense declares, and the setting that every defender knows."""
    needs, data = desk.defense.needs(), desk.data
    values: dict[str, Any] = {
        "model": desk.model,
        "shape": data.shape,
        "recipe": desk.recipe,
        "shards": [
            desk.read(role)
            for part in desk.defense.parts(data.shape.num_classes)
            if desk.key(role := f"shard {part}")
        ],
    }
    if needs & {"training_set", "features"}:
        values["labels"] = desk.training_set.labels.copy()
    if "training_set" in needs:
        mine = desk.training_set
        values["training_set"] = ImageSet(images=mine.images.clone(), labels=mine.labels.copy())
    if "victim" in needs:
        values["victim"] = desk.network(desk.read("weights"))
    if "features" in needs:
        values["features"] = np.array(desk.read("features")["features"])
    if "clean_set" in needs:
        values["clean_set"] = ImageSet(
            images=data.clean.images.clone(), labels=data.clean.labels.copy()
        )
    values |= _oracles(desk)
    if desk.params.get("part") == "repair":
        found = desk.read("found")
        values["found"] = {n.removeprefix("kept."): a for n, a in found.items() if n[:5] == "kept."}
        values["decision"] = _decision(desk)
    return DefenseInputs(desk.defense.name, needs, values)


def _oracles(desk: Desk) -> dict[str, Any]:
    """Return the truth that the defense declares, and no more."""
    oracles: dict[str, Callable[[], Any]] = {
        "poison_mask": lambda: desk.mask("poison"),
        "cover_mask": lambda: desk.mask("cover"),
        "poison_rate": lambda: float(desk.mask("poison").mean()),
    }
    if "attack" in desk.params:
        oracles |= {"target_class": lambda: desk.attack.target, "trigger": desk.added}
        oracles |= {"test_success": lambda: desk.success}
    return {name: oracles[name]() for name in oracles.keys() & desk.defense.needs()}


def _decision(desk: Desk) -> Decision:
    arrays, outcome = desk.read("decision"), desk.outcome("decision")
    return Decision(
        flags=np.array(arrays["flags"]) if "flags" in arrays else None,
        threshold=outcome["threshold"],
        classes=tuple(outcome["classes"]) if outcome["classes"] is not None else None,
        class_scores=arrays.get("class_scores"),
        p_value=outcome["p_value"],
    )


def evidence(desk: Desk) -> Evidence:
    """Return what a defense may decide on: stored scores and statistics, and declared truth."""
    defense, found = desk.defense, desk.read("defend")
    values: dict[str, Any] = {
        "labels": desk.training_set.labels.copy(),
        "num_classes": desk.data.shape.num_classes,
        "statistics": {
            n.removeprefix("statistics."): a for n, a in found.items() if n[:11] == "statistics."
        },
        **_oracles(desk),
    }
    values |= {n: found[n] for n in ("train_scores", "reference_scores") if n in found}
    if "removed_count" in defense.needs():
        values["removed_count"] = int(desk.outcome("reference")["removed"])
    return Evidence(defense.name, defense.needs(), values)
