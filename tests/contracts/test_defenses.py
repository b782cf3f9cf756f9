"""What every defense keeps to, found by scanning."""

from __future__ import annotations

import functools
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


def make(name: str) -> Defense:
    kind = methods.load("defenses", name)
    return kind.model_validate(dict(kind.TOY))  # type: ignore[return-value]


@functools.cache
def found(name: str) -> Findings:
    """Return what a defense finds on the toy; run once a process."""
    return toy.found(make(name), toy.toy())


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
    arrays = {f"s.{k}": np.asarray(v) for k, v in findings.statistics.items()}
    arrays |= {f"k.{k}": np.asarray(v) for k, v in findings.kept.items()}
    arrays |= {f"c.{k}": np.stack([v.x, v.y]) for k, v in findings.curves.items()}
    arrays |= {f"sp.{k}": np.asarray(v) for k, v in findings.spaces.items()}
    if findings.losses is not None:
        arrays["losses"] = np.asarray(findings.losses)
    if findings.train_scores is not None:
        arrays["train"] = np.asarray(findings.train_scores)
    if findings.model is not None:
        arrays |= {f"m.{k}": v.detach().numpy() for k, v in findings.model.items()}
    return arrays


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
    assert_equal(outputs(first), outputs(found(name)))
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


@pytest.mark.parametrize("name", NAMES)
def test_decision_parameters_never_reach_the_scores(name: str, case: toy.Toy) -> None:
    """What is found here, scorers included, is found without them."""
    defense = make(name)
    fields = methods.decision_fields(type(defense))
    if not fields:
        pytest.skip("no decision parameter")
    for field in fields:
        with pytest.raises(AttributeError, match=field):
            getattr(toy.blind(defense), field)
    findings = found(name)
    if findings.score_inputs is not None:
        findings.score_inputs(case.test.images[:4].float() / 255, np.arange(4))


def test_a_run_that_reads_a_decision_parameter_gets_an_error(case: toy.Toy) -> None:
    class Decided(Defense):
        cut: float = methods.decision(0.5)
        rule: str = methods.decision("mean")

        def needs(self) -> frozenset[Any]:
            return frozenset({"features"})

        def parts(self, num_classes: int) -> tuple[str, ...]:
            return ("0",) * (self.cut > 0.5)

        def shard(self, part: str, inputs: DefenseInputs, ctx: Context) -> Any:
            return {"cut": np.array(self.cut)}

        def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
            return Findings(train_scores=inputs.features.mean(1) * (self.rule == "mean"))

    with pytest.raises(AttributeError, match="'Decided' object has no attribute 'cut'"):
        toy.found(Decided(cut=0.6), case)
    with pytest.raises(AttributeError, match="'Decided' object has no attribute 'rule'"):
        toy.found(Decided(), case)


@pytest.mark.parametrize("name", NAMES)
def test_decisions_are_pure(name: str, case: toy.Toy) -> None:
    defense = make(name)
    if not defense.gives() - {"model"}:
        pytest.skip("decides nothing")
    findings = found(name)
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
    findings = found(name)
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
    base = np.asarray(found(name).train_scores)
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
