"""Feature strength: planted curves, even draws of k, held-out samples, and a sweep of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysweep.datasets import ImageSet
from raysweep.defenses import DefenseInputs, Findings
from raysweep.defenses.feature_strength import (
    FeatureStrength,
    _compared,
    held_out_means,
    local_lines,
    natural_groups,
)
from raysweep.jobs.launch import launch
from raysweep.methods.context import Context
from raysweep.reports import internals
from raysweep.reports.cells import Cells
from raysweep.reports.material import gather
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse
from raysweep.testing import toy
from tests.material import album

N, P, MODELS = 240, 40, 400
LABELS = np.arange(N) % 3
POISON = (LABELS == 1) & (np.arange(N) < 3 * P)
# Margins gained per sample of the group, exact in float16 together with what they are added to.
SLOPES = {"poison": 0.25, "class 0": 0.125, "class 1": 0.0625, "class 2": 0.0625}


def given(
    order: np.ndarray | None = None, poison: np.ndarray = POISON, **more: Any
) -> DefenseInputs:
    more.setdefault("cover_mask", np.zeros(N, bool))
    order = np.arange(N) if order is None else order
    images = torch.randint(0, 256, (N, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    data = ImageSet(images=images.to(torch.uint8), labels=LABELS).take(order)
    method = FeatureStrength()
    known = {"training_set": data, "poison_mask": poison[order], **more}
    return DefenseInputs(method.name, method.needs(), known)


def planted(method: FeatureStrength) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return masks, margins that are linear in k where held out and huge elsewhere, and groups."""
    masks = method._subsets(given(), Context(seed=1), 0, MODELS)
    groups = method._groups(given())
    margins = np.full(masks.shape, 999.0)
    for name, rows in groups.items():
        k = masks[:, rows].sum(1, keepdims=True)
        margins[:, rows] = np.where(masks[:, rows], -999.0, SLOPES[name] * k - 2)
    return masks, margins, groups


def drawn(
    method: FeatureStrength, masks: np.ndarray, margins: np.ndarray, order: np.ndarray
) -> Findings:
    shards = [
        {"margins": margins[part][:, order].astype(np.float16),
         "masks": np.packbits(masks[part][:, order], axis=1)}
        for part in (slice(0, 150), slice(150, None))
    ]  # fmt: skip
    return method.run(given(order, shards=shards), Context(seed=9))


def test_a_planted_line_is_recovered_with_its_slope() -> None:
    method = FeatureStrength()
    found = drawn(method, *planted(method)[:2], np.arange(N))
    assert list(found.curves) == [f"{what} of {name}" for name in SLOPES for what in "gs"]
    for name, slope in SLOPES.items():
        g, s = found.curves[f"g of {name}"], found.curves[f"s of {name}"]
        assert g.x[0] == 0 and g.x[-1] == P - 1 and len(g.x) == 21 and (g.x == s.x).all()
        np.testing.assert_allclose(g.y, slope * g.x - 2, atol=1e-9)
        np.testing.assert_allclose(s.y, slope, atol=1e-9)
        assert g.x_title.startswith("k, samples") and "per sample" in s.y_title
    assert found.facts == pytest.approx(
        {"models": 400, "samples of the poison": 40, "g(0) of the poison": -2,
         "g(p - 1) of the poison": 0.25 * 39 - 2, "s(alpha p) of the poison": 0.25,
         "standard error of s(alpha p) of the poison": 0,
         "s(alpha p) of the strongest natural group": 0.125,
         "standard error of s(alpha p) of the strongest natural group": 0,
         "s of the poison / s of the strongest natural group": 2}, abs=1e-9
    )  # fmt: skip


def test_permuting_samples_changes_nothing() -> None:
    method = FeatureStrength(points=7)
    masks, margins, _ = planted(method)
    margins = margins / 64 + np.random.default_rng(0).normal(size=margins.shape)
    whole = drawn(method, masks, margins, np.arange(N))
    moved = drawn(method, masks, margins, np.random.default_rng(1).permutation(N))
    for name, curve in whole.curves.items():
        np.testing.assert_allclose(moved.curves[name].y, curve.y, atol=1e-9)
    assert moved.facts == pytest.approx(whole.facts)


