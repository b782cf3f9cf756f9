"""Defenses against closed forms and planted truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raysweep.context import Context
from raysweep.datasets import ImageSet
from raysweep.defenses import Decision, Evidence
from raysweep.defenses.abl import ABL, Ascent, isolation_objective
from raysweep.defenses.activation_clustering import ActivationClustering
from raysweep.defenses.fine_tuning import FineTuning
from raysweep.defenses.neural_cleanse import NeuralCleanse, anomaly_index
from raysweep.defenses.spectral_signatures import SpectralSignatures, projections
from raysweep.defenses.strip import Strip
from raysweep.launch import launch
from raysweep.loading import from_text
from raysweep.recipe import Recipe
from raysweep.sweepfile import parse
from raysweep.training import Batch, Stream, fit, learning_rate
from tests import toy


def test_projections_on_planted_rank_one_features() -> None:
    direction = np.array([3.0, 4.0]) / 5
    weights = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    features = weights[:, None] * direction + np.array([10.0, -10.0])
    np.testing.assert_allclose(projections(features, centered=True), weights**2, atol=1e-9)
    raw = projections(features, centered=False)
    assert not np.allclose(raw, weights**2)
    top = np.linalg.svd(features)[2][0]
    np.testing.assert_allclose(raw, (features @ top) ** 2, rtol=1e-9)
    assert projections(features[:1], centered=True).tolist() == [0.0]
    with pytest.raises(ValueError, match="must be finite"):
        projections(np.array([[np.nan, 1.0]]), centered=True)


def test_spectral_removals_are_those_of_the_rules() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [100, 60, 10])
    values = {"train_scores": rng.random(170), "labels": labels, "poison_rate": 0.1}
    by_rate = SpectralSignatures(removal="rate")
    flags = by_rate.decide(Evidence("x", by_rate.needs(), values)).flags
    assert flags is not None
    assert [int(flags[labels == c].sum()) for c in range(3)] == [25, 25, 5]
    by_share = SpectralSignatures(fraction=0.2)
    flags = by_share.decide(Evidence("x", by_share.needs(), values)).flags
    assert flags is not None
    assert [int(flags[labels == c].sum()) for c in range(3)] == [20, 12, 2]
    kept, gone = (values["train_scores"][(labels == 0) & (flags == f)] for f in (False, True))  # type: ignore[index]
    assert kept.max() < gone.min()
    cifar = {"train_scores": rng.random(50_000), "labels": np.arange(50_000) % 10}
    flags = by_rate.decide(Evidence("x", by_rate.needs(), {**cifar, "poison_rate": 0.003})).flags
    assert flags is not None and flags.sum() == 2250
    # Without poison 1 % of the set is assumed.
    flags = by_rate.decide(Evidence("x", by_rate.needs(), {**cifar, "poison_rate": 0.0})).flags
    assert flags is not None and np.bincount(cifar["labels"][flags]).tolist() == [750] * 10
    assert by_rate.badges() == ("oracle: poison rate",) and by_share.badges() == ()


@pytest.mark.parametrize(("share", "flagged"), [(0.1, True), (0.3, True), (0.4, False)])
@pytest.mark.parametrize("reduction", ["pca", "ica"])
def test_activation_clustering_flags_small_clusters_alone(
    share: float, flagged: bool, reduction: str
) -> None:
    rng = np.random.default_rng(1)
    count = int(200 * share)
    features = rng.normal(size=(200, 20)).astype(np.float32)
    features[:count] += 5
    case = toy.toy()
    defense = ActivationClustering(reduction=reduction)  # type: ignore[arg-type]
    seen = toy.inputs(defense, case, features=features, labels=np.full(200, 2))
    found = defense.run(seen, Context(seed=0))
    evidence = {
        "train_scores": found.train_scores,
        "statistics": found.statistics,
        "labels": np.full(200, 2),
    }
    flags = defense.decide(Evidence("x", defense.needs(), evidence)).flags
    assert flags is not None
    expected = (np.arange(200) < count) & flagged
    assert (flags == expected).all()


@pytest.mark.parametrize("rows", [0, 1, 2, 30])
def test_activation_clustering_meets_tiny_and_constant_classes(rows: int) -> None:
    case = toy.toy()
    defense = ActivationClustering()
    features = np.ones((rows, 5), np.float32)
    seen = toy.inputs(defense, case, features=features, labels=np.zeros(rows, int))
    found = defense.run(seen, Context(seed=0))
    assert found.train_scores is not None and not np.asarray(found.train_scores).any()
    assert not found.statistics["small"].any()


def test_strip_rejects_its_nominal_share_of_clean_inputs() -> None:
    case = toy.toy()
    for fpr in (0.05, 0.2):
        defense = Strip(overlays=8, fpr=fpr)
        found = toy.found(defense, case)
        evidence = toy.evidence(defense, case, found)
        threshold = defense.decide(evidence).threshold
        assert threshold is not None
        share = (evidence.reference_scores > threshold).mean()
        assert share <= fpr and share > fpr - 2 / 60
        assert found.score_inputs is not None and found.calibration is not None
        fresh = found.score_inputs(case.test.images.float() / 255, np.arange(200))
        assert (fresh > threshold).mean() < fpr + 4 * math.sqrt(fpr / 60)


def test_strip_rejects_its_nominal_share_of_fresh_inputs() -> None:
    """10 % of 1,500 by a threshold from 750, within four standard errors."""
    case = toy.toy()
    defense = Strip(overlays=4, fpr=0.1)
    labels = np.random.default_rng(0).integers(0, toy.CLASSES, 3000)
    pixels = toy.images(labels, 50)
    clean = ImageSet(images=pixels[:1500], labels=labels[:1500])
    found = defense.run(toy.inputs(defense, case, clean_set=clean), Context(seed=0))
    assert found.score_inputs is not None and found.calibration is not None
    held, fresh = pixels[torch.from_numpy(found.calibration)], pixels[1500:]
    reference = found.score_inputs(held.float() / 255, found.calibration)
    values = {"reference_scores": reference}
    threshold = defense.decide(Evidence("x", defense.needs(), values)).threshold
    share = (found.score_inputs(fresh.float() / 255, np.arange(1500)) > threshold).mean()
    assert share == pytest.approx(0.1, abs=4 * math.sqrt(0.09 * (1 / 1500 + 1 / 750)))


def gradient(loss: str, gamma: float, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    free = logits.clone().requires_grad_(True)
    batch = Batch(images=free, labels=labels, rows=torch.arange(len(labels)))
    objective = isolation_objective(loss, gamma)  # type: ignore[arg-type]
    objective(torch.nn.Identity(), {"data": batch}).backward()
    assert free.grad is not None
    return free.grad


@pytest.mark.parametrize("loss", ["lga_sample", "lga_batch", "flooding"])
def test_isolation_losses_turn_the_gradient_around_below_gamma(loss: str) -> None:
    labels = torch.tensor([0, 1])
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    value = float(F.cross_entropy(logits, labels))
    plain = gradient("cross_entropy", 0.0, logits, labels)
    torch.testing.assert_close(gradient(loss, value - 0.1, logits, labels), plain)
    torch.testing.assert_close(gradient(loss, value + 0.1, logits, labels), -plain)


def test_lga_per_sample_and_per_batch_differ_on_a_mixed_batch() -> None:
    labels = torch.tensor([0, 1])
    logits = torch.tensor([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    plain = gradient("cross_entropy", 0.0, logits, labels)
    sample = gradient("lga_sample", 0.5, logits, labels)
    torch.testing.assert_close(sample, plain * torch.tensor([[-1.0], [1.0]]))
    torch.testing.assert_close(gradient("lga_batch", 0.5, logits, labels), plain)


def test_isolation_takes_exactly_the_lowest_losses() -> None:
    losses = np.random.default_rng(0).random(330)
    for ratio, count in ((0.01, 3), (0.1, 33), (0.001, 1)):
        defense = ABL(ratio=ratio)
        flags = defense.decide(Evidence("x", defense.needs(), {"train_scores": -losses})).flags
        assert flags is not None and flags.sum() == count
        assert set(np.flatnonzero(flags)) == set(np.argsort(losses)[:count])


def test_ascent_stops_at_what_a_defender_can_see() -> None:
    ascent = Ascent(cap=math.log(100))
    labels = torch.tensor([0, 0])
    easy = torch.tensor([[9.0, 0.0], [9.0, 0.0]])

    def step(logits: torch.Tensor) -> torch.Tensor:
        batch = Batch(images=logits, labels=labels, rows=torch.arange(2))
        return ascent(torch.nn.Identity(), {"isolated": batch})

    loss = step(easy)
    torch.testing.assert_close(loss, -F.cross_entropy(easy, labels))
    assert not ascent.finished()
    step(-easy)
    assert ascent.finished(), "the isolated samples are forgotten"


def test_abl_isolates_and_unlearns_the_toy() -> None:
    case = toy.toy()
    defense = ABL(isolation_epochs=3, tuning_epochs=4, ratio=0.05)
    found = toy.found(defense, case)
    decision = defense.decide(toy.evidence(defense, case, found))
    assert decision.flags is not None
    assert case.mask[decision.flags].mean() >= 0.95
    kept = dict(found.kept)
    seen = toy.inputs(defense, case, found=kept, decision=decision)
    weights = defense.repair(seen, Context(seed=5))
    assert toy.asr(weights, case) < 0.05 < 0.9 < toy.asr(case.weights, case)
    assert toy.accuracy(weights, case) > toy.accuracy(case.weights, case) - 0.02
    isolated = case.train.take(np.flatnonzero(decision.flags))
    logits = toy.training.predict(toy.network(weights), isolated.images, toy.RECIPE, "cpu")
    assert float(F.cross_entropy(logits, torch.from_numpy(isolated.labels))) > 2


def test_isolation_by_random_scores_is_as_pure_as_the_set() -> None:
    draw = np.random.default_rng(0)
    poison = draw.random(50_000) < 0.1
    defense = ABL(ratio=0.1)
    values = {"train_scores": draw.normal(size=50_000)}
    flags = defense.decide(Evidence("x", defense.needs(), values)).flags
    assert flags is not None and flags.sum() == 5000
    assert poison[flags].mean() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 5000))


def test_unlearning_raises_the_isolated_loss_at_every_step() -> None:
    """At a small learning rate, one batch of all the poison."""
    case = toy.toy()
    ascent, losses = Ascent(math.log(100)), []

    def after(epoch: int, model: torch.nn.Module) -> None:
        del epoch, model
        losses.append(float(ascent.latest))

    recipe = toy.RECIPE.model_copy(update={"learning_rate": 1e-3, "schedule": "constant"})
    poison = {"isolated": Stream(data=case.train.take(np.flatnonzero(case.mask)))}
    network = toy.network(case.weights)
    fit(network, poison, recipe, Context(seed=0), objective=ascent, steps=10, on_epoch=after)
    assert len(losses) == 10 and (np.diff(losses) > 0.01).all()


@pytest.mark.parametrize("isolated", [3, 40])
def test_unlearning_takes_its_steps_however_many_samples_are_isolated(
    isolated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    class Counted(Ascent):
        def __call__(self, model: torch.nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
            steps.append(len(batches["isolated"].labels))
            return super().__call__(model, batches)

    monkeypatch.setattr("raysweep.defenses.abl.Ascent", Counted)
    case = toy.toy()
    defense = ABL(tuning_epochs=0, unlearning_steps=7)
    kept = {name: t.numpy() for name, t in case.weights.items()}
    flags = np.arange(len(case.train)) < isolated
    seen = toy.inputs(defense, case, found=kept, decision=Decision(flags=flags))
    defense.repair(seen, Context(seed=5))
    assert len(steps) == 7 and max(steps) <= 8


def test_three_passes_of_ascent_alone_forget_the_trigger() -> None:
    """The released code's second stage: ASR below 5 %, at less than 2 points of accuracy."""
    case = toy.toy()
    defense = ABL(tuning_epochs=0, ascent="separate", unlearning_rate=0.03, unlearning_steps=3)
    kept = {name: t.numpy() for name, t in case.weights.items()}
    half = np.isin(np.arange(len(case.train)), np.flatnonzero(case.mask)[::2])
    seen = toy.inputs(defense, case, found=kept, decision=Decision(flags=half))
    weights = defense.repair(seen, Context(seed=5))
    assert toy.asr(weights, case) < 0.05 < 0.9 < toy.asr(case.weights, case)
    assert toy.accuracy(weights, case) > toy.accuracy(case.weights, case) - 0.02


