"""What every method keeps to on a GPU: nothing refused, the CPU's bytes, no more waits than now."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from raysweep import methods, training
from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.datasets import ImageSet, Shape, as_floats
from raysweep.defenses import Decision, Defense
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models import Model
from raysweep.models.ember_mlp import EmberMLP
from raysweep.testing import defenses as contract_of_defenses
from raysweep.testing import models as contract_of_models
from raysweep.testing import toy
from raysweep.training import resident
from tests.contracts import test_attacks, test_defenses, test_models
from tests.pretend_cuda import pretended_cuda

RECIPE = Recipe(epochs=2, batch_size=40, learning_rate=0.05, precision="float32")
FEW = 4
# With fewer than these, by field or by method and field, a method refuses the toy, or takes long.
ENOUGH = {"models": 60, "per_shard": 60, "scale": 0.001, "red.steps": 24, "components": 2}
SCORED = 16  # images
MORE = 2  # units of work, to see what one costs
# How often the host waits for the device per unit of work on the small toy, where it is not what
# USUAL says. Units: a step or an epoch, by the field that counts them, or an image that is scored.
# These numbers may only shrink: write down the smaller one with the change that brings it.
USUAL = {"steps": 0, "epochs": 3, "images": 0}
WAITS = {
    "abl.isolation_epochs": 5,
    "abl.unlearning_steps": 2,
    "asset.epochs": 5,
    "dfst.epochs": 10,
    "dynamic.epochs": 4,
    "dynamic.mask_epochs": 4,
    "latent_backdoor.steps": 1,
}
VARYING = {"ispl"}  # how many networks it trains hangs on what it finds
SIZES = ["small", pytest.param("whole", marks=pytest.mark.device_rules)]
SLOW = {"convnext_tiny", "densenet", "efficientnet", "vgg16_bn", "vgg19_bn", "vit_b_16"}


@functools.cache
def small() -> toy.Toy:
    """Return a toy of fewer samples than that of the other contracts."""
    return toy.toy(count=120)


def case(size: str) -> toy.Toy:
    return small() if size == "small" else toy.toy()


def plain(value: Any) -> Any:
    """Return a value with every tensor copied to the CPU, as an array."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().float().numpy()
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def equal_on_both(work: Callable[[str], Any]) -> int:
    """Demand the same bytes of work on the CPU and on the device; return how often that waited.

    The CPU's turn is in such a block too: where tensors are wrapped, autograd takes other formulas
    for views that were changed in place, which round otherwise.
    """
    resident.forget()  # as between two stages
    with pretended_cuda() as none:
        wanted = plain(work("cpu"))
    with pretended_cuda() as counts:
        made = work("cuda")
        waited = counts.waits.total()
        found = plain(made)
    resident.forget()
    assert not none.waits and not none.launches
    np.testing.assert_equal(found, wanted)
    return waited


def waits(work: Callable[[], Any]) -> int:
    """Return how often the host waits for the device."""
    with pretended_cuda() as counts:
        work()
    resident.forget()
    return counts.waits.total()


def shrunk(method: Any) -> Any:
    """Return a method whose counts (steps, epochs, copies, parts, ...) are as few as may be."""
    few: dict[str, Any] = {}
    for name, field in type(method).model_fields.items():
        value = getattr(method, name)
        enough = ENOUGH.get(f"{method.name}.{name}", ENOUGH.get(name))
        if enough is not None:
            few[name] = enough
        elif type(value) is int and value > FEW and "batch" not in name:
            few[name] = max([FEW, *(getattr(bound, "ge", FEW) for bound in field.metadata)])
    return type(method).model_validate({**method.model_dump(), **few})


def attack_of(name: str, size: str) -> Attack:
    made = test_attacks.make(name, target=toy.TARGET, sources=None)
    return shrunk(made) if size == "small" else made


def defense_of(name: str, size: str) -> Defense:
    made = test_defenses.make(name)
    return shrunk(made) if size == "small" else made


def victim(model: Model, shape: Shape, case: toy.Toy, ctx: Context) -> torch.nn.Module:
    """Return the toy's victim on the device of the context; another model is untrained."""
    network = training.build(model, shape, ctx)
    if model == toy.MODEL:
        network.load_state_dict(case.weights)
    return network.eval()


def attacked(attack: Attack, case: toy.Toy, device: str) -> Any:
    """Return what an attack prepares for the toy, and what it makes of a few inputs."""
    ctx, data, shape = Context(seed=3, device=device), case.train, toy.SHAPE
    model: Model = toy.MODEL
    if "images" not in attack.DOMAINS:
        vectors = (data.images.float() / 255).flatten(1)[:, :, None, None]
        size, model = vectors.shape[1], EmberMLP(widths=(16, 8, 8))
        data = ImageSet(images=vectors, labels=data.labels)
        shape = Shape(
            channels=size, height=1, width=1, num_classes=toy.CLASSES,
            mean=(0.5,) * size, std=(0.3,) * size,
        )  # fmt: skip
    ids, made = np.arange(24), {}
    given: dict[str, Any] = {}
    if attack.SURROGATE:
        given = {"surrogate": victim(model, shape, case, ctx)}
    elif attack.EVADES:
        given = {
            "victim": victim(model, shape, case, ctx), "test": data.take(ids), "test_rows": ids,
        }  # fmt: skip
    if attack.PREPARES:
        rows = np.arange(len(data))
        inputs = AttackInputs(
            data=data, rows=rows, model=model, shape=shape, recipe=RECIPE, **given
        )
        made = dict(attack.prepare(inputs, ctx))
    images = as_floats(data.images).to(device)
    poisoned = np.flatnonzero(attack.pool(data.labels, toy.CLASSES))[:24]
    parts: dict[Part, Any] = {"poison": poisoned, "cover": ids, "test": ids}
    stamped = [
        attack.stamp(images[torch.from_numpy(rows)], ids=rows, part=part, artifact=made, seed=7)
        for part, rows in parts.items()
    ]
    return made, stamped