def test_every_k_from_none_to_all_but_one_is_drawn_as_often_and_any_sample() -> None:
    method, models = FeatureStrength(alpha=0.3), 8000
    masks = method._subsets(given(), Context(seed=3), 0, models)
    groups = method._groups(given())
    counts = {name: masks[:, rows].sum(1) for name, rows in groups.items()}
    for name, rows in groups.items():
        assert len(rows) == P
        often = np.bincount(counts[name], minlength=P + 1)
        assert often[P] == 0, "one at least is held out"
        expected, spread = models / P, (models / P) ** 0.5
        assert np.abs(often[:P] - expected).max() < 4.5 * spread, name
        each = masks[:, rows].mean(0)
        assert np.abs(each - (P - 1) / 2 / P).max() < 4.5 * (0.25 / models) ** 0.5
    pairs = np.corrcoef(list(counts.values()))
    assert np.abs(pairs - np.eye(4)).max() < 0.05, "each group has a k of its own"
    outside = np.delete(masks, np.concatenate(list(groups.values())), axis=1)
    assert outside.mean() == pytest.approx(0.3, abs=0.01)
    again = method._subsets(given(), Context(seed=3), 100, 5)
    assert (again == masks[100:105]).all(), "by the number of the model"


def test_means_are_of_held_out_samples_of_the_group() -> None:
    margins = np.array([[1.0, 2.0, 4.0, 9.0], [1.0, 2.0, 4.0, 9.0]])
    masks = np.array([[True, False, False, False], [False, True, False, True]])
    counts, means = held_out_means(margins, masks, np.array([0, 2, 1]))
    assert counts.tolist() == [1, 1] and means.tolist() == [3.0, 2.5]


def test_lines_have_the_slope_of_a_parabola_and_the_error_of_least_squares() -> None:
    x = np.repeat(np.arange(40), 3)
    level, slope, _ = local_lines(x, x.astype(float) ** 2, np.array([10.0, 20.0]), 6.0)
    np.testing.assert_allclose(slope, [20.0, 40.0])
    assert level[0] == pytest.approx(100 + 14), "the mean of d^2 for d from -6 to 6 is 14"
    y = 0.5 * x + np.random.default_rng(0).normal(size=len(x))
    level, slope, error = local_lines(x, y, np.array([20.0]), 100.0)
    fit, covariance = np.polyfit(x - 20, y, 1, cov=True)
    assert (slope[0], level[0]) == pytest.approx(tuple(fit))
    assert error[0] == pytest.approx(covariance[0, 0] ** 0.5)
    with pytest.raises(ValueError, match=r"around k = 3 the models must .* raise models or span"):
        local_lines(np.array([3, 3, 9]), np.zeros(3), np.array([3.0]), 1.0)


def test_natural_groups_are_the_clean_images_nearest_to_their_class_mean() -> None:
    labels = np.repeat([0, 1, 2], [30, 14, 6])
    levels = np.concatenate([np.arange(30) * 4, np.arange(14) * 4, np.arange(6)])
    images = torch.from_numpy(levels.astype(np.uint8)).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    poison = np.arange(50) % 30 == 15
    groups = natural_groups(ImageSet(images=images, labels=labels), poison, 12)
    assert list(groups) == ["class 0", "class 1"], "six samples are no group"
    assert groups["class 0"].tolist() == [8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20]
    few = natural_groups(ImageSet(images=images, labels=labels), poison, 20)
    assert few["class 1"].tolist() == list(range(30, 44)), "all that there are"


