"""What each stage does, as a function of its inputs: read artifacts, run a method, write one.

The functions here and in `knowledge` are the only place where truth and method meet.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from raysweep import provenance, rng, training
from raysweep.arrays import Array
from raysweep.attacks import AttackInputs, Part
from raysweep.datasets import Dataset, ImageSet, IntArray, Shape, as_floats
from raysweep.defenses import Decision, Findings
from raysweep.environment import blame
from raysweep.errors import DamagedArtifact, FilesError, PlanError, StoreError
from raysweep.identity import digest, finite_or_none
from raysweep.methods.context import Context
from raysweep.metrics.judgment import Truth, judge
from raysweep.stages import knowledge
from raysweep.stages.inputs import Desk, Product, method, state_arrays
from raysweep.stages.stage import Result, Stage
from raysweep.store import Store
from raysweep.training import device, resident

PICTURES = 6
_OF_THE_HOST = (FilesError, StoreError, OSError, MemoryError)


def prepare(desk: Desk) -> Product:
    """Decode and cut a dataset, or run an attack's `prepare`."""
    if "attack" in desk.params:
        attack, data = desk.attack, desk.data
        roles = [role for role in ("surrogate", "victim") if desk.key(role)]
        declared: dict[str, Any] = {role: desk.network(desk.read(role)) for role in roles}
        declared |= {"test": data.test, "test_rows": data.test_rows} if attack.EVADES else {}
        inputs = AttackInputs(
            data=data.train, rows=data.train_rows, shape=data.shape,
            model=desk.model, recipe=desk.recipe, **declared,
        )  # fmt: skip
        return Product(arrays=dict(attack.prepare(inputs, desk.ctx)))
    dataset: Dataset = method("datasets", desk.params["dataset"])
    try:
        labels = dataset.read_labels()
        dataset.check_source(labels, desk.params["source"])
    except PlanError as error:
        raise FilesError(str(error)) from error  # where it was planned the data could be read
    rows_train, rows_clean, rows_test = dataset.kept(labels)
    train_all, test_all = dataset.decode()
    parts = {
        "train": ImageSet(
            images=train_all.take(rows_train).images,
            labels=dataset.training_labels(labels, rows_train),
        ),
        "clean": test_all.take(rows_clean),
        "test": test_all.take(rows_test),
    }
    shape = Shape.of(parts["train"].images, len(labels.classes))
    arrays = {}
    for name, part in parts.items():
        arrays[f"{name}_images"] = part.images.contiguous().numpy()
        arrays[f"{name}_labels"] = part.labels
    arrays |= {"train_rows": rows_train, "test_rows": rows_test}
    return Product(arrays=arrays, outcome={"shape": asdict(shape), "classes": list(labels.classes)})


def poison(desk: Desk) -> Product:
    """Choose, stamp and relabel: the poisoned rows of the training set."""
    data, attack = desk.data, desk.attack
    labels, classes = data.train.labels, data.shape.num_classes
    chosen = attack.choose(
        labels, classes, desk.read("artifact"), rng.generator(desk.attack_seed, "choose")
    )
    arrays: dict[str, Array] = {"poison_rows": chosen.poison, "cover_rows": chosen.cover}
    parts: tuple[tuple[Part, IntArray], ...] = (("poison", chosen.poison), ("cover", chosen.cover))
    for part, rows in parts:
        arrays[f"{part}_images"] = desk.stamp(data.train.take(rows).images, rows, part).numpy()
    arrays["poison_labels"] = attack.relabel(labels[chosen.poison], classes)
    relabeled = int((arrays["poison_labels"] != labels[chosen.poison]).sum())
    counts = {"poison": len(chosen.poison), "cover": len(chosen.cover), "relabeled": relabeled}
    return Product(arrays=arrays, outcome=counts)


def train(desk: Desk) -> Product:
    """Train a victim, retrain on what a decision kept, or let the attack train the victim."""
    if "attack" in desk.params:
        data = desk.data
        victim = desk.attack.train(data.train, desk.model, data.shape, desk.recipe, desk.ctx)
        return Product(arrays={**victim.artifact, **state_arrays(victim.state)})
    poisoned = desk.training_set
    if desk.params["kept"] != "all":
        poisoned = poisoned.take(np.flatnonzero(~desk.read("decision")["flags"]))
    network = training.build(desk.model, desk.data.shape, desk.ctx)
    losses = training.fit(network, poisoned, desk.recipe, desk.ctx, checkpoint=True)
    outcome = {"losses": losses, "images": len(poisoned)}
    return Product(arrays=state_arrays(network.state_dict()), outcome=outcome)


