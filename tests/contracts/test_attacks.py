"""What every attack keeps to, found by scanning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raysweep import methods, rng
from raysweep.attacks import Attack, Part
from raysweep.errors import PlanError

NAMES = list(methods.available("attacks"))
SHAPES = [(1, 16, 16), (3, 32, 32), (3, 20, 28)]
LABELS = rng.generator(0, "labels").integers(0, 10, 500)


def make(name: str, **given: object) -> Attack:
    kind = methods.load("attacks", name)
    if name == "none":
        given.pop("rate", None)
    return kind.model_validate(given)  # type: ignore[return-value]


def pixels(shape: tuple[int, int, int], n: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_is_a_frozen_value(name: str) -> None:
    attack = make(name)
    again = methods.restore("attacks", attack.identity())
    assert again == attack and hash(again) == hash(attack) and again.name == name
    for wrong in ({"no_such_field": 1}, {"rate": 1.5}, {"rate": -0.1}, {"rate": "a lot"}):
        with pytest.raises(ValidationError):
            methods.load("attacks", name).model_validate(wrong)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05])
def test_choices_are_counted_sorted_disjoint_and_in_the_pool(name: str, rate: float) -> None:
    attack = make(name, rate=rate)
    counts = attack.counts(LABELS, 10)
    assert counts.poison == int(attack.rate * 500)
    chosen = attack.choose(LABELS, 10, {}, np.random.default_rng(1))
    assert (len(chosen.poison), len(chosen.cover)) == (counts.poison, counts.cover)
    assert (np.diff(chosen.poison) > 0).all() and (np.diff(chosen.cover) > 0).all()
    assert not set(chosen.poison) & set(chosen.cover)
    assert attack.pool(LABELS, 10)[chosen.poison].all()
    again = attack.choose(LABELS, 10, {}, np.random.default_rng(1))
    assert (again.poison == chosen.poison).all() and (again.cover == chosen.cover).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
def test_a_smaller_rate_poisons_a_part_of_what_a_larger_one_does(name: str) -> None:
    small, large = (
        make(name, rate=rate).choose(LABELS, 10, {}, np.random.default_rng(2)).poison
        for rate in (0.02, 0.06)
    )
    assert set(small) < set(large)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
def test_an_impossible_rate_names_the_highest_possible_one(name: str) -> None:
    attack = make(name, rate=0.9, sources=[1] if name != "sig" else None) if name == "sig" else (
        methods.restore("attacks", {**make(name).identity(), "rate": 0.9, "sources": [1]})
    )  # fmt: skip
    pool = attack.pool(LABELS, 10).sum()
    with pytest.raises(PlanError, match=f"can be at most {pool / 500:.4g}"):
        attack.counts(LABELS, 10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("part", ["poison", "cover", "test"])
def test_stamping_is_pure_bounded_and_blind_to_batches(
    name: str, shape: tuple[int, int, int], part: Part
) -> None:
    attack = make(name)
    images, ids = pixels(shape), np.arange(8) * 3
    before = images.clone()
    stamped = attack.stamp(images, ids=ids, part=part, artifact={}, seed=7)
    assert torch.equal(images, before), "the input is left untouched"
    assert stamped.shape == images.shape and stamped.dtype == images.dtype
    assert float(stamped.min()) >= 0 and float(stamped.max()) <= 1
    order = np.array([5, 0, 7, 2])
    some = attack.stamp(
        images[torch.from_numpy(order)], ids=ids[order], part=part, artifact={}, seed=7
    )
    torch.testing.assert_close(some, stamped[torch.from_numpy(order)])
    again = attack.stamp(images, ids=ids, part=part, artifact={}, seed=7)
    assert torch.equal(again, stamped)
    changed = (stamped != images).flatten(1).any(1)
    assert changed.all() if name != "none" else not changed.any()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
def test_label_maps_and_sources(name: str) -> None:
    attack = make(name, target=3)
    assert (attack.relabel(LABELS, 10) == 3).all()
    assert (attack.eligible(LABELS, 10) == (LABELS != 3)).all()
    shifted = make(name, label_map="all_to_all")
    assert (shifted.relabel(LABELS, 10) == (LABELS + 1) % 10).all()
    assert shifted.eligible(LABELS, 10).all()
    specific = methods.restore("attacks", {**make(name).identity(), "sources": [2, 4]})
    assert (specific.eligible(LABELS, 10) == np.isin(LABELS, [2, 4])).all()
    if not attack.CLEAN_LABEL:
        assert (specific.pool(LABELS, 10) == np.isin(LABELS, [2, 4])).all()
        outside = make(name, include_target=False, target=3)
        assert (outside.pool(LABELS, 10) == (LABELS != 3)).all()
