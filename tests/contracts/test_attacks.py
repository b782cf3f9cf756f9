"""What every attack keeps to, found by scanning."""

from __future__ import annotations

import functools
import hashlib
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raysweep import methods, rng, training
from raysweep.attacks import Attack, AttackInputs, Choice, Counts, Part
from raysweep.attacks.badnets import BadNets
from raysweep.datasets import ImageSet, Shape
from raysweep.datasets.digits import Digits
from raysweep.defenses.none import NoDefense
from raysweep.errors import PlanError, StageError
from raysweep.methods.context import Arrays, Context
from raysweep.methods.recipe import Recipe
from raysweep.models import Model
from raysweep.models.ember_mlp import EmberMLP
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.plan.planner import Planner
from raysweep.sweep.spec import Sweep

SHAPES = [(1, 16, 16), (3, 32, 32), (3, 20, 28), (60, 1, 1)]
LABELS = rng.generator(0, "labels").integers(0, 10, 500)
# An attack that is made of a user's files is met in that format's tests.
NAMES = [
    name
    for name in methods.available("attacks")
    if not any(f.is_required() for f in methods.load("attacks", name).model_fields.values())
]
# CandidateEnd by what they do: a control has no trigger, so no input is eligible.
TRIGGERS = [n for n in NAMES if methods.load("attacks", n)().eligible(LABELS, 10).any()]  # type: ignore[attr-defined]
EVADING = [n for n in NAMES if methods.load("attacks", n).EVADES]  # type: ignore[attr-defined]
POISONING = [n for n in TRIGGERS if n not in EVADING]


def make(name: str, **given: object) -> Attack:
    kind = methods.load("attacks", name)
    if name not in POISONING:
        given.pop("rate", None)
    return kind.model_validate({**given, **kind.TOY})  # type: ignore[return-value]


def at_work(attack: Attack) -> Attack:
    """Return the attack as stages hold it whose keys hold no rate."""
    identity = attack.identity(leave_out=frozenset(Attack.INSTEAD))
    return methods.restore("attacks", identity)  # type: ignore[no-any-return]