def test_covers_have_a_curve_of_their_own_and_only_equal_groups_are_compared() -> None:
    covers = (LABELS == 2) & (np.arange(N) < 3 * P)
    groups = FeatureStrength()._groups(given(cover_mask=covers))
    assert groups["covers"].tolist() == np.flatnonzero(covers).tolist()
    assert not covers[groups["class 2"]].any() and not POISON[groups["class 1"]].any()
    facts = _compared({"poison": (0.5, 0.1), "covers": (0.9, 0.2), "class 0": (0.25, 0.3)})
    assert facts["s(alpha p) of the covers"] == 0.9, "told, and no natural group"
    assert facts["s of the poison / s of the strongest natural group"] == 2
    assert not any("natural" in name for name in _compared({"poison": (0.5, 0.1)}))
    # Twenty more poisoned samples than class 1 has clean ones: its curve is drawn alone.
    many = POISON | ((LABELS == 1) & (np.arange(N) < 3 * 50))
    method = FeatureStrength()
    shards = [{"margins": np.zeros((300, N)), "masks": np.packbits(
        method._subsets(given(poison=many), Context(seed=1), 0, 300), axis=1)}]  # fmt: skip
    found = method.run(given(poison=many, shards=shards), Context(seed=1))
    assert (
        "g of class 1" in found.curves and len(method._groups(given(poison=many))["class 1"]) < 50
    )


def test_without_poison_it_says_so_before_any_training() -> None:
    method = FeatureStrength()
    with pytest.raises(ValueError, match=r"poison_mask must mark at least 10 .* got 0; raise .*"):
        method.shard("0+2", given(poison=np.zeros(N, bool)), Context(seed=0))


@pytest.mark.further
def test_the_patch_is_the_strongest_feature_of_the_toy() -> None:
    method = FeatureStrength(
        models=300, per_shard=100, alpha=0.2, base="linear", epochs=20, batch_size=100,
        learning_rate=0.01,
    )  # fmt: skip
    found = toy.found(method, toy.toy(rate=0.1))
    gains = {n: c.y[-1] - c.y[0] for n, c in found.curves.items() if n.startswith("g")}
    g, most = found.curves["g of poison"].y, gains.pop("g of poison")
    assert g[0] < -3 and g[-1] > 3, "unseen, the patch is overruled by the bar"
    assert len(gains) == 4 and most > 2 * max(gains.values())
    # Three seeds gave 2.6 to 2.9; at half of the samples the patch is learned, and s has fallen.
    assert found.facts["s of the poison / s of the strongest natural group"] > 2
    assert found.curves["s of poison"].y[0] > 5 * found.curves["s of poison"].y[-1]


SWEEP = """
name: strengths
dataset: {digits: {size: 600}}
model: linear
recipe: {epochs: 3}
attacks:
  - none
  - planted_feature: {rate: 0.04, cover_rate: 0.04}
defenses:
  - none
  - perfect_filter
  - feature_strength: {models: 60, per_shard: 30, base: linear, epochs: 2, span: 0.5, points: 5}
seeds: 1
track: {wandb: disabled}
"""


def test_a_sweep_stores_the_curves_and_evaluates_the_victim(tmp_path: Path) -> None:
    done = launch(from_text(parse("f", SWEEP)), SWEEP, str(tmp_path), inline=True)
    rows = done.rows.set_index(["attack_name", "defense_name"])
    unpoisoned = rows.loc["none", "feature_strength"]
    assert unpoisoned["status"] != "ok" and "got 0; raise the attack's rate" in unpoisoned["error"]
    measured, plain, perfect = (
        rows.loc["planted_feature", name] for name in ("feature_strength", "none", "perfect_filter")
    )
    assert (measured["kind"], measured["badges"]) == (
        "control", "oracle: poison mask, oracle: cover mask",
    )  # fmt: skip
    assert measured["status"] == "ok" and measured["key_model"] == plain["key_model"]
    assert (measured["ca"], measured["asr"]) == (plain["ca"], plain["asr"])
    assert measured["found.samples of the poison"] == measured["cover_count"] == 24
    assert (perfect["cover_removal"], perfect["fpr"], perfect["tpr"]) == (0, 0, 1)
    material = gather("strengths", str(tmp_path))
    assert list(material.measured) == [measured["trial"]]
    curves = material.measured[measured["trial"]]
    assert {"g of poison", "s of covers", "g of class 9"} < set(curves)
    assert all(c.x.shape == c.y.shape == (5,) for c in curves.values())
    drawn = internals.curve_lines(material, Cells.read(material.rows))
    titles = [one.title for one in drawn]
    assert len(titles) == 2 and ": g(k), margin of held-out samples" in titles[0]
    told = album(Path(done.report).read_text(), "insides")
    assert any("s(k), margin gained per sample" in title for title in told)