def features(desk: Desk) -> Product:
    """Push a set through a model: features of the training set, or predictions on test inputs."""
    network = desk.network(desk.read("weights"))
    if desk.params["set"] == "train":
        values, logits = training.features(
            network, desk.training_set.images, desk.params["layer"], desk.model.HEAD,
            desk.recipe, desk.device,
        )  # fmt: skip
        return Product(arrays={"features": values.numpy(), "logits": logits.numpy()})
    test, triggered = desk.data.test, desk.triggered_test()
    arrays = {}
    for name, images in (("clean", test.images), ("triggered", triggered)):
        logits = training.predict(network, images, desk.recipe, desk.device)
        arrays[f"{name}_predicted"] = logits.argmax(1).to(torch.int32).numpy()
    eligible = np.flatnonzero(desk.attack.eligible(test.labels, desk.data.shape.num_classes))
    if test.images.dtype == torch.uint8:
        shown = eligible[:PICTURES]
        arrays["pictures_clean"] = test.images[shown].numpy()
        arrays["pictures_triggered"] = triggered[shown].numpy()
    return Product(arrays=arrays)


def shard(desk: Desk) -> Product:
    """Do one part of a defense's work."""
    given = knowledge.inputs(desk)
    return Product(arrays=dict(desk.defense.shard(desk.params["part"], given, desk.ctx)))


def defend(desk: Desk) -> Product:
    """Run a defense, or repair a model after its decision."""
    if desk.params["part"] == "repair":
        return Product(arrays=state_arrays(desk.defense.repair(knowledge.inputs(desk), desk.ctx)))
    found = desk.defense.run(knowledge.inputs(desk), desk.ctx)
    arrays: dict[str, Array] = {
        f"statistics.{n}": np.asarray(a) for n, a in found.statistics.items()
    }
    arrays |= {f"kept.{n}": np.asarray(a) for n, a in found.kept.items()}
    arrays |= {f"spaces.{n}": np.asarray(a, np.float32) for n, a in found.spaces.items()}
    if found.train_scores is not None:
        arrays["train_scores"] = np.asarray(found.train_scores, np.float32)
    if found.model is not None:
        arrays |= state_arrays(found.model)
    if found.trigger is not None:
        arrays["trigger"] = np.asarray(found.trigger, np.float32)
    if found.losses is not None:
        arrays["losses"] = np.asarray(found.losses, np.float32)
    arrays |= {
        f"curve.{n}": np.stack([c.x, c.y], dtype=np.float32) for n, c in found.curves.items()
    }
    if found.score_inputs is not None:
        arrays |= _input_scores(desk, found)
    facts = {name: finite_or_none(value) for name, value in found.facts.items()}
    titles = {name: [curve.x_title, curve.y_title] for name, curve in found.curves.items()}
    outcome = {"enough": found.enough, "facts": facts, "curves": titles}
    return Product(arrays=arrays, outcome=outcome)


def _input_scores(desk: Desk, found: Findings) -> dict[str, Array]:
    """Score calibration, clean and triggered inputs alike: the method cannot tell them apart."""
    score = found.score_inputs
    assert score is not None
    data = desk.data
    rows = np.arange(len(data.clean)) if found.calibration is None else found.calibration
    test = np.arange(len(data.test))
    sets: tuple[tuple[str, torch.Tensor, IntArray], ...] = (
        ("reference", data.clean.images[torch.from_numpy(rows)], rows),
        ("clean", data.test.images, test),
        ("triggered", desk.triggered_test(), test),
    )
    arrays: dict[str, Array] = {}
    for name, images, ids in sets:
        parts = [
            score(as_floats(images[at : at + 500].to(desk.device)), ids[at : at + 500])
            for at in range(0, len(images), 500)
        ]
        arrays[f"{name}_scores"] = np.concatenate(parts).astype(np.float32)
    return arrays


def decide(desk: Desk) -> Product:
    """Let a defense decide on its stored evidence; say what the decision produced."""
    return _decided(desk.defense.decide(knowledge.evidence(desk)))