def pixels(shape: tuple[int, int, int], n: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def artifact(attack: Attack, shape: tuple[int, int, int]) -> Arrays:
    """Return what the attack prepares on a few random images, trained against for an epoch."""
    if not attack.PREPARES:
        return {}
    count, channels = 40, shape[0]
    images = pixels(shape, count)
    model: Model = EmberMLP(widths=(16, 8, 8))
    if "images" in attack.DOMAINS:
        images, model = images.mul(255).round().to(torch.uint8), TinyCNN(width=4)
    data = ImageSet(images=images, labels=np.arange(count) % 2 * attack.target)
    facts = Shape(
        channels=channels, height=shape[1], width=shape[2], num_classes=10,
        mean=(0.5,) * channels, std=(0.3,) * channels,
    )  # fmt: skip
    ctx = Context(seed=3)
    recipe = Recipe(epochs=1, batch_size=20, precision="float32")
    trained = training.build(model, facts, ctx).eval()
    given: dict[str, Any] = {"surrogate": trained} if attack.SURROGATE else {}
    if attack.EVADES:
        given = {"victim": trained, "test": data, "test_rows": np.arange(count)}
    return attack.prepare(
        AttackInputs(
            data=data, rows=np.arange(count), model=model, shape=facts, recipe=recipe, **given
        ),
        ctx,
    )


def drawn(attack: Attack, counts: Counts, seed: int) -> Choice:
    return at_work(attack).choose(LABELS, 10, counts, {}, np.random.default_rng(seed))


def chosen(attack: Attack, seed: int = 2) -> Choice:
    return drawn(attack, attack.counts(LABELS, 10), seed)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_frozen_value(name: str) -> None:
    attack = make(name)
    again = methods.restore("attacks", attack.identity())
    assert again == attack and hash(again) == hash(attack) and again.name == name
    for field in type(attack).model_fields:
        with pytest.raises(ValidationError):
            setattr(attack, field, None)
    for wrong in ({"no_such_field": 1}, {"rate": 1.5}, {"rate": -0.1}, {"rate": "a lot"}):
        with pytest.raises(ValidationError):
            methods.load("attacks", name).model_validate(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_where_no_rate_is_held_none_can_be_read(name: str) -> None:
    attack = make(name, rate=0.06, target=1, sources=None)
    held = at_work(attack)
    for field, instead in (("rate", "counts.poison"), ("cover_rate", "counts.cover")):
        said = rf"method {name}: {field} has no value in this stage, .*; read {instead}, the real"
        with pytest.raises(StageError, match=said):
            getattr(held, field)
    with pytest.raises(StageError, match=r"read counts\.poison"):
        held.counts(LABELS, 10)
    assert held != attack and "(rate=" in repr(attack)
    assert "(rate=" not in repr(held) and "cover_rate=" not in repr(held)
    same = [
        at_work(make(name, rate=0.02, target=1, sources=None)), at_work(held),
        attack.without(attack.INSTEAD), pickle.loads(pickle.dumps(held)), held.model_copy(),
    ]  # fmt: skip
    for other in same:
        assert other == held and hash(other) == hash(held)
        assert other.identity() == attack.identity(leave_out=frozenset(Attack.INSTEAD))
        assert other.label == attack.label and "target=1" in other.label
    assert methods.restore("attacks", attack.identity()).rate == attack.rate, "it is in this key"


@pytest.mark.parametrize("name", NAMES)
def test_as_many_are_chosen_as_were_counted(name: str) -> None:
    attack = make(name)
    pool, coverable = attack.pool(LABELS, 10), attack.cover_pool(LABELS, 10)
    for poison in (0, 1, 2, 17, int(pool.sum()) - 1, int(pool.sum())):
        left = int((coverable & ~pool).sum()) + max(int((pool & coverable).sum()) - poison, 0)
        for cover in {0, min(1, left), min(23, left), left}:
            counts = Counts(poison=poison, cover=cover)
            for seed in range(3):
                choice = drawn(attack, counts, seed)
                assert choice.counts == counts
                assert len({*choice.poison, *choice.cover}) == poison + cover, "no row twice"
                assert pool[choice.poison].all() and coverable[choice.cover].all()


# Stored poisoned sets hold these rows.
ROWS = {
    "additive": "85754b019045", "badnets": "9f55e1f78b1c", "badnets_clean_label": "96b756c73e0a",
    "composite": "a1a4bdde3692", "planted_feature": "f20c26c017da", "tact": "ad572748aa5c",
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_rows_of_a_count_and_a_seed_stay_the_same(name: str) -> None:
    choice = drawn(methods.load("attacks", name)(), Counts(poison=25, cover=12), 0)  # type: ignore[arg-type]
    rows = np.concatenate([choice.poison, [-1], choice.cover]).astype("<i8")
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:12] == ROWS[name]


@pytest.mark.parametrize("trains", [False, True])
def test_a_stage_holds_the_rate_that_is_in_its_key_or_none(
    monkeypatch: pytest.MonkeyPatch, trains: bool
) -> None:
    monkeypatch.setattr(BadNets, "TRAINS", trains)
    sweep = Sweep.model_validate(
        {"name": "t", "dataset": Digits(), "model": TinyCNN(), "attacks": [BadNets(rate=0.05)],
         "defenses": [methods.load("defenses", "strip")()], "seeds": 1}
    )  # fmt: skip
    planner = Planner(sweep)
    planner.route(planner.trials[0], {})
    held = []
    for stage in planner.stages.values():
        if "attack" in stage.params:
            held.append(stage.kind)
            attack = stage.packed().unpacked().attack  # type: ignore[attr-defined]
            if trains and stage.kind == "train":
                assert (attack.rate, attack.cover_rate) == (0.05, 0.0)
                continue
            with pytest.raises(StageError, match="method badnets: rate has no value"):
                _ = attack.rate
    assert sorted(held) == ["defend", "evaluate", "features", "train" if trains else "poison"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05])
def test_choices_are_counted_sorted_disjoint_and_in_the_pool(name: str, rate: float) -> None:
    attack = make(name, rate=rate)
    counts = attack.counts(LABELS, 10)
    assert counts.poison == int(attack.rate * 500)
    one, again = chosen(attack), chosen(attack)
    assert (len(one.poison), len(one.cover)) == (counts.poison, counts.cover)
    assert (np.diff(one.poison) > 0).all() and (np.diff(one.cover) > 0).all()
    assert not set(one.poison) & set(one.cover)
    assert attack.pool(LABELS, 10)[one.poison].all()
    assert (again.poison == one.poison).all() and (again.cover == one.cover).all()


@pytest.mark.parametrize("name", POISONING)
def test_a_smaller_rate_poisons_a_part_of_what_a_larger_one_does(name: str) -> None:
    small, large = (chosen(make(name, rate=rate)).poison for rate in (0.02, 0.06))
    assert set(small) < set(large)
    assert set(chosen(make(name, rate=0.06), seed=3).poison) != set(large)


@pytest.mark.parametrize("name", NAMES)
def test_rate_0_touches_nothing(name: str) -> None:
    attack = make(name, rate=0.0)
    assert attack.counts(LABELS, 10) == Counts(poison=0, cover=0)
    assert len(chosen(attack).poison) == len(chosen(attack).cover) == 0


@pytest.mark.parametrize("name", TRIGGERS)
def test_at_rate_0_the_victim_is_the_clean_model(name: str) -> None:
    attacks = [methods.load("attacks", "none")(), make(name, rate=0.0)]
    if "images" not in attacks[1].DOMAINS:  # type: ignore[attr-defined]
        pytest.skip("feature vectors are no images: tests/test_plan.py plans them")
    sweep = Sweep.model_validate(
        {"name": "t", "dataset": Digits(), "model": TinyCNN(), "attacks": attacks,
         "defenses": [NoDefense()], "seeds": 1}
    )  # fmt: skip
    planner = Planner(sweep)
    clean, floor = (planner.route(trial, {}) for trial in planner.trials)
    assert floor.victim == clean.victim and floor.poison is None
    assert floor.evaluate != clean.evaluate


@pytest.mark.parametrize("name", POISONING)
@pytest.mark.parametrize("total", [500, 50_000])
def test_an_impossible_rate_names_the_highest_possible_one(name: str, total: int) -> None:
    # Two thirds of class 1: a share that would be rounded up to more than there are.
    labels = np.where(np.arange(total) % 3 < 2, 1, 0)
    pooled = {"target": 1} if make(name).CLEAN_LABEL else {"sources": (1,), "target": 0}
    attack = make(name, rate=0.9, cover_rate=0.0, **pooled)
    pool = int(attack.pool(labels, 2).sum())
    with pytest.raises(PlanError, match=r"the rate can be at most ([\d.]+)") as refused:
        attack.counts(labels, 2)
    named = float(str(refused.value).rpartition(" ")[2])
    possible = attack.model_copy(update={"rate": named}).counts(labels, 2)
    assert pool - 1 <= possible.poison <= pool
    beyond = attack.model_copy(update={"rate": (pool + 1.5) / total})
    with pytest.raises(PlanError, match=f"asks for {pool + 1} poisoned images"):
        beyond.counts(labels, 2)
    with pytest.raises(PlanError, match="target must be a class from 0 to 9, got 10"):
        make(name, target=10).counts(LABELS, 10)
    with pytest.raises(PlanError, match=r"cover_rate 1 asks for 500 of 500 images, but .* only"):
        make(name, rate=0.02, cover_rate=1.0).counts(LABELS, 10)


@pytest.mark.parametrize("name", POISONING)
def test_covers_come_from_their_pool(name: str) -> None:
    attack = make(name, rate=0.02, cover_rate=0.05)
    choice = chosen(attack)
    assert len(choice.cover) == 25 and not set(choice.cover) & set(choice.poison)
    assert attack.cover_pool(LABELS, 10)[choice.cover].all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("part", ["poison", "cover", "test"])
def test_stamping_is_pure_bounded_and_blind_to_batches(
    name: str, shape: tuple[int, int, int], part: Part
) -> None:
    # Preparations call target images what is odd here; so may be poisoned by a clean-label attack.
    attack = at_work(make(name, target=1, sources=None))
    vectors = "images" not in attack.DOMAINS
    if vectors != (shape[1] == 1) and name != "none":
        pytest.skip("feature vectors are no images: the plan keeps them apart")
    made = artifact(attack, shape)
    images, ids = pixels(shape), np.arange(8) * 4 + 1
    before = images.clone()
    stamped = attack.stamp(images, ids=ids, part=part, artifact=made, seed=7)
    assert torch.equal(images, before), "the input is left untouched"
    assert stamped.shape == images.shape and stamped.dtype == images.dtype
    assert float(stamped.min()) >= 0 and float(stamped.max()) <= 1
    order = np.array([5, 0, 7, 2])
    some = attack.stamp(
        images[torch.from_numpy(order)], ids=ids[order], part=part, artifact=made, seed=7
    )
    torch.testing.assert_close(some, stamped[torch.from_numpy(order)])
    again = attack.stamp(images, ids=ids, part=part, artifact=made, seed=7)
    assert torch.equal(again, stamped)
    changed = (stamped != images).flatten(1).any(1)
    stamps = name in POISONING or (name in EVADING and part == "test")
    assert changed.all() if stamps else not changed.any()


@pytest.mark.parametrize("name", EVADING)
def test_an_evasion_touches_no_training_data_and_knows_the_test_inputs(name: str) -> None:
    attack, shape, count = make(name, target=1), (1, 16, 16), 40
    assert attack.PREPARES and not (attack.SURROGATE or attack.TRAINS or attack.CLEAN_LABEL)
    assert attack.rate == 0 and attack.counts(LABELS, 10) == Counts(poison=0, cover=0)
    for field in ("rate", "cover_rate"):
        with pytest.raises(ValidationError, match=f"{field} must be 0, got 0.1.*leave {field} out"):
            methods.load("attacks", name).model_validate({field: 0.1})
    attack = at_work(attack)
    made, ids = artifact(attack, shape), np.arange(count)
    assert attack.triggers(ids, made).all(), "inputs that are not attacked have an entry too"
    assert not attack.triggers(np.array([count]), made).any()
    given = pixels(shape, count).mul(255).round().div(255)
    stamped = attack.stamp(given, ids=ids, part="test", artifact=made, seed=7)
    wanted = torch.from_numpy(np.arange(count) % 2 == 1)
    torch.testing.assert_close(stamped[wanted], given[wanted], msg="they have the label already")
    levels = stamped.mul(255)
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=f"has no form of row {count} of the test files"):
        attack.stamp(given[:1], ids=np.array([count]), part="test", artifact=made, seed=7)


