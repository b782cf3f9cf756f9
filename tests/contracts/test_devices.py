"""What every method keeps to on a GPU: nothing refused, the CPU's bytes, no more waits than now."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest

from raysweep import methods
from raysweep.attacks import Attack
from raysweep.defenses import Defense
from raysweep.testing import toy
from raysweep.testing.devices import SCORED, attacked, defended, equal_on_both, trained, waits
from tests.contracts import test_attacks, test_defenses, test_models

FEW = 4
# With fewer than these, by field or by method and field, a method refuses the toy, or takes long.
ENOUGH = {"models": 60, "per_shard": 60, "scale": 0.001, "red.steps": 24, "components": 2}
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
    equal_on_both(functools.partial(trained, test_models.make(name)))


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


@pytest.mark.further
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