def _decided(decision: Decision) -> Product:
    flags = None if decision.flags is None else np.asarray(decision.flags, bool)
    removed = 0 if flags is None else int(flags.sum())
    classes = None if decision.classes is None else sorted(int(c) for c in decision.classes)
    produced = "nothing"
    if removed or classes:
        produced = digest(
            (np.packbits(flags).tobytes() if flags is not None else b"")
            + bytes(str(classes), "ascii")
        )
    arrays: dict[str, Array] = {}
    if flags is not None:
        arrays["flags"] = flags
    if decision.class_scores is not None:
        arrays["class_scores"] = np.asarray(decision.class_scores, np.float64)
    outcome = {
        "produced": produced,
        "removed": removed,
        "classes": classes,
        "threshold": None if decision.threshold is None else finite_or_none(decision.threshold),
        "p_value": decision.p_value,
    }
    return Product(arrays=arrays, outcome=outcome)


def evaluate(desk: Desk) -> Product:
    """Compare predictions, flags and verdicts with the truth: the metrics of one trial."""
    attack, test, classes = desk.attack, desk.data.test, desk.data.shape.num_classes
    mapped = attack.relabel(test.labels, classes)
    eligible = attack.eligible(test.labels, classes)
    poisoned_any = bool(desk.poison) or (attack.TRAINS and desk.params["rate"] > 0)
    metrics, curves = judge(
        truth=Truth(
            labels=test.labels,
            mapped=mapped,
            eligible=eligible,
            given=desk.given_labels,
            poison=desk.mask("poison"),
            cover=desk.mask("cover"),
            targets=tuple(np.unique(mapped[eligible]).tolist()) if poisoned_any else (),
        ),
        tested=desk.read("tested"),
        found=desk.read("defend"),
        decided=desk.read("decide"),
        decision=desk.outcome("decide"),
    ).pack()
    poisoned = desk.outcome("poison")
    counts = {f"{n}_count": poisoned.get(n, 0) for n in ("poison", "cover", "relabeled")}
    outcome = {**metrics, **counts, "n_train": len(desk.data.train)}
    return Product(arrays=curves, outcome=outcome)


KINDS: Mapping[str, Callable[[Desk], Product]] = {
    "prepare": prepare,
    "poison": poison,
    "train": train,
    "features": features,
    "shard": shard,
    "defend": defend,
    "decide": decide,
    "evaluate": evaluate,
}


def perform(stage: Stage, store: Store, run: Mapping[str, Any], gpus: float) -> Result:
    """Run a stage and store what it gives; a failure is a result, never an exception.

    Args:
        stage: the stage; all that it needs is stored.
        store: where artifacts are.
        run: recorded with the artifact beside what is known of this host, never hashed.
        gpus: what the stage holds; above 0 it computes on CUDA.
    """
    start = time.perf_counter()
    host = socket.gethostname()
    try:
        torch.set_num_threads(int(stage.params.get("recipe", {}).get("threads", 1)))
        where = device.claim(gpus)
        with training.global_seed(0):
            product = KINDS[stage.kind](Desk(stage, store, Context(seed=0, device=where)))
        seconds = time.perf_counter() - start
        info = {
            **run,
            **provenance.of_host(where),
            "seconds": round(seconds, 4),
            "gpu_seconds": round(seconds * gpus, 4),
            "device": where,
            "host": host,
            "finished_at": time.time(),
        }
        store.put(stage.key, arrays=product.arrays, outcome=product.outcome, info=info)
        store.drop_checkpoint(stage.key)
    except DamagedArtifact as error:
        return Result(key=stage.key, status="damaged", host=host, damaged=error.key)
    except Exception as error:  # noqa: BLE001  a failing method costs its own rows, not the sweep
        hosts = isinstance(error, _OF_THE_HOST)
        return Result(
            key=stage.key,
            status="failed",
            host=host,
            seconds=time.perf_counter() - start,
            error=f"{type(error).__name__}: {blame(error) if hosts else error}"[:2000],
            trace=traceback.format_exc(limit=30)[-8000:],
            lasting=not (hosts or device.passing(error)),
        )
    finally:
        resident.forget()
    return Result(key=stage.key, status="done", host=host, seconds=seconds, pid=os.getpid())
