"""RED's cleaning: the scores once a pattern is subtracted, what may be told, and bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from raysweep.datasets import ImageSet
from raysweep.defenses import Decision, DefenseInputs, Evidence
from raysweep.defenses._descent import descent
from raysweep.defenses._subtraction import Subtracted, _source_of_minority, subtracted
from raysweep.defenses.red import RED
from raysweep.methods.context import Context
from raysweep.metrics.ranking import ranking
from tests.numerics.test_red import (
    CLASSES,
    RECIPE,
    SIDE,
    SMALL,
    Planted,
    evidence,
    found_p,
    planted,
)
from tests.numerics.test_red_search import linear


def the_pattern(case: Planted) -> np.ndarray:
    """Return the planted pattern, (1, SIDE, SIDE)."""
    return case.pattern.reshape(1, SIDE, SIDE).astype(np.float32)


def left(case: Planted, pattern: np.ndarray, score: str, reference: str = "own") -> Subtracted:
    return subtracted(
        case.inputs(), Context(seed=1), pattern, 1, 0, score, reference  # type: ignore[arg-type]
    )  # fmt: skip


def posteriors(case: Planted) -> tuple[np.ndarray, np.ndarray]:
    """Return log posteriors (N, K) of the training images, as they are and without the pattern."""
    images, v = case.train.images.float() / 255, torch.from_numpy(the_pattern(case))
    with torch.no_grad():
        before, after = (case.network(x).log_softmax(1) for x in (images, (images - v).clamp(0, 1)))
    return before.numpy(), after.numpy()


def test_the_scores_are_those_of_the_victim_without_the_pattern() -> None:
    case = planted(60, 0)
    labels, rows = case.train.labels, np.arange(len(case.train))
    before, after = posteriors(case)
    inside, apart = labels == 1, labels > 1
    own = before[rows, labels] - after[rows, labels]
    fall = (before - after)[:, 1].clip(min=0)
    wanted = {("fall", "own"): (own, own), ("fall", "target"): (own, fall),
              ("likelihood", "own"): (after[:, 0], after[:, 0])}  # fmt: skip
    for (score, reference), (values, compared) in wanted.items():
        found = left(case, the_pattern(case), score, reference)
        np.testing.assert_allclose(found.scores[inside], values[inside], atol=1e-4)
        np.testing.assert_allclose(found.reference, compared[apart], atol=1e-4)
        assert found.scores[~inside].max() < values.min(), "only the target's samples are ranked"
        assert (found.leaves == inside & (after.argmax(1) != labels)).all()
    rises = left(case, -the_pattern(case), "fall", "target").reference
    assert (rises == 0).mean() > 0.9, "what rises is no fall"


def test_the_source_is_the_class_that_the_poison_goes_back_to() -> None:
    case = planted(60, 0)
    ctx, pattern = Context(seed=1), the_pattern(case)
    kept = case.train.take(np.flatnonzero(case.train.labels != 0))
    without = case.inputs(training_set=kept, labels=kept.labels)
    for inputs in (case.inputs(), without):  # whatever other classes the pattern sends away
        found = subtracted(inputs, ctx, pattern, 1, None, "likelihood", "own")
        assert found.source == 0
    # Another class gains in most samples of the target: they are clean.
    after = np.random.default_rng(0).normal(-9.0, 0.5, (100, 4))
    after[:20, 3] += 6.0  # the poison
    after[20:, 2] += 7.0
    assert _source_of_minority(after, 1) == 3
    after[:, 0] = -9.0
    assert _source_of_minority(after, 3) not in (0, 3)


def test_the_source_is_found_once_the_pattern_is_gone() -> None:
    """As long as the trigger is there, its samples look like a class that they do not come from."""
    draw, content = np.random.default_rng(3), np.repeat([1, 3], [80, 20])  # the last are poison
    pixels = draw.uniform(0.0, 0.05, (100, SIDE * SIDE))
    pixels[np.arange(100), 1 + content] += 0.9
    pixels[80:, 0] = 1.0
    images = torch.from_numpy((pixels * 255).round().astype(np.uint8)).reshape(-1, 1, SIDE, SIDE)
    victim = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    with torch.no_grad():
        victim[1].weight.zero_()
        victim[1].bias.zero_()
        victim[1].weight[range(CLASSES), range(1, CLASSES + 1)] = 20.0
        victim[1].weight[[1, 0, 3], 0] = torch.tensor([40.0, 30.0, -40.0])
    pattern = np.zeros((1, SIDE, SIDE), np.float32)
    pattern[0, 0, 0] = 1.0
    labels = np.ones(100, np.int64)
    seen = planted(60, 0).inputs(
        training_set=ImageSet(images=images, labels=labels), labels=labels, victim=victim
    )
    for v, source in ((pattern, 3), (0 * pattern, 0)):
        found = subtracted(seen, Context(seed=1), v, 1, None, "likelihood", "own")
        assert found.source == source


def test_a_likelihood_finds_its_own_source() -> None:
    """The smallest pattern may be that of another class, which the trigger sends as well."""
    case, ctx = planted(60, 0), Context(seed=1)
    patterns = np.stack(
        [0.5 * the_pattern(case) if s == 2 else the_pattern(case) for s in range(CLASSES)]
    )
    reached = np.ones(CLASSES, bool)
    wanted = {"fall": 2, "likelihood": 0}
    for score, source in wanted.items():
        method = SMALL.model_copy(update={"score": score})
        found = method._of_smallest(case.inputs(), ctx, patterns, reached, 1)
        assert int(found.statistics["source"]) == source


def cleaned(knows: str, **more: object) -> tuple[float, Decision, RED]:
    """Return the AUROC within the target, the decision and the method, told something."""
    case = planted(60, 0)
    method = RED.model_validate({**SMALL.params(), "milestones": (), "knows": knows, **more})
    truth = {"target_class": 1, "trigger": the_pattern(case)}
    told = {name: truth[name] for name in method.needs() & truth.keys()}
    values = {**case.inputs()._values, **told}
    found = method.run(DefenseInputs("red", method.needs(), values), Context(seed=1))
    assert int(found.statistics["source"]) == 0 and found.trigger is None
    inside = case.train.labels == 1
    auroc = ranking(np.asarray(found.train_scores)[inside], case.mask[inside]).auroc
    return auroc, method.decide(evidence(case, found)), method


@pytest.mark.parametrize("score", ["fall", "likelihood"])
def test_what_is_told_is_declared_and_used(score: str) -> None:
    case = planted(60, 0)
    with_truth, decided, oracle = cleaned("pattern", score=score)
    assert with_truth > 0.99 and decided.flags is not None and decided.classes is None
    assert decided.flags[case.mask].mean() > 0.95
    assert not decided.flags[case.train.labels != 1].any()
    ours = ("extension: score by likelihood",) if score == "likelihood" else ()
    assert oracle.badges() == ("oracle: target class", "oracle: trigger", *ours)
    assert oracle.gives() == {"train_scores"} and not oracle.parts(10)
    assert oracle.passes(1, 1, 10) == 0
    estimated, _, told = cleaned("target", score=score)
    assert estimated > 0.97 and told.badges() == ("oracle: target class", *ours)
    assert told.needs() == {"training_set", "victim", "target_class"}
    assert told.passes(1, 1, 10) * 10 == SMALL.passes(1, 1, 10)
    assert SMALL.needs() == {"training_set", "victim"} and "verdict" in SMALL.gives()


def test_a_pattern_that_is_never_reached_is_an_error_and_no_source() -> None:
    with pytest.raises(
        ValueError, match=r"no pattern that sends 0\.8 of a class to class 1; raise"
    ):
        cleaned("target", steps=1)


def test_a_scan_whose_pattern_stands_in_is_a_fact() -> None:
    case, ctx = planted(60, 0), Context(seed=1)
    shards = [SMALL.shard(part, case.inputs(), ctx) for part in SMALL.parts(CLASSES)]
    for steps, stands_in in ((SMALL.steps, 0.0), (1, 1.0)):
        method = SMALL.model_copy(update={"weight": 0.5, "steps": steps})
        found = method.run(case.inputs(shards=shards), ctx)
        assert found.facts == {"the scan's pattern stands in": stands_in}
    assert not SMALL.run(case.inputs(shards=shards), ctx).facts


def test_a_quantile_of_nothing_is_an_error_and_no_other_rule() -> None:
    given = found_p(6, 1e-6)
    values = {**given._values, "statistics": {**given.statistics, "reference": np.zeros(0)}}
    nothing = Evidence("red", RED().needs(), values)
    with pytest.raises(ValueError, match=r"neither the target 0 nor the source 1.*rule: split"):
        RED().decide(nothing)
    for rule in ("split", "flip"):
        assert RED.model_validate({"rule": rule}).decide(nothing).classes == (0,)
    quiet = {**nothing._values, "statistics": {**nothing.statistics, "p_calibrated": np.array(0.5)}}
    assert RED().decide(Evidence("red", RED().needs(), quiet)).classes == ()


def test_likelihoods_are_compared_with_themselves() -> None:
    with pytest.raises(ValidationError, match="reference must be own with score: likelihood"):
        RED.model_validate({"score": "likelihood", "reference": "target"})


class Counted(nn.Module):
    """A network that notes how many images it is given at once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.most = network, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, K)."""
        self.most = max(self.most, len(images))
        result: torch.Tensor = self.network(images)
        return result


def test_no_more_images_at_once_than_there_is_room_for() -> None:
    """Neither of one source with many images, nor of the target beside many sources."""
    network, _ = linear(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 50, 1, SIDE, SIDE, generator=generator)
    removed = torch.rand(70, 1, SIDE, SIDE, generator=generator)
    found = []
    for at_once in (1000, 24, 1):
        counted = Counted(network)
        inputs = DefenseInputs("red", frozenset({"victim"}), {"victim": counted, "recipe": RECIPE})
        tried = torch.zeros(3, 1, SIDE, SIDE).requires_grad_()
        found.append(descent(inputs, images, removed, tried, 1, 0.7, "cpu", at_once))
        assert counted.most == {1000: 210, 24: 24, 1: 3}[at_once]
    for gradient, share in found[1:]:
        torch.testing.assert_close(gradient, found[0][0], rtol=1e-4, atol=1e-6)
        assert (share == found[0][1]).all()


def test_a_search_of_many_images_keeps_within_the_room() -> None:
    case = planted(60, 0)
    counted = Counted(case.network)
    many = case.train.take(np.tile(np.arange(len(case.train)), 8))
    method = SMALL.model_copy(update={"images": 1500, "steps": 1, "weight": 1.0})
    inputs = case.inputs(training_set=many, labels=many.labels, victim=counted)
    method._search(inputs, Context(seed=0), 1, 1.0)
    assert 64 < counted.most <= 1024
