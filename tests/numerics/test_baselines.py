"""Later baselines against closed forms, planted groups and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from torch import nn

from raysweep.defenses import Evidence
from raysweep.defenses._layers import map_layers
from raysweep.defenses.asset import ASSET, Offset
from raysweep.defenses.beatrix import Beatrix, clean_range, gram_entries, outside
from raysweep.defenses.cognitive_distillation import CognitiveDistillation
from raysweep.defenses.fine_pruning import FinePruning, pruned_count
from raysweep.defenses.frequency import Frequency, cosine_basis, perturb
from raysweep.defenses.nad import NAD, Attention, attention
from raysweep.defenses.scan import SCAn, class_index, two_groups, untangled, whitening
from raysweep.defenses.sentinet import SentiNet, fit_boundary, salient
from raysweep.defenses.spectre import SPECTRE, quantum_scores, robust_covariance
from raysweep.methods import decision_fields
from raysweep.methods.context import Context
from raysweep.metrics.ranking import ranking
from raysweep.testing import toy
from raysweep.training.streams import Batch


def test_the_shared_variation_is_found() -> None:
    draw = np.random.default_rng(0)
    factor = draw.normal(size=(5, 5))
    shared = factor @ factor.T / 5
    labels = np.repeat(np.arange(20), 100)
    identity = draw.normal(0, 3, (20, 5))
    values = identity[labels] + draw.multivariate_normal(np.zeros(5), shared, len(labels))
    found = untangled(values - values.mean(0), labels, 100)
    np.testing.assert_allclose(found, shared, atol=0.1)
    white = (values - identity[labels]) @ whitening(found)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(5), atol=0.1)


def test_only_the_class_of_two_groups_stands_out() -> None:
    draw = np.random.default_rng(1)
    ratios = np.zeros(10)
    for label in range(10):
        points = draw.normal(size=(300, 4))
        points[:60, 0] += 9 if label == 7 else 0
        reserved = draw.normal(size=(50, 4))
        ratios[label], suspect, margin = two_groups(points, reserved)
        if label == 7:
            assert suspect[:60].all() and not suspect[60:].any()
            assert (margin[:60] > 0).all() and (margin[60:] < 0).all()
    index = class_index(ratios, np.arange(10))
    assert (index > np.e).tolist() == [label == 7 for label in range(10)]
    moved = class_index(ratios[np.random.default_rng(0).permutation(10)], np.arange(10))
    np.testing.assert_allclose(np.sort(moved), np.sort(index))
    assert np.isfinite(class_index(np.ones(10), np.arange(10))).all()


def test_the_suspect_side_may_be_the_larger_one() -> None:
    draw = np.random.default_rng(2)
    points = draw.normal(size=(300, 3))
    points[:200, 0] += 9
    _, suspect, _ = two_groups(points, draw.normal(size=(40, 3)))
    assert suspect[:200].all() and not suspect[200:].any()


def test_the_robust_covariance_ignores_a_tenth() -> None:
    draw = np.random.default_rng(0)
    points = draw.normal(size=(1000, 4))
    points[:80] = 12 + 0.3 * draw.normal(size=(80, 4))
    center, covariance = robust_covariance(points, 0.12)
    assert np.abs(center).max() < 0.15
    plain = np.cov(points, rowvar=False)
    assert np.abs(plain - np.eye(4)).max() > 5 > 0.2 > np.abs(covariance - np.eye(4)).max()


@pytest.mark.parametrize("size", [1, 5, 20])
def test_the_robust_covariance_is_the_covariance_of_a_gaussian(size: int) -> None:
    points = np.random.default_rng(1).normal(size=(20_000, size))
    _, covariance = robust_covariance(points, 0.2)
    assert np.diag(covariance).mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("axis", [12, 20])
def test_the_number_of_axes_is_no_artefact_of_trimmed_tails(axis: int) -> None:
    """Poison at six deviations, where the first axis alone shows nothing of it."""
    draw = np.random.default_rng(2)
    spread = np.linspace(3, 1, 32)
    features = draw.normal(size=(500, 32)) * spread
    features[:25, axis] += 6 * spread[axis]
    scores, _ = quantum_scores(features, 0.1, 4.0)
    assert ranking(scores, np.arange(500) < 25).auroc > 0.95


def test_quantum_entropy_ranks_the_planted_direction_first() -> None:
    draw = np.random.default_rng(3)
    features = draw.normal(size=(600, 20)) * np.linspace(4, 0.5, 20)
    features[:60, -1] += 5  # along the direction of least spread, where no principal axis looks
    mask = np.arange(600) < 60
    scores, strength = quantum_scores(features, 0.15, 4.0)
    assert ranking(scores, mask).auroc > 0.95 and strength > 1
    turn = np.linalg.qr(draw.normal(size=(20, 20)))[0]
    again, _ = quantum_scores(features @ turn, 0.15, 4.0)
    np.testing.assert_allclose(again, scores, rtol=1e-5, atol=1e-8)
    few, none = quantum_scores(features[:3], 0.1, 4.0)
    assert few.tolist() == [0, 0, 0] and none == 0
    with pytest.raises(ValueError, match="features must be finite"):
        quantum_scores(np.full((10, 2), np.nan), 0.1, 4.0)
    assert np.isfinite(quantum_scores(np.ones((10, 3)), 0.1, 4.0)[0]).all()


def test_spectre_removes_from_classes_above_the_median() -> None:
    case = toy.toy()
    method = SPECTRE()
    found = toy.found(method, case)
    flags = method.decide(toy.evidence(method, case, found)).flags
    assert flags is not None
    touched = np.unique(case.train.labels[flags])
    assert len(touched) == 2 and toy.TARGET in touched
    everywhere = method.model_copy(update={"classes": "all"})
    all_flags = everywhere.decide(toy.evidence(everywhere, case, found)).flags
    assert all_flags is not None and len(np.unique(case.train.labels[all_flags])) == 4


@pytest.mark.parametrize(
    ("rate", "assumed"), [(0.1, [200, 198, 40]), (0.01, [20] * 3), (0.0, [100, 60, 40])]
)
def test_spectre_by_the_rate_follows_the_caps_of_the_released_code(
    rate: float, assumed: list[int]
) -> None:
    """In what the covariance leaves out, and 1.5 times in what is removed."""
    draw, sizes = np.random.default_rng(6), [1000, 600, 400]
    labels = np.repeat(np.arange(3), sizes)
    features = draw.normal(size=(2000, 6)).astype(np.float32)
    method = SPECTRE(removal="rate", classes="all")
    given = {"features": features, "labels": labels, "poison_rate": rate}
    found = method.run(toy.inputs(method, toy.toy(), **given), Context(seed=0))
    scores = np.asarray(found.train_scores)
    for label, size in enumerate(sizes):
        rows = labels == label
        expected, strength = quantum_scores(features[rows], assumed[label] / size, 4.0)
        np.testing.assert_array_equal(scores[rows], expected)
        assert found.statistics["strength"][label] == strength
    values = {**given, "train_scores": scores, "statistics": found.statistics}
    flags = method.decide(Evidence("x", method.needs(), values)).flags
    assert flags is not None
    assert np.bincount(labels[flags]).tolist() == [int(1.5 * count) for count in assumed]
    assert "removal" not in decision_fields(SPECTRE), "its scores depend on it"
    assert method.badges() == ("oracle: poison rate",) and SPECTRE().badges() == ()


def test_gram_entries_are_those_of_the_definition() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 2, 2))
    flat = maps.reshape(2, 3, 4)
    found = gram_entries(maps, 3)
    first = flat @ flat.transpose(0, 2, 1)
    np.testing.assert_allclose(found[:, :3], first.sum(2))
    third = flat**3 @ (flat**3).transpose(0, 2, 1)
    rooted = np.sign(third) * np.abs(third) ** (1 / 3)
    np.testing.assert_allclose(found[:, 6:], rooted.sum(2))
    assert np.isfinite(gram_entries(maps * 1e30, 9)).all()


def test_what_leaves_the_clean_range_scores_higher() -> None:
    clean = np.random.default_rng(0).normal(size=(200, 6))
    middle, spread = clean_range(clean)
    points = np.zeros((3, 6))
    points[1, 0], points[2, :] = 30, 30
    scores = outside(points, middle, spread, 10.0)
    assert scores[0] < scores[1] < scores[2]
    constant = clean_range(np.ones((10, 2)))
    assert np.isfinite(outside(np.zeros((1, 2)), *constant, 10.0)).all()


def test_masks_of_triggered_images_keep_the_patch() -> None:
    case = toy.toy()
    method = CognitiveDistillation(norm_weight=0.05)
    inputs = toy.inputs(method, case)
    triggered = case.triggered[:40].float() / 255
    masks = method.masks(inputs, triggered, Context(seed=0))
    assert masks.shape == (40, 1, toy.SIDE, toy.SIDE)
    assert float(masks.min()) >= 0 and float(masks.max()) <= 1
    assert float(masks[..., -3:, -3:].mean()) > 2 * float(masks.mean())


def test_the_cosine_transform_is_scipys() -> None:
    image = np.random.default_rng(0).random((7, 5))
    ours = cosine_basis(7).numpy() @ image @ cosine_basis(5).numpy().T
    np.testing.assert_allclose(ours, scipy.fft.dctn(image, norm="ortho"), atol=1e-5)


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 12, 20)])
def test_perturbations_of_every_kind_change_the_image(size: tuple[int, int, int]) -> None:
    draw = np.random.default_rng(0)
    image = torch.rand(size, generator=torch.Generator().manual_seed(0))
    for _ in range(40):
        changed = perturb(image, draw)
        assert changed.shape == image.shape and not torch.equal(changed, image)
        assert float(changed.min()) >= 0 and float(changed.max()) <= 1


def test_channels_are_pruned_until_accuracy_falls() -> None:
    features = torch.eye(4).repeat(5, 1)
    weight, bias = torch.eye(4), torch.zeros(4)
    labels = torch.arange(4).repeat(5)
    order = torch.tensor([2, 0, 1, 3])
    # The first channel to go costs its class, a quarter, unless ties favor it.
    assert pruned_count(features, weight, bias, labels, order, 0.9, 0.99) == 0
    assert pruned_count(features, weight, bias, labels, order, 0.7, 0.99) == 2
    dead = torch.cat([features, torch.zeros(20, 2)], 1)
    wide = torch.cat([weight, torch.ones(4, 2)], 1)
    order = torch.tensor([4, 5, 2, 0, 1, 3])
    assert pruned_count(dead, wide, bias, labels, order, 0.99, 0.99) == 2
    assert pruned_count(dead, wide, bias, labels, order, 0.0, 0.5) == 3


def test_attention_maps_are_normalized_sums_of_powers() -> None:
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = attention(maps, 2.0)
    expected = maps.square().mean(1).flatten(1)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(attention(maps * 5, 2.0), found)


def test_a_student_that_is_its_teacher_pays_cross_entropy_alone() -> None:
    case = toy.toy()
    network = toy.network(case.weights)
    batch = Batch(
        images=case.clean.images.float() / 255, labels=torch.from_numpy(case.clean.labels),
        rows=torch.arange(len(case.clean)),
    )  # fmt: skip
    layers = map_layers(toy.inputs(NAD(), case), Context(seed=0))
    assert layers == ["block1", "block2", "block3"]
    loss = Attention(network, layers, 1000.0, 2.0)(network, {"data": batch})
    plain = nn.functional.cross_entropy(network(batch.images), batch.labels)
    torch.testing.assert_close(loss, plain)


def test_the_salient_region_has_its_size_and_holds_the_patch() -> None:
    case = toy.toy()
    method = SentiNet()
    inputs = toy.inputs(method, case)
    images = case.triggered[:60].float() / 255
    layer = map_layers(inputs, Context(seed=0))[-1]
    masks, labels = salient(inputs, layer, images, 0.15)
    assert (masks.sum((1, 2, 3)) == int(0.15 * toy.SIDE**2)).all()
    assert (labels.numpy() == toy.TARGET).mean() > 0.9
    corner = masks[..., -4:, -4:].mean()
    assert float(corner) > 2 * float(masks.mean())


def test_the_boundary_runs_through_the_highest_points() -> None:
    confidence = np.repeat(np.linspace(0.1, 0.9, 9), 3) + np.tile([0, 1e-4, 2e-4], 9)
    fooled = 0.5 * confidence**2 + 0.1
    lower = fooled - np.tile([0.0, 0.05, 0.08], 9)
    coefficients = fit_boundary(confidence, lower, 0.02)
    np.testing.assert_allclose(np.polyval(coefficients, confidence[::3]), fooled[::3], atol=1e-3)
    assert len(fit_boundary(np.array([0.5, 0.5]), np.array([0.1, 0.2]), 0.02)) == 1


def test_the_offset_goes_down_on_base_and_up_on_suspects() -> None:
    case = toy.toy()
    network = toy.network(case.weights)
    batch = Batch(
        images=case.clean.images.float() / 255, labels=torch.from_numpy(case.clean.labels),
        rows=torch.arange(len(case.clean)),
    )  # fmt: skip
    same = Offset(1.0, 100.0)(network, {"base": batch, "suspect": batch})
    assert abs(float(same.detach())) < 1e-6, "on the same data the two cancel"
    wrong = Batch(images=batch.images, labels=(batch.labels + 1) % 4, rows=batch.rows)
    capped = Offset(1.0, 1.0)(network, {"base": batch, "suspect": wrong})
    plain = nn.functional.cross_entropy(network(batch.images), batch.labels)
    assert float(capped.detach()) == pytest.approx(float(plain.detach()) - 1.0, abs=0.05)


@pytest.mark.parametrize(
    "method",
    [SCAn(), Beatrix(), SentiNet(), Frequency(), FinePruning(), NAD(), ASSET()],
    ids=lambda m: m.name,
)
def test_too_small_a_clean_set_is_refused(method: SCAn) -> None:
    case = toy.toy()
    few = case.clean.take(np.array([0]))
    with pytest.raises(ValueError, match="clean"):
        method.run(toy.inputs(method, case, clean_set=few), Context(seed=0))
