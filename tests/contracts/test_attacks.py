"""What every attack keeps to, found by scanning: the shipped contract, and stored rows."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest

from raysweep import methods
from raysweep.attacks.badnets import BadNets
from raysweep.datasets.digits import Digits
from raysweep.errors import StageError
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.plan.planner import Planner
from raysweep.sweep.spec import Sweep
from raysweep.testing import attacks as contract
from raysweep.testing.attacks import AttackContract, Counts, Kind, drawn

# An attack that is made of a user's files is met in that format's tests.
NAMES = [
    name
    for name, kind in methods.usable("attacks").items()
    if not any(field.is_required() for field in kind.model_fields.values())
]


def kind_of(name: str) -> Kind:
    return methods.load("attacks", name)  # type: ignore[return-value]


TRIGGERS = [name for name in NAMES if contract.triggers(kind_of(name))]


def make(name: str, **given: object) -> contract.Attack:
    return contract.make(kind_of(name), **given)


class TestAttacks(AttackContract):
    @pytest.fixture(params=NAMES)
    def kind(self, request: pytest.FixtureRequest) -> Kind:
        return kind_of(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_attack_holds_no_rate_either(name: str) -> None:
    held = contract.at_work(make(name, rate=0.06, target=1, sources=None))
    again = pickle.loads(pickle.dumps(held))
    assert again == held and hash(again) == hash(held) and again.label == held.label
    assert again.identity() == held.identity()
    with pytest.raises(StageError, match="rate has no value in this stage"):
        _ = again.rate


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