@pytest.mark.parametrize("loss", ["flooding", "lga_batch"])
def test_after_twelve_epochs_what_is_isolated_is_poison(loss: Any) -> None:
    case = toy.toy()
    defense = ABL(isolation_epochs=12, isolation_loss=loss, ratio=0.05)
    flags = defense.decide(toy.evidence(defense, case, toy.found(defense, case))).flags
    assert flags is not None and case.mask[flags].mean() >= 0.95


def test_tuning_follows_the_released_milestone_not_the_victims(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 60 epochs 40 at the full rate; the victim's own recipe falls elsewhere."""
    rates = []

    def seen_rate(recipe: Recipe, step: int, steps: int) -> float:
        rates.append(learning_rate(recipe, step, steps))
        return rates[-1]

    monkeypatch.setattr("raysweep.training.learning_rate", seen_rate)
    case = toy.toy()
    victims = toy.RECIPE.model_copy(
        update={"schedule": "multistep", "milestones": (0.2, 0.7), "learning_rate": 0.1}
    )
    defense = ABL(tuning_epochs=3, unlearning_steps=0)
    kept = {name: t.numpy() for name, t in case.weights.items()}
    flags = np.arange(len(case.train)) < 5
    given = {"found": kept, "decision": Decision(flags=flags), "recipe": victims}
    defense.repair(toy.inputs(defense, case, **given), Context(seed=5))
    third = len(rates) // 3
    assert rates == pytest.approx([0.1] * 2 * third + [0.01] * third)


def test_anomaly_index_on_hand_made_norms() -> None:
    norms = np.array([10.0, 11.0, 12.0, 13.0, 2.0])
    index = anomaly_index(norms)
    assert index[4] == pytest.approx((11 - 2) / (1.4826 * 1.0))
    assert index[1] == 0 and index[3] < 0
    assert anomaly_index(np.array([5.0, 5.0, 5.0, 1.0])).tolist() == [0, 0, 0, np.inf]


def test_neural_cleanse_finds_the_planted_target_and_unlearns_it() -> None:
    case = toy.toy()
    defense = NeuralCleanse(steps=150, cut=1.0, unlearning_epochs=8)
    found = toy.found(defense, case)
    norms = found.statistics["norms"]
    assert int(norms.argmin()) == toy.TARGET
    index = defense.decide(toy.evidence(defense, case, found)).class_scores
    assert index is not None and int(index.argmax()) == toy.TARGET
    decision = Decision(classes=(toy.TARGET,), class_scores=index)
    seen = toy.inputs(defense, case, found=found.kept, decision=decision)
    weights = defense.repair(seen, Context(seed=5))
    assert toy.asr(weights, case) < 0.3 and toy.accuracy(weights, case) > 0.8


def test_fine_tuning_trains_a_copy_on_clean_images() -> None:
    case = toy.toy()
    found = toy.found(FineTuning(epochs=15), case)
    assert found.model is not None
    labels = torch.from_numpy(case.clean.labels)

    def loss(weights: dict[str, torch.Tensor]) -> float:
        logits = toy.training.predict(toy.network(weights), case.clean.images, toy.RECIPE, "cpu")
        return float(F.cross_entropy(logits, labels))

    assert loss(found.model) < loss(case.weights)
    assert toy.accuracy(found.model, case) > 0.9


ORACLE = """
name: selected
dataset: {digits: {size: 400}}
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 4}
attacks: [badnets: {rate: 0.1}]
defenses:
  - abl: {isolation_epochs: 3, tuning_epochs: 3, unlearning_steps: 40, ratio: 0.05}
  - abl: {isolation_epochs: 3, tuning_epochs: 3, unlearning_steps: 40, ratio: 0.05,
          selection: test_asr}
track: {wandb: disabled}
"""


def test_abl_by_test_asr_gives_the_lowest_epoch_and_says_that_it_looked(tmp_path: Path) -> None:
    """Of several epochs of unlearning, through the plan; the ASR it reads is that of the record."""
    rows = launch(from_text(parse("f", ORACLE)), ORACLE, str(tmp_path), inline=True).rows
    assert (rows["status"] == "ok").all(), rows["error"].tolist()
    own, oracle = rows["asr"]
    assert oracle <= own
    assert list(rows["badges"]) == ["", "oracle: test success"]
    case = toy.toy()
    defense = ABL(isolation_epochs=1, tuning_epochs=1, unlearning_steps=20, selection="test_asr")
    found = toy.found(defense, case)
    decision = defense.decide(toy.evidence(defense, case, found))
    read: list[float] = []

    def success(model: torch.nn.Module) -> float:
        read.append([0.4, 0.1, 0.3][min(len(read), 2)])
        states.append({n: t.clone() for n, t in model.state_dict().items()})
        return read[-1]

    states: list[dict[str, torch.Tensor]] = []
    seen = toy.inputs(
        defense, case, found=dict(found.kept), decision=decision, test_success=success
    )
    weights = defense.repair(seen, Context(seed=5))
    assert len(read) >= 3
    assert all((weights[name] == states[1][name]).all() for name in weights)