@pytest.mark.parametrize("name", TRIGGERS)
def test_label_maps_and_sources(name: str) -> None:
    attack = at_work(make(name, target=3))
    assert (attack.relabel(LABELS, 10) == 3).all()
    attacked = np.isin(LABELS, attack.sources or range(10))
    assert (attack.eligible(LABELS, 10) == (attacked & (LABELS != 3))).all()
    specific = at_work(make(name, sources=(2, 4)))
    assert (specific.eligible(LABELS, 10) == np.isin(LABELS, [2, 4])).all()
    if attack.CLEAN_LABEL:
        assert (attack.pool(LABELS, 10) == (LABELS == 3)).all()
        poisoned = LABELS[drawn(attack, Counts(poison=25, cover=0), 2).poison]
        assert (attack.relabel(poisoned, 10) == poisoned).all()
        for wrong in ({"label_map": "all_to_all"}, {"include_target": False}):
            with pytest.raises(ValidationError, match=f"{next(iter(wrong))} must be"):
                make(name, **wrong)
        return
    assert (specific.pool(LABELS, 10) == np.isin(LABELS, [2, 4])).all()
    outside = at_work(make(name, include_target=False, target=3, sources=None))
    assert (outside.pool(LABELS, 10) == (LABELS != 3)).all()
    shifted = at_work(make(name, label_map="all_to_all", sources=None))
    assert (shifted.relabel(LABELS, 10) == (LABELS + 1) % 10).all()
    assert shifted.eligible(LABELS, 10).all()


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("sources", [(), (3,)], ids=str)
def test_sources_that_leave_nothing_to_attack_are_refused(
    name: str, sources: tuple[int, ...]
) -> None:
    with pytest.raises(ValidationError, match="sources must name a class other than target"):
        make(name, target=3, sources=sources)
