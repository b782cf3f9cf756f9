"""What every defense keeps to, found by scanning."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import sklearn.cluster
import sklearn.decomposition
import sklearn.metrics  # noqa: F401  importing these draws from `random`; running them must not
import torch
from pydantic import ValidationError

from raysweep import methods
from raysweep.defenses import ORACLES, Defense, DefenseInputs, Findings
from raysweep.errors import KnowledgeError
from raysweep.methods.context import Context
from raysweep.metrics.ranking import ranking
from tests import toy

NAMES = list(methods.available("defenses"))
# Cheaper than the defaults, where the toy does not need them; by field, not by method.
SMALL = {
    "scale": 0.01,
    "base": "linear",
    "models": 300,
    "per_shard": 100,
    "restarts": 5,
    "learning_rate": 0.05,
    "steps": 40,
    "overlays": 8,
    "epochs": 3,
    "unlearning_steps": 20,
    "tuning_epochs": 2,
    "width": 8,
    "repeats": 1,
    "rounds": 3,
    "weak_epochs": 8,
    "norm_weight": 0.05,
    # Eight features and one dense layer: here mutation flips a trigger before it flips a bar.
    "sign": "adversarial",
}
OTHER = {float: lambda v: v * 0.9, int: lambda v: v + 1, str: lambda v: v}


def make(name: str) -> Defense:
    kind = methods.load("defenses", name)
    return kind.model_validate({k: v for k, v in SMALL.items() if k in kind.model_fields})  # type: ignore[return-value]


@pytest.fixture(scope="module")
def case() -> toy.Toy:
    return toy.toy()


def test_the_toy_is_backdoored(case: toy.Toy) -> None:
    assert toy.asr(case.weights, case) > 0.95 and toy.accuracy(case.weights, case) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_is_a_frozen_value(name: str) -> None:
    defense = make(name)
    again = methods.restore("defenses", defense.identity())
    assert again == defense and hash(again) == hash(defense)
    with pytest.raises(ValidationError):
        type(defense).model_validate({"no_such_field": 1})
    for field in type(defense).model_fields:
        with pytest.raises(ValidationError):
            setattr(defense, field, None)


def outputs(findings: Findings) -> dict[str, np.ndarray]:
    found = {f"s.{k}": np.asarray(v) for k, v in findings.statistics.items()}
    found |= {f"k.{k}": np.asarray(v) for k, v in findings.kept.items()}
    found |= {f"c.{k}": np.stack([v.x, v.y]) for k, v in findings.curves.items()}
    found |= {f"sp.{k}": np.asarray(v) for k, v in findings.spaces.items()}
    if findings.losses is not None:
        found["losses"] = np.asarray(findings.losses)
    if findings.train_scores is not None:
        found["train"] = np.asarray(findings.train_scores)
    if findings.model is not None:
        found |= {f"m.{k}": v.detach().numpy() for k, v in findings.model.items()}
    return found


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_gives_what_it_declares_deterministically_and_leaves_no_trace(
    name: str, case: toy.Toy
) -> None:
    defense = make(name)
    before = (case.train.images.clone(), case.train.labels.copy(), case.clean.images.clone(),
              case.features.copy(), {k: v.clone() for k, v in case.weights.items()})  # fmt: skip
    random.seed(1)
    states = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    first = toy.found(defense, case)
    gives = defense.gives()
    assert (first.train_scores is not None) == ("train_scores" in gives)
    assert (first.score_inputs is not None) == ("input_scores" in gives)
    assert (first.model is not None) == ("model" in gives and not defense.REPAIRS)
    if first.train_scores is not None:
        assert np.asarray(first.train_scores).shape == (600,)
        assert np.isfinite(first.train_scores).all()
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.equal(case.train.images, before[0]) and (case.train.labels == before[1]).all()
    assert torch.equal(case.clean.images, before[2]) and (case.features == before[3]).all()
    assert all(torch.equal(case.weights[k], v) for k, v in before[4].items())
    assert_equal(outputs(first), outputs(toy.found(defense, case)))


@pytest.mark.parametrize("name", NAMES)
def test_decision_parameters_never_reach_the_scores(name: str, case: toy.Toy) -> None:
    defense = make(name)
    fields = methods.decision_fields(type(defense))
    changes: dict[str, Any] = {}
    for field in fields:
        value = getattr(defense, field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            changes[field] = OTHER[type(value)](value)
    if not changes:
        pytest.skip("no numeric decision parameter")
    other = defense.model_copy(update=changes)
    assert_equal(outputs(toy.found(defense, case)), outputs(toy.found(other, case)))


@pytest.mark.parametrize("name", NAMES)
def test_decisions_are_pure(name: str, case: toy.Toy) -> None:
    defense = make(name)
    if not defense.gives() - {"model"}:
        pytest.skip("decides nothing")
    findings = toy.found(defense, case)
    one, other = (defense.decide(toy.evidence(defense, case, findings)) for _ in range(2))
    assert one.threshold == other.threshold and one.classes == other.classes
    if "train_scores" in defense.gives():
        assert one.flags is not None and one.flags.shape == (600,) and one.flags.dtype == bool
        assert (one.flags == other.flags).all()
    if "input_scores" in defense.gives():
        assert one.threshold is not None
    if "verdict" in defense.gives():
        assert one.classes is not None and one.class_scores is not None
        assert len(one.class_scores) == toy.CLASSES


@pytest.mark.parametrize("name", NAMES)
def test_scores_beat_chance(name: str, case: toy.Toy) -> None:
    defense = make(name)
    if defense.CONTROL:
        pytest.skip("a control")
    findings = toy.found(defense, case)
    if findings.train_scores is not None:
        assert ranking(np.asarray(findings.train_scores), case.mask).auroc > 0.7
    if findings.score_inputs is not None:
        ids = np.arange(200)
        clean = findings.score_inputs(case.test.images.float() / 255, ids)
        attacked = case.test.labels != toy.TARGET
        bad = findings.score_inputs(case.triggered.float() / 255, ids)[attacked]
        truth = np.arange(len(clean) + len(bad)) >= len(clean)
        assert ranking(np.concatenate([clean, bad]), truth).auroc > 0.7
        order = np.random.default_rng(0).permutation(200)
        shuffled = (case.test.images.float() / 255)[torch.from_numpy(order)]
        again = findings.score_inputs(shuffled, ids[order])
        np.testing.assert_allclose(again, clean[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_knowledge_is_enforced(name: str, case: toy.Toy) -> None:
    defense = make(name)
    oracles = {*ORACLES, "clean_set", "victim"}
    seen = toy.inputs(defense, case)
    for secret in oracles - defense.needs():
        with pytest.raises(KnowledgeError, match=f"{name} read '{secret}'"):
            getattr(seen, secret)
    badges = defense.badges()
    for secret in set(ORACLES) & defense.needs():
        assert f"oracle: {secret.replace('_', ' ')}" in badges


def test_a_filter_that_peeks_gets_an_error(case: toy.Toy) -> None:
    class Peeker(Defense):
        def needs(self) -> frozenset[Any]:
            return frozenset({"features"})

        def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
            return Findings(train_scores=inputs.poison_mask.astype(float))

    with pytest.raises(KnowledgeError, match="'poison_mask', which its needs do not list"):
        toy.found(Peeker(), case)


@pytest.mark.parametrize("name", NAMES)
def test_filters_on_features_follow_their_samples(name: str, case: toy.Toy) -> None:
    """Permuting samples permutes scores; rotating features leaves them."""
    defense = make(name)
    if not (defense.needs() <= {"features"} and defense.gives() == {"train_scores"}):
        pytest.skip("not a filter on features alone")
    base = np.asarray(toy.found(defense, case).train_scores)
    order = np.random.default_rng(3).permutation(600)
    moved = toy.inputs(
        defense, case, features=case.features[order], labels=case.train.labels[order]
    )
    scores = np.asarray(defense.run(moved, Context(seed=5)).train_scores)
    np.testing.assert_allclose(scores, base[order], rtol=1e-3, atol=1e-3)
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(case.features.shape[1],) * 2))[0]
    turned = toy.inputs(defense, case, features=(case.features @ turn).astype(np.float32))
    scores = np.asarray(defense.run(turned, Context(seed=5)).train_scores)
    np.testing.assert_allclose(scores, base, rtol=1e-2, atol=1e-2)
