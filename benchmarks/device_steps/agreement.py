"""Step 1: does CUDA give what the CPU gives? Every attack and defense on the contract's toy."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from device_steps.apart import Failure, spread
from device_steps.bench import Bench
from device_steps.victims import network, random_images
from raysweep import training
from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.datasets import ImageSet, Shape, as_floats
from raysweep.defenses import Decision, Defense
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models import Model
from raysweep.models.ember_mlp import EmberMLP
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.testing import attacks as contract_of_attacks
from raysweep.testing import defenses as contract_of_defenses
from raysweep.testing import toy
from tests.contracts import test_attacks, test_defenses

Found = dict[str, np.ndarray]
NETWORKS = ("tiny_cnn", "wrn_16_1", "resnet18", "tiny_groupnorm")
FLOAT32 = Recipe(epochs=1, batch_size=32, learning_rate=0.05, precision="float32")
# Longest first, so that they do not end alone.
SLOW = [
    "frequency", "ispl", "red", "cognitive_distillation", "neural_cleanse", "confusion_training",
    "datamodels", "feature_strength",
]  # fmt: skip


def agreement(bench: Bench) -> None:
    """Compare in float32 without TF32; a job computes the same on both devices."""
    (_, case) = next(spread({"toy": toy.toy}, 1, bench.left, bench.until))
    if not isinstance(case, toy.Toy):
        raise RuntimeError(f"the toy was not trained: {case}")
    jobs: dict[str, Any] = {
        f"fit {name}": partial(_both, partial(_fit, name), bench.device)
        for name in bench.pick(NETWORKS, NETWORKS[:1])
    }
    rest = [name for name in test_defenses.NAMES if name not in SLOW]
    defenses = [name for name in SLOW if name in test_defenses.NAMES] + rest
    jobs |= {
        f"defense {name}": partial(_both, partial(defense_found, name, case), bench.device)
        for name in defenses
    }
    jobs |= {
        f"attack {name}": partial(_both, partial(_attack, name), bench.device)
        for name in test_attacks.NAMES
    }
    if not bench.cuda:  # A dry run shows that each kind of job runs.
        few = ("fit tiny_cnn", "defense spectral_signatures", "defense strip", "attack badnets")
        jobs = {name: jobs[name] for name in few}
    slots = max(2, (os.cpu_count() or 2) - 2)
    found = spread(jobs, slots, bench.left, bench.until - 1)
    _tell(bench, dict(_noted(bench, found)))


def _noted(bench: Bench, results: Any) -> Any:
    for name, found in results:
        if isinstance(found, Failure):
            bench.note(name, "FAILED", found.reason, shown=False)
        else:
            for what, value in found.items():
                bench.note(name, what, value, shown=False)
        yield name, found


def _tell(bench: Bench, results: Mapping[str, Any]) -> None:
    """Summarize: for each kind how many agree how well, and the names of those that do not."""
    for kind in ("fit", "defense", "attack"):
        own = {n.partition(" ")[2]: r for n, r in results.items() if n.startswith(kind)}
        good = {n: r for n, r in own.items() if not isinstance(r, Failure)}
        errors = {n: float(r["error"]) for n, r in good.items()}
        row = f"{kind}, CPU and {bench.device}"
        bench.note(row, "ran", f"{len(good)} of {len(own)}")
        bench.note(row, "error below 1e-4", sum(e < 1e-4 for e in errors.values()))
        bench.note(row, "below 1e-2", sum(e < 1e-2 for e in errors.values()))
        far = sorted((n for n in errors if not errors[n] < 1e-2), key=lambda n: -errors[n])
        if far:
            bench.note(row, "above", ", ".join(f"{n} {errors[n]:.1e}" for n in far))
        decided = {n: r["flags"] for n, r in good.items() if "flags" in r}
        if decided:
            other = [f"{n} {d}" for n, d in decided.items() if d]
            bench.note(row, "decide alike", f"{len(decided) - len(other)} of {len(decided)}")
            if other:
                bench.note(f"{kind}s that decide otherwise", "flags", ", ".join(other))
        for name, failure in own.items():
            if isinstance(failure, Failure):
                bench.note(f"{kind} {name}", "FAILED", failure.reason)


def _both(run: Any, device: str) -> dict[str, Any]:
    """Return the largest relative error over all outputs, where it is, and the seconds."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    seconds, found = [], []
    for place in ("cpu", device):
        start = time.perf_counter()
        found.append(run(place))
        seconds.append(round(time.perf_counter() - start, 3))
    here, there = found
    if here.keys() != there.keys():
        raise ValueError(f"outputs {sorted(here)} on the CPU, {sorted(there)} on {device}")
    decided: dict[str, Any] = {}
    if "flags" in here:
        decided["flags"] = int((here.pop("flags") != there.pop("flags")).sum())
    errors = {name: _error(here[name], there[name]) for name in here}
    worst = max(errors, key=lambda name: errors[name])
    return {
        "error": errors[worst], "at": worst, **decided,
        "CPU seconds": seconds[0], f"{device} seconds": seconds[1],
    }  # fmt: skip


