"""The contract of attacks: what every attack keeps to, its toy victim included."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raysweep import methods, rng, training
from raysweep.attacks import Attack, AttackInputs, Choice, Counts, Part
from raysweep.attacks.none import NoAttack
from raysweep.datasets import ImageSet, Shape
from raysweep.datasets.digits import Digits
from raysweep.defenses.none import NoDefense
from raysweep.errors import PlanError, StageError
from raysweep.methods import Arrays, Context, Recipe
from raysweep.models import Model
from raysweep.models.ember_mlp import EmberMLP
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.plan.planner import Planner
from raysweep.store import Store
from raysweep.sweep.spec import Sweep
from raysweep.testing import kill

Kind = type[Attack]
Size = tuple[int, int, int]
SHAPES: list[Size] = [(1, 16, 16), (3, 32, 32), (3, 20, 28), (60, 1, 1)]
LABELS = rng.generator(0, "labels").integers(0, 10, 500)


def triggers(kind: Kind) -> bool:
    """Return whether an attack has a trigger; a control has none, so no input is eligible."""
    made: Attack = kind.model_validate(dict(kind.TOY))
    return bool(made.eligible(LABELS, 10).any())


def poisons(kind: Kind) -> bool:
    """Return whether an attack changes training samples."""
    return triggers(kind) and not kind.EVADES


def make(kind: Kind, **given: object) -> Attack:
    """Return the attack as small as its toy size; one that poisons nothing is given no rate."""
    if not poisons(kind):
        given.pop("rate", None)
    return kind.model_validate({**given, **kind.TOY})


def at_work(attack: Attack) -> Attack:
    """Return the attack as stages hold it whose keys hold no rate."""
    identity = attack.identity(leave_out=frozenset(Attack.INSTEAD))
    restored: Attack = methods.restore("attacks", identity)
    return restored


def pixels(shape: Size, n: int = 8, seed: int = 0) -> torch.Tensor:
    """Return random images (N, C, H, W) in [0, 1]."""
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def artifact(attack: Attack, shape: Size) -> Arrays:
    """Return the arrays that the attack prepares on a few random images, trained for an epoch."""
    return prepared(attack, shape, Context(seed=3)) if attack.PREPARES else {}


def prepared(attack: Attack, shape: Size, ctx: Context) -> Arrays:
    """Return the arrays that the attack prepares, in the surroundings of `ctx`."""
    count, channels = 40, shape[0]
    images = pixels(shape, count)
    model: Model = EmberMLP(widths=(16, 8, 8))
    if "images" in attack.DOMAINS:
        images, model = images.mul(255).round().to(torch.uint8), TinyCNN(width=4)
    labels = np.arange(count) % 2 * attack.target
    labels[30::2] = 2  # of a class that no test takes for target or source
    data = ImageSet(images=images, labels=labels)
    facts = Shape(
        channels=channels, height=shape[1], width=shape[2], num_classes=10,
        mean=(0.5,) * channels, std=(0.3,) * channels,
    )  # fmt: skip
    recipe = Recipe(epochs=1, batch_size=20, precision="float32")
    trained = training.build(model, facts, Context(seed=3)).eval()
    rows = np.arange(count)
    given: dict[str, Any] = {"surrogate": trained} if attack.SURROGATE else {}
    if attack.EVADES:
        given = {"victim": trained, "test": data, "test_rows": rows}
    inputs = AttackInputs(data=data, rows=rows, model=model, shape=facts, recipe=recipe, **given)
    return attack.prepare(inputs, ctx)


def drawn(attack: Attack, counts: Counts, seed: int) -> Choice:
    """Return the rows that an attack chooses of 500 labels, without knowing its rate."""
    return at_work(attack).choose(LABELS, 10, counts, {}, np.random.default_rng(seed))


def chosen(attack: Attack, seed: int = 2) -> Choice:
    """Return the rows that an attack chooses at its rate."""
    return drawn(attack, attack.counts(LABELS, 10), seed)


def _only(needed: bool, why: str) -> None:
    if not needed:
        pytest.skip(why)


class AttackContract:
    """The tests that an attack inherits: `class TestMine(AttackContract): method = MyAttack`.

    Its entry point must be installed: stages restore an attack by its name. `TOY` of the attack
    names smaller parameters where the defaults are slow.

    Attributes:
        method: the attack's class.
    """

    method: ClassVar[Kind]

    @pytest.fixture
    def kind(self) -> Kind:
        """The attack's class."""
        return self.method

    def test_is_a_frozen_value(self, kind: Kind) -> None:
        """The attack is restored from its identity, and wrong parameters are refused."""
        attack = make(kind)
        again = methods.restore("attacks", attack.identity())
        assert again == attack and hash(again) == hash(attack) and again.name == attack.name
        for field in type(attack).model_fields:
            with pytest.raises(ValidationError):
                setattr(attack, field, None)
        for wrong in ({"no_such_field": 1}, {"rate": 1.5}, {"rate": -0.1}, {"rate": "a lot"}):
            with pytest.raises(ValidationError):
                kind.model_validate(wrong)

    def test_where_no_rate_is_held_none_can_be_read(self, kind: Kind) -> None:
        """In stages that all rates share, reading the rate is an error, never the default."""
        attack = make(kind, rate=0.06, target=1, sources=None)
        held = at_work(attack)
        for field, instead in (("rate", "counts.poison"), ("cover_rate", "counts.cover")):
            said = rf"method {attack.name}: {field} has no value in this stage, .*; read {instead},"
            with pytest.raises(StageError, match=f"{said} the real"):
                getattr(held, field)
        with pytest.raises(StageError, match=r"read counts\.poison"):
            held.counts(LABELS, 10)
        assert held != attack and "(rate=" in repr(attack)
        assert "(rate=" not in repr(held) and "cover_rate=" not in repr(held)
        same = [
            at_work(make(kind, rate=0.02, target=1, sources=None)), at_work(held),
            attack.without(attack.INSTEAD), held.model_copy(),
        ]  # fmt: skip
        for other in same:
            assert other == held and hash(other) == hash(held)
            assert other.identity() == attack.identity(leave_out=frozenset(Attack.INSTEAD))
            assert other.label == attack.label and "target=1" in other.label
        restored = methods.restore("attacks", attack.identity())
        assert restored.rate == attack.rate, "it is in this key"

    def test_as_many_are_chosen_as_were_counted(self, kind: Kind) -> None:
        """`choose` returns as many rows as it is told, from the pools, none twice."""
        attack = make(kind)
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

    @pytest.mark.parametrize("rate", [0.0, 0.01, 0.05])
    def test_choices_are_counted_sorted_disjoint_and_in_the_pool(
        self, kind: Kind, rate: float
    ) -> None:
        """At a rate, the same rows are chosen by the same seed."""
        attack = make(kind, rate=rate)
        counts = attack.counts(LABELS, 10)
        assert counts.poison == int(attack.rate * 500)
        one, again = chosen(attack), chosen(attack)
        assert (len(one.poison), len(one.cover)) == (counts.poison, counts.cover)
        assert (np.diff(one.poison) > 0).all() and (np.diff(one.cover) > 0).all()
        assert not set(one.poison) & set(one.cover)
        assert attack.pool(LABELS, 10)[one.poison].all()
        assert (again.poison == one.poison).all() and (again.cover == one.cover).all()

    def test_a_smaller_rate_poisons_a_part_of_what_a_larger_one_does(self, kind: Kind) -> None:
        """Rates differ in the number of samples alone; seeds differ in the samples."""
        _only(poisons(kind), "it poisons nothing")
        small, large = (chosen(make(kind, rate=rate)).poison for rate in (0.02, 0.06))
        assert set(small) < set(large)
        assert set(chosen(make(kind, rate=0.06), seed=3).poison) != set(large)

    def test_rate_0_touches_nothing(self, kind: Kind) -> None:
        """At rate 0 there is neither poison nor a cover."""
        attack = make(kind, rate=0.0)
        assert attack.counts(LABELS, 10) == Counts(poison=0, cover=0)
        assert len(chosen(attack).poison) == len(chosen(attack).cover) == 0

    def test_at_rate_0_the_victim_is_the_clean_model(self, kind: Kind) -> None:
        """At rate 0 the plan trains no victim of the attack's own."""
        _only(triggers(kind), "it has no trigger")
        attacks = [NoAttack(), make(kind, rate=0.0)]
        if "images" not in attacks[1].DOMAINS:
            pytest.skip("feature vectors are no images: the plan keeps them apart")
        sweep = Sweep.model_validate(
            {"name": "t", "dataset": Digits(), "model": TinyCNN(), "attacks": attacks,
             "defenses": [NoDefense()], "seeds": 1}
        )  # fmt: skip
        planner = Planner(sweep)
        clean, floor = (planner.route(trial, {}) for trial in planner.trials)
        assert floor.victim == clean.victim and floor.poison is None
        assert floor.evaluate != clean.evaluate

    @pytest.mark.parametrize("total", [500, 50_000])
    def test_an_impossible_rate_names_the_highest_possible_one(
        self, kind: Kind, total: int
    ) -> None:
        """A pool that is too small is an error that names a rate that is possible."""
        _only(poisons(kind), "it poisons nothing")
        # Two thirds of class 1: a share that would be rounded up to more than there are.
        labels = np.where(np.arange(total) % 3 < 2, 1, 0)
        pooled = {"target": 1} if make(kind).CLEAN_LABEL else {"sources": (1,), "target": 0}
        attack = make(kind, rate=0.9, cover_rate=0.0, **pooled)
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
            make(kind, target=10).counts(LABELS, 10)
        with pytest.raises(
            PlanError, match=r"cover_rate 1 asks for 500 of 500 images, but .* only"
        ):
            make(kind, rate=0.02, cover_rate=1.0).counts(LABELS, 10)

    def test_covers_come_from_their_pool(self, kind: Kind) -> None:
        """Covers are other rows than poison."""
        _only(poisons(kind), "it poisons nothing")
        attack = make(kind, rate=0.02, cover_rate=0.05)
        choice = chosen(attack)
        assert len(choice.cover) == 25 and not set(choice.cover) & set(choice.poison)
        assert attack.cover_pool(LABELS, 10)[choice.cover].all()

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("part", ["poison", "cover", "test"])
    def test_stamping_is_pure_bounded_and_blind_to_batches(
        self, kind: Kind, shape: Size, part: Part
    ) -> None:
        """`stamp` leaves its input alone, stays in [0, 1], and stamps each image by itself."""
        # Preparations call target images what is odd here; so may be poisoned by a clean-label one.
        attack = at_work(make(kind, target=1, sources=None))
        vectors = "images" not in attack.DOMAINS
        if vectors != (shape[1] == 1) and attack.name != "none":
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
        stamps = poisons(kind) or (kind.EVADES and part == "test")
        assert changed.all() if stamps else not changed.any()

    def test_an_evasion_touches_no_training_data_and_knows_the_test_inputs(
        self, kind: Kind
    ) -> None:
        """An attack on test inputs alone has no rate, and a form of each test input."""
        _only(kind.EVADES, "it attacks training data")
        attack, shape, count = make(kind, target=1), (1, 16, 16), 40
        assert attack.PREPARES and not (attack.SURROGATE or attack.TRAINS or attack.CLEAN_LABEL)
        assert attack.rate == 0 and attack.counts(LABELS, 10) == Counts(poison=0, cover=0)
        for field in ("rate", "cover_rate"):
            said = f"{field} must be 0, got 0.1.*leave {field} out"
            with pytest.raises(ValidationError, match=said):
                kind.model_validate({field: 0.1})
        attack = at_work(attack)
        made, ids = artifact(attack, shape), np.arange(count)
        assert attack.triggers(ids, made).all(), "inputs that are not attacked have an entry too"
        assert not attack.triggers(np.array([count]), made).any()
        given = pixels(shape, count).mul(255).round().div(255)
        stamped = attack.stamp(given, ids=ids, part="test", artifact=made, seed=7)
        wanted = torch.from_numpy(np.arange(count) % 2 == 1)
        same = "they have the label already"
        torch.testing.assert_close(stamped[wanted], given[wanted], msg=same)
        levels = stamped.mul(255)
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
        with pytest.raises(ValueError, match=f"has no form of row {count} of the test files"):
            attack.stamp(given[:1], ids=np.array([count]), part="test", artifact=made, seed=7)

    def test_goes_on_after_a_kill_to_the_same_bytes(self, kind: Kind, tmp_path: Path) -> None:
        """A preparation that is killed at any checkpoint goes on, and has less left to do."""
        attack, clock, draw = at_work(make(kind, target=3)), kill.Clock(), random.Random(1)
        _only(attack.PREPARES, "it prepares nothing")
        shape = next(s for s in SHAPES if (s[0] > 3) == ("images" not in attack.DOMAINS))
        prepare = functools.partial(prepared, attack, shape)
        whole = prepare(clock.context())
        kill.check_resumed(prepare, whole, clock.count, Store(str(tmp_path)), draw)

    def test_label_maps_and_sources(self, kind: Kind) -> None:
        """Target, sources and label map mean the same for every attack."""
        _only(triggers(kind), "it has no trigger")
        attack = at_work(make(kind, target=3))
        assert (attack.relabel(LABELS, 10) == 3).all()
        attacked = np.isin(LABELS, attack.sources or range(10))
        assert (attack.eligible(LABELS, 10) == (attacked & (LABELS != 3))).all()
        specific = at_work(make(kind, sources=(4, 6)))
        assert (specific.eligible(LABELS, 10) == np.isin(LABELS, [4, 6])).all()
        if attack.CLEAN_LABEL:
            assert (attack.pool(LABELS, 10) == (LABELS == 3)).all()
            poisoned = LABELS[drawn(attack, Counts(poison=25, cover=0), 2).poison]
            assert (attack.relabel(poisoned, 10) == poisoned).all()
            for wrong in ({"label_map": "all_to_all"}, {"include_target": False}):
                with pytest.raises(ValidationError, match=f"{next(iter(wrong))} must be"):
                    make(kind, **wrong)
            return
        assert (specific.pool(LABELS, 10) == np.isin(LABELS, [4, 6])).all()
        outside = at_work(make(kind, include_target=False, target=3, sources=None))
        assert (outside.pool(LABELS, 10) == (LABELS != 3)).all()
        shifted = at_work(make(kind, label_map="all_to_all", sources=None))
        assert (shifted.relabel(LABELS, 10) == (LABELS + 1) % 10).all()
        assert shifted.eligible(LABELS, 10).all()

    @pytest.mark.parametrize("sources", [(), (3,)], ids=str)
    def test_sources_that_leave_nothing_to_attack_are_refused(
        self, kind: Kind, sources: tuple[int, ...]
    ) -> None:
        """Sources must name a class other than the target."""
        _only(triggers(kind), "it has no trigger")
        with pytest.raises(ValidationError, match="sources must name a class other than target"):
            make(kind, target=3, sources=sources)
