"""The contract of defenses: what every defense keeps to, on the toy."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import sklearn.cluster
import sklearn.decomposition
import sklearn.metrics  # noqa: F401  importing these draws from `random`; running them must not
import torch
from pydantic import ValidationError

from raysweep import methods
from raysweep.arrays import Array, Arrays
from raysweep.defenses import ORACLES, Decision, Defense, Findings
from raysweep.errors import KnowledgeError
from raysweep.methods import Context
from raysweep.metrics.ranking import ranking
from raysweep.store import Store
from raysweep.testing import kill, toy
from raysweep.training import weights

Kind = type[Defense]


def make(kind: Kind) -> Defense:
    """Return the defense as small as its toy size."""
    return kind.model_validate(dict(kind.TOY))


@dataclass(frozen=True, kw_only=True)
class Worked:
    """The work of a defense on the toy.

    Attributes:
        shards: what its parts gave.
        findings: what its run found.
        moments: of each part, then of the run, how often it could have written a checkpoint.
        touched: the inputs and global random states that the work has changed.
    """

    shards: list[Arrays]
    findings: Findings
    moments: list[int]
    touched: list[str]


def inputs_and_states(case: toy.Toy) -> Arrays:
    """Return copies of what no defense may change: its inputs, and the global random states."""
    numpy_state: Any = np.random.get_state()
    return {
        "the state of random": np.array(hash(random.getstate())),
        "the state of numpy.random": np.append(numpy_state[1], numpy_state[2]),
        "the state of torch": torch.get_rng_state().numpy().copy(),
        "training images": case.train.images.numpy().copy(),
        "labels": case.train.labels.copy(),
        "clean images": case.clean.images.numpy().copy(),
        "features": case.features.copy(),
    } | {f"weights {name}": tensor.numpy().copy() for name, tensor in case.weights.items()}


@functools.cache
def worked(kind: Kind) -> Worked:
    """Run a defense on the toy, its parts first; once a process."""
    defense, case = make(kind), toy.toy()
    before = inputs_and_states(case)
    shards, moments, runs = list[Arrays](), list[int](), toy.blind(defense)
    for part in defense.parts(toy.CLASSES):
        clock = kill.Clock()
        shards.append(runs.shard(part, toy.inputs(defense, case), clock.context()))
        moments.append(clock.count)
    clock = kill.Clock()
    findings = runs.run(toy.inputs(defense, case, shards=shards), clock.context())
    after = inputs_and_states(case)
    touched = [name for name, array in before.items() if not np.array_equal(array, after[name])]
    return Worked(
        shards=shards, findings=findings, moments=[*moments, clock.count], touched=touched
    )


def found(kind: Kind) -> Findings:
    """Return the findings of a defense on the toy."""
    return worked(kind).findings


def outputs(findings: Findings) -> dict[str, Array]:
    """Return all arrays of some findings by name."""
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


class DefenseContract:
    """The tests that a defense inherits: `class TestMine(DefenseContract): method = MyDefense`.

    The toy has 600 training images of 4 classes, 10 % of them with a patch in the corner, and a
    victim that has learned it. `TOY` of the defense names smaller parameters where the defaults
    are slow. Its entry point must be installed: stages restore a defense by its name.

    Attributes:
        method: the defense's class.
    """

    method: ClassVar[Kind]

    @pytest.fixture
    def kind(self) -> Kind:
        """The defense's class."""
        return self.method

    @pytest.fixture
    def case(self) -> toy.Toy:
        """The toy."""
        return toy.toy()

    def test_is_a_frozen_value(self, kind: Kind) -> None:
        """The defense is restored from its identity, and unknown parameters are refused."""
        defense = make(kind)
        again = methods.restore("defenses", defense.identity())
        assert again == defense and hash(again) == hash(defense)
        with pytest.raises(ValidationError):
            kind.model_validate({"no_such_field": 1})
        for field in kind.model_fields:
            with pytest.raises(ValidationError):
                setattr(defense, field, None)

    def test_gives_what_it_declares_deterministically_and_leaves_no_trace(
        self, kind: Kind, case: toy.Toy
    ) -> None:
        """A second run gives the same; global random states and inputs stay as they were.

        Where there are checkpoints, the run that is killed and goes on is the second one.
        """
        defense, whole = make(kind), worked(kind)
        assert whole.touched == [], f"{defense.name} changes {', '.join(whole.touched)}"
        first, runs, ctx = whole.findings, toy.blind(defense), Context(seed=kill.SEED)
        *of_parts, of_run = whole.moments
        if of_parts and not of_parts[-1]:
            last = defense.parts(toy.CLASSES)[-1]
            kill.check_same(runs.shard(last, toy.inputs(defense, case), ctx), whole.shards[-1])
        if not of_run:
            again = runs.run(toy.inputs(defense, case, shards=whole.shards), ctx)
            kill.check_same(outputs(again), outputs(first))
        gives = defense.gives()
        assert (first.train_scores is not None) == ("train_scores" in gives)
        assert (first.score_inputs is not None) == ("input_scores" in gives)
        assert (first.model is not None) == ("model" in gives and not defense.REPAIRS)
        if first.train_scores is not None:
            assert np.asarray(first.train_scores).shape == (600,)
            assert np.isfinite(first.train_scores).all()

    def test_decision_parameters_never_reach_the_scores(self, kind: Kind, case: toy.Toy) -> None:
        """All findings, scorers included, are found without decision parameters."""
        defense = make(kind)
        fields = methods.decision_fields(kind)
        if not fields:
            pytest.skip("no decision parameter")
        for field in fields:
            with pytest.raises(AttributeError, match=field):
                getattr(toy.blind(defense), field)
        findings = found(kind)
        if findings.score_inputs is not None:
            findings.score_inputs(case.test.images[:4].float() / 255, np.arange(4))

    def test_decisions_are_pure(self, kind: Kind, case: toy.Toy) -> None:
        """`decide` gives the same twice, and what the defense declares."""
        defense = make(kind)
        if not defense.gives() - {"model"}:
            pytest.skip("decides nothing")
        findings = found(kind)
        one, other = (defense.decide(toy.evidence(defense, case, findings)) for _ in range(2))
        assert one.threshold == other.threshold and one.classes == other.classes
        if "train_scores" in defense.gives():
            assert one.flags is not None and other.flags is not None
            assert one.flags.shape == (600,) and one.flags.dtype == bool
            assert (one.flags == other.flags).all()
        if "input_scores" in defense.gives():
            assert one.threshold is not None
        if "verdict" in defense.gives():
            assert one.classes is not None and one.class_scores is not None
            assert len(one.class_scores) == toy.CLASSES

    def test_scores_beat_chance(self, kind: Kind, case: toy.Toy) -> None:
        """The AUROC on the toy is above 0.7, and a scorer scores each input by itself."""
        if kind.CONTROL:
            pytest.skip("a control")
        findings = found(kind)
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

    def test_goes_on_after_a_kill_to_the_same_bytes(
        self, kind: Kind, case: toy.Toy, tmp_path: Path
    ) -> None:
        """A stage that is killed at any checkpoint goes on from it, and has less left to do."""
        defense, whole, draw = make(kind), worked(kind), random.Random(kind.__name__)
        runs, store = toy.blind(defense), Store(str(tmp_path))
        *parts, of_run = whole.moments
        if parts:  # they are alike: the last one stands for all
            last = defense.parts(toy.CLASSES)[-1]
            kill.check_resumed(
                lambda ctx: runs.shard(last, toy.inputs(defense, case), ctx),
                whole.shards[-1], parts[-1], store, draw,
            )  # fmt: skip
        kill.check_resumed(
            lambda ctx: outputs(runs.run(toy.inputs(defense, case, shards=whole.shards), ctx)),
            outputs(whole.findings), of_run, store, draw,
        )  # fmt: skip
        scores_itself = "input_scores" not in defense.gives()
        if scores_itself and defense.passes(600, toy.RECIPE.epochs, toy.CLASSES) > 600:
            told = f"{defense.name} passes over the set more than once and keeps no checkpoint"
            assert sum(whole.moments), told

    def test_a_repair_goes_on_after_a_kill(self, kind: Kind, case: toy.Toy, tmp_path: Path) -> None:
        """A repair that is killed at any checkpoint goes on from it, and has less left to do."""
        defense = make(kind)
        if not defense.REPAIRS:
            pytest.skip("repairs nothing")
        decision = Decision(flags=case.mask, classes=(toy.TARGET,))
        given: dict[str, Any] = {"found": found(kind).kept, "decision": decision}

        def repaired(ctx: Context) -> Arrays:
            return weights.packed(defense.repair(toy.inputs(defense, case, **given), ctx))

        clock = kill.Clock()
        whole = repaired(clock.context())
        assert clock.count, f"the repair of {defense.name} keeps no checkpoint"
        kill.check_resumed(repaired, whole, clock.count, Store(str(tmp_path)), random.Random(1))

    def test_knowledge_is_enforced(self, kind: Kind, case: toy.Toy) -> None:
        """Knowledge that `needs` does not list cannot be read, and oracles are badges."""
        defense = make(kind)
        oracles = {*ORACLES, "clean_set", "victim"}
        seen = toy.inputs(defense, case)
        for secret in oracles - defense.needs():
            with pytest.raises(KnowledgeError, match=f"{defense.name} read '{secret}'"):
                getattr(seen, secret)
        badges = defense.badges()
        for secret in set(ORACLES) & defense.needs():
            assert f"oracle: {secret.replace('_', ' ')}" in badges

    def test_filters_on_features_follow_their_samples(self, kind: Kind, case: toy.Toy) -> None:
        """Permuting samples permutes scores; rotating features leaves them."""
        defense = make(kind)
        if not (defense.needs() <= {"features"} and defense.gives() == {"train_scores"}):
            pytest.skip("not a filter on features alone")
        base = np.asarray(found(kind).train_scores)
        order = np.random.default_rng(3).permutation(600)
        moved = toy.inputs(
            defense, case, features=case.features[order], labels=case.train.labels[order]
        )
        scores = np.asarray(defense.run(moved, Context(seed=5)).train_scores)
        np.testing.assert_allclose(scores, base[order], rtol=1e-3, atol=1e-3)
        size = (case.features.shape[1],) * 2
        turn = np.linalg.qr(np.random.default_rng(4).normal(size=size))[0]
        turned = toy.inputs(defense, case, features=(case.features @ turn).astype(np.float32))
        scores = np.asarray(defense.run(turned, Context(seed=5)).train_scores)
        told = "features were rotated: scores may use distances and angles, no single coordinate"
        np.testing.assert_allclose(scores, base, rtol=1e-2, atol=1e-2, err_msg=told)