def _error(here: np.ndarray, there: np.ndarray) -> float:
    """Return |a - b| / |b|, at equal places of non-finite values; else infinity."""
    if here.shape != there.shape or here.dtype.kind in "OUS":
        return 0.0 if np.array_equal(here, there) else float("inf")
    a, b = np.asarray(here, np.float64), np.asarray(there, np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    kept = np.isfinite(a)
    size = float(np.linalg.norm(a[kept]))
    return float(np.linalg.norm(a[kept] - b[kept])) / max(size, 1e-12)


def _fit(name: str, device: str) -> Found:
    """Return the loss of each of 20 steps, and logits after the first."""
    data = random_images(32)
    ctx = Context(seed=0, device=device)
    module = network(name, device)
    found = {"losses": np.array(training.fit(module, data, FLOAT32, ctx, steps=1))}
    logits = training.predict(module, data.images, FLOAT32, device)
    again = network(name, device)
    steps = 20 if name != "resnet18" else 5
    losses = training.fit(again, data, FLOAT32.model_copy(update={"epochs": steps}), ctx)
    return found | {"logits after a step": logits.numpy(), "losses of all": np.array(losses)}


def _attack(name: str, device: str) -> Found:
    """Return what an attack prepares, and stamped images of both parts."""
    attack = test_attacks.make(name)
    shape = (3, 16, 16) if "images" in attack.DOMAINS else (60, 1, 1)
    prepared = _prepared(attack, shape, device)
    images, found = (
        contract_of_attacks.pixels(shape),
        {f"prepared {n}": a for n, a in prepared.items()},
    )
    if name not in test_attacks.TRIGGERS:
        return found or {"nothing": np.zeros(1)}
    parts: tuple[Part, ...] = ("test",) if attack.EVADES else ("poison", "cover", "test")
    for part in parts:
        stamped = attack.stamp(
            images.to(device), ids=np.arange(8), part=part, artifact=prepared, seed=1
        )
        found[part] = stamped.detach().cpu().numpy()
    return found


def _prepared(attack: Attack, shape: tuple[int, int, int], device: str) -> Mapping[str, Any]:
    """Return what the attack prepares from 40 random images."""
    if not attack.PREPARES:
        return {}
    count, channels = 40, shape[0]
    images, model = contract_of_attacks.pixels(shape, count), EmberMLP(widths=(16, 8, 8))
    chosen: Model = model
    if "images" in attack.DOMAINS:
        images, chosen = images.mul(255).round().to(torch.uint8), TinyCNN(width=4)
    data = ImageSet(images=images, labels=np.arange(count) % 2)
    facts = Shape(
        channels=channels, height=shape[1], width=shape[2], num_classes=10,
        mean=(0.5,) * channels, std=(0.3,) * channels,
    )  # fmt: skip
    trained = training.build(chosen, facts, Context(seed=3, device=device)).eval()
    given: dict[str, Any] = {"surrogate": trained} if attack.SURROGATE else {}
    if attack.EVADES:
        given = {"victim": trained, "test": data, "test_rows": np.arange(count)}
    inputs = AttackInputs(
        data=data, rows=np.arange(count), model=chosen, shape=facts,
        recipe=FLOAT32.model_copy(update={"batch_size": 20}), **given,
    )  # fmt: skip
    return attack.prepare(inputs, Context(seed=3, device=device))


def defense_found(name: str, case: Any, device: str, captured: bool = True) -> Found:
    """Return all that a defense finds on the toy, its flags and what it repairs."""
    defense: Defense = test_defenses.make(name)
    ctx = Context(seed=5, device=device, captured=captured)

    def inputs(**more: Any) -> Any:
        if "victim" in defense.needs():
            more["victim"] = toy.network(case.weights).to(device)
        return toy.inputs(defense, case, **more)

    shards = [dict(defense.shard(part, inputs(), ctx)) for part in defense.parts(toy.CLASSES)]
    findings = defense.run(inputs(shards=shards), ctx)
    if findings.model is not None:
        here = {n: t.detach().cpu() for n, t in findings.model.items()}
        findings = dataclasses.replace(findings, model=here)
    found = contract_of_defenses.outputs(findings)
    score = findings.score_inputs
    if score is not None:
        findings = dataclasses.replace(
            findings, score_inputs=lambda images, ids: score(images.to(device), ids)
        )
        images = as_floats(case.triggered.to(device))
        found["scores of inputs"] = np.asarray(score(images, np.arange(len(images))))
    decision = Decision()
    if defense.gives() - {"model"}:
        decision = defense.decide(toy.evidence(defense, case, findings))
        if decision.flags is not None:
            found["flags"] = np.asarray(decision.flags)
        elif decision.classes is not None:
            found["flags"] = np.isin(np.arange(toy.CLASSES), decision.classes)
    if defense.REPAIRS:
        decision = dataclasses.replace(decision, classes=(toy.TARGET,))
        given = inputs(found=findings.kept, decision=decision)
        for layer, tensor in defense.repair(given, ctx).items():
            found[f"repaired {layer}"] = tensor.detach().cpu().numpy()
    return found or {"nothing": np.zeros(1)}