def defended(defense: Defense, case: toy.Toy, device: str, scored: int = SCORED) -> Any:
    """Return all that a defense gives on the toy; a repair is of the true class and samples."""
    ctx = Context(seed=5, device=device)

    def inputs(**more: Any) -> Any:
        if "victim" in defense.needs():
            more["victim"] = victim(toy.MODEL, toy.SHAPE, case, ctx)
        return toy.inputs(defense, case, **more)

    shards = [dict(defense.shard(part, inputs(), ctx)) for part in defense.parts(toy.CLASSES)]
    findings = defense.run(inputs(shards=shards), ctx)
    found: dict[str, Any] = {
        "numbers": contract_of_defenses.outputs(dataclasses.replace(findings, model=None)),
        "model": findings.model,
    }
    if findings.score_inputs is not None:
        images = as_floats(case.test.images[:scored])
        found["scores"] = findings.score_inputs(images, np.arange(scored))
    if defense.REPAIRS:
        scores = np.eye(toy.CLASSES)[toy.TARGET]
        decision = Decision(classes=(toy.TARGET,), class_scores=scores, flags=case.mask)
        given = inputs(shards=shards, found=dict(findings.kept), decision=decision)
        found["repaired"] = defense.repair(given, ctx)
    return found


@functools.cache
def compared(role: methods.Role, name: str, size: str) -> int:
    """Compare a method on the device with itself on the CPU; return how often the host waited."""
    if role == "attacks":
        return equal_on_both(functools.partial(attacked, attack_of(name, size), case(size)))
    return equal_on_both(functools.partial(defended, defense_of(name, size), case(size)))


@pytest.mark.parametrize("name", test_attacks.NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_every_attack_equals_itself_on_the_cpu(name: str, size: str) -> None:
    compared("attacks", name, size)


@pytest.mark.parametrize("name", test_defenses.NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_every_defense_equals_itself_on_the_cpu(name: str, size: str) -> None:
    compared("defenses", name, size)


SIZED = [
    pytest.param(name, marks=[pytest.mark.device_rules] * (name in SLOW))
    for name in test_models.NAMES
]


@pytest.mark.parametrize("name", SIZED)
def test_a_step_of_every_model_equals_itself_on_the_cpu(name: str) -> None:
    model = test_models.make(name)
    vectors = "images" not in model.DOMAINS
    size = next(
        size for size in contract_of_models.SIZES
        if (size[1] == 1) == vectors and contract_of_models.suits(model, size)
    )  # fmt: skip
    images = torch.rand(4, *size, generator=torch.Generator().manual_seed(1))
    data = ImageSet(images=images, labels=np.arange(4))
    recipe = RECIPE.model_copy(update={"epochs": 1})

    def work(device: str) -> Any:
        ctx = Context(seed=1, device=device)
        network = training.build(model, contract_of_models.shape(*size), ctx)
        return training.fit(network, data, recipe, ctx), network.state_dict()

    equal_on_both(work)


def units(role: methods.Role, name: str) -> list[str]:
    kind: Any = methods.load(role, name)
    found = [f for f in kind.model_fields if f.endswith(("steps", "epochs"))]
    return found + ["images"] * (role == "defenses" and "input_scores" in kind().gives())


def waits_of_more(role: methods.Role, name: str, unit: str) -> int:
    """Return the waits of the small form of a method with more of a unit of work."""
    method: Any = attack_of(name, "small") if role == "attacks" else defense_of(name, "small")
    if unit == "images":
        return waits(lambda: defended(method, small(), "cuda", SCORED + MORE))
    method = method.model_copy(update={unit: getattr(method, unit) + MORE})
    work: Any = attacked if role == "attacks" else defended
    return waits(lambda: work(method, small(), "cuda"))


@pytest.mark.parametrize(
    ("role", "name", "unit"),
    [
        (role, name, unit)
        for role, names in (("attacks", test_attacks.NAMES), ("defenses", test_defenses.NAMES))
        for name in names
        for unit in units(role, name)  # type: ignore[arg-type]
        if name not in VARYING
    ],
)
def test_waits_per_unit_of_work_only_shrink(role: methods.Role, name: str, unit: str) -> None:
    before = compared(role, name, "small")
    grown = (waits_of_more(role, name, unit) - before) / MORE
    at_most = WAITS.get(f"{name}.{unit}", USUAL[unit.rpartition("_")[2]])
    assert grown <= at_most, f"{name} makes the host wait more often per unit of {unit}"
    small_enough = grown > at_most / 2 or f"{name}.{unit}" not in WAITS
    assert small_enough, f"well done: write {math.ceil(grown)} as {name}.{unit} into WAITS"


def test_what_is_written_down_exists() -> None:
    names = {"attacks": test_attacks.NAMES, "defenses": test_defenses.NAMES}
    known = {f"{n}.{u}" for role in names for n in names[role] for u in units(role, n)}  # type: ignore
    assert set(WAITS) <= known and set(test_models.NAMES) >= SLOW
    assert set(test_defenses.NAMES) >= VARYING
