"""What every defense keeps to, found by scanning: the shipped contract, and who breaks it."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raysweep import methods
from raysweep.defenses import Defense, DefenseInputs, Findings
from raysweep.errors import KnowledgeError, StageError
from raysweep.methods.context import Context
from raysweep.stages.defend import Defend
from raysweep.testing import defenses as contract
from raysweep.testing import toy
from raysweep.testing.defenses import DefenseContract, Kind

NAMES = list(methods.usable("defenses"))


def kind_of(name: str) -> Kind:
    return methods.load("defenses", name)  # type: ignore[return-value]


def make(name: str) -> Defense:
    return contract.make(kind_of(name))


def found(name: str) -> Findings:
    return contract.found(kind_of(name))


class TestDefenses(DefenseContract):
    @pytest.fixture(params=NAMES)
    def kind(self, request: pytest.FixtureRequest) -> Kind:
        return kind_of(request.param)


@pytest.fixture(scope="module")
def case() -> toy.Toy:
    return toy.toy()


def test_the_toy_is_backdoored(case: toy.Toy) -> None:
    assert toy.asr(case.weights, case) > 0.95 and toy.accuracy(case.weights, case) > 0.9


class Careless(Defense):
    """Leaves a trace: the first run draws from a global state, and writes into its input."""

    def needs(self) -> frozenset[Any]:
        return frozenset({"features"})

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        inputs.features[0, 0] += np.random.rand()
        return Findings(train_scores=inputs.features.mean(1))


class Different(Careless):
    """Is no function of its input: another run gives other scores."""

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        return Findings(train_scores=inputs.features.mean(1) + random.SystemRandom().random())


class DifferentParts(Different):
    """Does that in its parts."""

    def parts(self, num_classes: int) -> tuple[str, ...]:
        return ("0",)

    def shard(self, part: str, inputs: DefenseInputs, ctx: Context) -> Any:
        return {"scores": np.asarray(super().run(inputs, ctx).train_scores)}

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        return Findings(train_scores=inputs.shards[0]["scores"])


class Forgetful(Different):
    """Does that beside a checkpoint."""

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        ctx.checkpoint(lambda: {"done": np.ones(1)})
        return super().run(inputs, ctx)


def test_a_trace_is_seen(case: toy.Toy) -> None:
    features = case.features.copy()
    said = "changes the state of numpy.random, features"
    with pytest.raises(AssertionError, match=said):
        given_once(Careless, case)
    case.features[:] = features


@pytest.mark.parametrize("kind", [Different, DifferentParts])
def test_a_second_run_that_differs_is_seen(kind: Kind, case: toy.Toy) -> None:
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        given_once(kind, case)


def test_a_run_that_differs_after_a_kill_is_seen(case: toy.Toy, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        DefenseContract().test_goes_on_after_a_kill_to_the_same_bytes(Forgetful, case, tmp_path)


def given_once(kind: Kind, case: toy.Toy) -> None:
    test = DefenseContract.test_gives_what_it_declares_deterministically_and_leaves_no_trace
    test(DefenseContract(), kind, case)


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


def test_a_filter_that_peeks_gets_an_error(case: toy.Toy) -> None:
    class Peeker(Defense):
        def needs(self) -> frozenset[Any]:
            return frozenset({"features"})

        def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
            return Findings(train_scores=inputs.poison_mask.astype(float))

    with pytest.raises(KnowledgeError, match="'poison_mask', which its needs do not list"):
        toy.found(Peeker(), case)


def test_a_name_that_is_no_need_is_answered_with_what_is_given(case: toy.Toy) -> None:
    class Guesser(Defense):
        def needs(self) -> frozenset[Any]:
            return frozenset({"features"})

        def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
            assert {"features", "labels"} <= set(dir(inputs)) and "poison_mask" not in dir(inputs)
            return Findings(train_scores=inputs.test_images)

    with pytest.raises(KnowledgeError, match=r"is no need; given are: features, .*needs are: tr"):
        toy.found(Guesser(), case)


def test_a_stage_refuses_a_run_that_lacks_what_is_declared() -> None:
    class Silent(Defense):
        def needs(self) -> frozenset[Any]:
            return frozenset({"features"})

        def gives(self) -> frozenset[Any]:
            return frozenset({"input_scores"})

    stage: Any = SimpleNamespace(defense=Silent(), run_version=None, knowledge=lambda given: None)
    given: Any = SimpleNamespace(context=Context(seed=0))
    with pytest.raises(StageError, match=r"gives input_scores, .* Findings\(score_inputs=\.\.\.\)"):
        Defend.perform(stage, given)
