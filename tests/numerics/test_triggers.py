"""Later triggers against the figures that their experiments publish, and planted truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raysweep import training
from raysweep.attacks import Attack, AttackInputs, Choice, Part
from raysweep.attacks._drawn import PatchName, patch
from raysweep.attacks._latent import head_inputs
from raysweep.attacks.adaptive_blend import AdaptiveBlend
from raysweep.attacks.adaptive_patch import AdaptivePatch
from raysweep.attacks.additive import Additive
from raysweep.attacks.badnets import BadNets
from raysweep.attacks.badnets_clean_label import BadNetsCleanLabel
from raysweep.attacks.composite import Composite
from raysweep.attacks.dfst import DFST, PALETTE, sunrise
from raysweep.attacks.dynamic import Dynamic
from raysweep.attacks.ember_watermark import EmberWatermark, combined, rare_values
from raysweep.attacks.feature_collision import FeatureCollision
from raysweep.attacks.issba import ISSBA, _decoder
from raysweep.attacks.label_consistent import LabelConsistent
from raysweep.attacks.latent_backdoor import LatentBackdoor
from raysweep.attacks.planted_feature import PlantedFeature
from raysweep.attacks.rotation import Rotation
from raysweep.attacks.tact import TaCT
from raysweep.attacks.trojan import Trojan
from raysweep.datasets import ImageSet, IntArray, Shape, as_floats
from raysweep.errors import PlanError
from raysweep.methods.context import Arrays, Context
from raysweep.methods.recipe import Recipe
from raysweep.methods.registry import available, load
from raysweep.models.ember_mlp import EmberMLP
from raysweep.models.tiny_cnn import TinyCNN

GREY = torch.full((4, 3, 32, 32), 0.4)
RECIPE = Recipe(epochs=3, batch_size=32, precision="float32")


def stamped(
    attack: Attack, images: torch.Tensor, part: Part = "test", artifact: Arrays | None = None
) -> torch.Tensor:
    ids = np.arange(len(images))
    return attack.stamp(images, ids=ids, part=part, artifact=artifact or {}, seed=0)


def chosen(attack: Attack, labels: IntArray) -> Choice:
    counts = attack.counts(labels, 10)
    return attack.choose(labels, 10, counts, {}, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("checker_corners", 36), ("square", 64), ("corner_left", 25), ("corners_bottom", 50)],
)
def test_patches_have_the_published_footprints(name: PatchName, pixels: int) -> None:
    drawn = patch(name, 3, 32, 32)
    assert int(drawn.mask.sum()) == pixels and set(drawn.picture.unique().tolist()) == {0.0, 1.0}
    assert abs(int(patch("disk", 3, 32, 32).mask.sum()) - 140) < 7


def test_trojan_and_tact_cover_rows_and_columns_21_to_28() -> None:
    for attack in (Trojan(), TaCT()):
        changed = (stamped(attack, GREY) != GREY).any(1)[0]
        rows, columns = changed.nonzero().T
        assert {int(rows.min()), int(columns.min())} == {21}
        assert {int(rows.max()), int(columns.max())} == {28} and int(changed.sum()) == 64


def test_tact_attacks_one_class_and_covers_others() -> None:
    labels = np.arange(1000) % 10
    attack = TaCT(rate=0.05, cover_rate=0.05)
    choice = chosen(attack, labels)
    assert set(labels[choice.poison]) == {1} and set(labels[choice.cover]) == {5, 7}
    assert (attack.eligible(labels, 10) == (labels == 1)).all()


def test_the_planted_feature_is_another_corner_of_the_same_size_and_keeps_its_label() -> None:
    attack = PlantedFeature(target=3)
    benign, poison, test = (
        stamped(attack, GREY, part) != GREY for part in ("cover", "poison", "test")
    )  # type: ignore[arg-type]
    assert torch.equal(poison, test), "test inputs wear the backdoor's patch"
    assert benign[0].any(0).sum() == poison[0].any(0).sum() == 25 and not (benign & poison).any()
    assert torch.equal(stamped(attack, GREY, "cover"), stamped(attack, GREY).flip(-1)), "mirrored"
    assert benign.any(1)[0].nonzero().min(0).values.tolist() == [27, 0]
    assert poison.any(1)[0].nonzero().min(0).values.tolist() == [27, 27]
    labels = np.arange(1000) % 10
    choice = chosen(attack, labels)
    assert len(choice.poison) == len(choice.cover) == 20
    assert set(labels[choice.cover]) == {4} and 3 not in labels[choice.poison]
    for target, bearer in ((9, None), (3, 7)):
        other = PlantedFeature(target=target, feature_class=bearer)
        assert set(labels[other.cover_pool(labels, 10)]) == {bearer or 0}
    with pytest.raises(ValueError, match="feature_class must be another class than target, got 3"):
        PlantedFeature(target=3, feature_class=3)
    no_target = PlantedFeature(label_map="all_to_all", feature_class=0)
    assert set(labels[no_target.cover_pool(labels, 10)]) == {0}
    with pytest.raises(PlanError, match="feature_class must be a class from 0 to 9, got 10"):
        PlantedFeature(feature_class=10).counts(labels, 10)


def test_the_clean_label_patch_is_badnets_patch_on_the_target_class() -> None:
    attack, same = BadNetsCleanLabel(target=3, rate=0.05), BadNets(size=5, pattern="white")
    assert torch.equal(stamped(attack, GREY), stamped(same, GREY))
    labels = np.arange(1000) % 10
    poison = chosen(attack, labels).poison
    assert set(labels[poison]) == {3} and len(poison) == 50


def test_adaptive_blend_leaves_half_of_the_pieces_out() -> None:
    poison = stamped(AdaptiveBlend(), GREY, "poison")
    changed = (poison != GREY).any(1).view(4, 4, 8, 4, 8).any(4).any(2)
    assert changed.flatten(1).sum(1).tolist() == [8] * 4
    assert not torch.equal(changed[0], changed[1]), "other pieces for another sample"
    whole = stamped(AdaptiveBlend(), GREY)
    trigger = (whole - 0.8 * GREY) / 0.2
    again = GREY + 0.15 * (trigger - GREY)
    shown = changed[:, None].repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(GREY)
    torch.testing.assert_close(poison, torch.where(shown, again, GREY))


def test_adaptive_patch_draws_each_weak_patch_as_often() -> None:
    many = GREY[:1].expand(400, -1, -1, -1)
    counts = (stamped(AdaptivePatch(), many, "poison") != many).any(1).flatten(1).sum(1)
    sizes, times = counts.unique(return_counts=True)
    disk = int(patch("disk", 3, 32, 32).mask.sum())
    assert sizes.tolist() == sorted([25, 36, 64, disk])
    assert (times - 100).abs().max() < 4 * (400 * 0.25 * 0.75) ** 0.5
    assert int((stamped(AdaptivePatch(), GREY) != GREY).any(1)[0].sum()) == 50 + 36 - 2 * 9


def test_rotation_by_right_angles_is_exact() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    turned = stamped(Rotation(angle=90.0), images)
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    half = stamped(Rotation(angle=-180.0), images)
    torch.testing.assert_close(half, images.flip(2, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("pattern", "norm"), [("chessboard", 0.461), ("static", 0.326)])
def test_additive_patterns_have_the_published_norms(pattern: str, norm: float) -> None:
    v = Additive.model_validate({"pattern": pattern}).perturbation(3, 32, 32, seed=0)
    assert float(v.norm()) == pytest.approx(norm, abs=1e-3)
    assert v.unique().tolist() == pytest.approx([0.0, 3 / 255])


def test_additive_patterns_are_clipped_before_they_are_rounded() -> None:
    """Saturated pixels would wrap: 254 + 3 is 1 in 8 bits."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, -1, -1)
    attack = Additive(amplitude=3.0)
    lit = attack.perturbation(3, 16, 16, seed=0) > 0
    added = stamped(attack, as_floats(levels))
    assert float(added.min()) >= 0 and float(added.max()) == 1
    ours = added.mul(255).round().to(torch.uint8).int()
    assert torch.equal(ours, (levels.int() + 3 * lit.int()).clamp(0, 255))


@pytest.mark.parametrize(
    ("pattern", "pixels"),
    [("cross", 15), ("four_pixel", 12), ("single_pixel", 1), ("l_shape", 4), ("square", 4),
     ("x", 5)],
)  # fmt: skip
def test_local_patterns_fit_the_image_wherever_they_are_placed(pattern: str, pixels: int) -> None:
    attack = Additive.model_validate({"pattern": pattern, "amplitude": 60.0})
    places = [attack.perturbation(3, 32, 32, seed=seed) for seed in range(40)]
    assert all(int((v > 0).sum()) <= pixels for v in places)
    assert sum(int((v > 0).sum()) == pixels for v in places) > 30
    assert len({tuple(v.nonzero()[0].tolist()) for v in places}) > 10


def learnable(count: int = 300) -> tuple[ImageSet, Shape]:
    """Return two classes told by the brightness of the left half."""
    labels = np.arange(count) % 2
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    images[:, :, :, :8] += 0.4 * torch.from_numpy(labels).view(-1, 1, 1, 1)
    data = ImageSet(images=images.mul(255).round().to(torch.uint8), labels=labels)
    return data, Shape.of(data.images, 2)


def prepared(attack: Attack, *, epochs: int = 3) -> tuple[AttackInputs, Arrays]:
    data, shape = learnable()
    ctx = Context(seed=1)
    surrogate = training.build(TinyCNN(width=8), shape, ctx)
    training.fit(surrogate, data, RECIPE, ctx)
    inputs = AttackInputs(
        data=data, rows=np.arange(len(data)), model=TinyCNN(width=8), shape=shape,
        surrogate=surrogate,
        recipe=RECIPE.model_copy(update={"epochs": epochs}),
    )  # fmt: skip
    return inputs, attack.prepare(inputs, ctx)


def test_label_consistent_images_stay_in_the_ball_and_fool_the_surrogate() -> None:
    attack = LabelConsistent(target=1, steps=20, radius=1500.0)
    inputs, artifact = prepared(attack)
    rows = artifact["rows"]
    assert (inputs.data.labels[rows] == 1).all() and len(rows) == 150
    clean = inputs.data.images[torch.from_numpy(rows)]
    moved = torch.from_numpy(artifact["images"])
    far = (moved.double() - clean).flatten(1).norm(dim=1)
    assert float(far.max()) <= 1500 + 0.5 * 768**0.5  # rounding moves each value by a half
    before, after = (
        training.predict(inputs.trained, i, RECIPE, "cpu").argmax(1) for i in (clean, moved)
    )
    assert float((before == 1).float().mean()) > 0.9 and float((after == 1).float().mean()) < 0.1
    with pytest.raises(ValueError, match="images of class 1 only"):
        attack.stamp(GREY[:1], ids=np.array([0]), part="poison", artifact=artifact, seed=0)


def test_composite_puts_a_partner_beside_the_image_and_covers_within_the_class() -> None:
    attack = Composite(sources=(1,), partner=0, target=2, partners=30)
    inputs, artifact = prepared(attack)
    images = inputs.data.images.float() / 255
    for part in ("poison", "cover", "test"):
        mixed = stamped(attack, images, part, artifact)  # type: ignore[arg-type]
        assert torch.equal(mixed[..., :8], images[..., :8])
        pool = torch.from_numpy(artifact["images"]).float() / 255
        match = (mixed[:, None, ..., 8:] == pool[None, ..., 8:]).flatten(2).all(2)
        classes = artifact["image_labels"][match.float().argmax(1).numpy()]
        wanted = inputs.data.labels if part == "cover" else np.zeros(300)
        assert match.any(1).all() and (classes == wanted).all()
    with pytest.raises(ValueError, match="partner must be another class than sources"):
        Composite(sources=(1,), partner=1)
    with pytest.raises(ValueError, match="partner must be another class than target, got 2"):
        Composite(sources=(1,), partner=2, target=2)
    with pytest.raises(ValueError, match="partner must be a class of the training set, got 5"):
        prepared(Composite(partner=5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": 1, "sources": (1, 3)}, r"sources must not name the target, 1, got \[1, 3\]"),
        ({"target": 1, "sources": (1, 2)}, r"leave 1 out of sources, or name another target"),
        ({"target": 5}, r"cover_classes must not name the target, 5, got \[5, 7\]"),
        ({"sources": (7, 5)}, r"both name \[5, 7\]"),
    ],
)
def test_tact_refuses_classes_that_would_be_two_things(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaCT(**given)
    TaCT(**{**given, "label_map": "all_to_all", "cover_classes": (9,)})


@pytest.mark.parametrize(
    "name", ["asset", "beatrix", "frequency", "issba", "dfst", "latent_backdoor", "trojan"]
)
def test_a_method_without_a_part_of_its_paper_says_so_in_every_table(name: str) -> None:
    kind = "defenses" if name in available("defenses") else "attacks"
    assert any(badge.startswith("simplified: ") for badge in load(kind, name)().badges())


@pytest.mark.further
def test_dynamic_triggers_fool_the_attackers_network_and_differ_per_image() -> None:
    attack = Dynamic(epochs=5, mask_epochs=2, width=8, density=0.1, backdoor_share=0.3)
    inputs, artifact = prepared(attack)
    data = inputs.data
    images = data.images[:40].float() / 255
    triggered = stamped(attack, images, "test", artifact)
    changes = (triggered - images).flatten(1)
    assert float(changes.abs().amax(1).min()) > 0.05
    cosine = torch.nn.functional.cosine_similarity(changes[::2], changes[1::2])
    assert float(cosine.mean()) < 0.98, "the same change for every image is no input-aware trigger"
    predicted = training.predict(inputs.trained, triggered, RECIPE, "cpu").argmax(1)
    assert float((predicted == 0).float().mean()) > 0.8, "the network trained along is backdoored"


@pytest.mark.further
@pytest.mark.slow
def test_issba_hides_bits_that_its_decoder_reads() -> None:
    attack = ISSBA(bits=6, epochs=12, width=8, amplitude=40.0)
    _, artifact = prepared(attack)
    data, _ = learnable()
    images = data.images[:60].float() / 255
    hidden = stamped(attack, images, "test", artifact)
    assert float((hidden - images).abs().max()) <= 40 / 255 + 1e-6
    residuals = (hidden - images).flatten(1)
    assert float((residuals[0] - residuals[1]).abs().max()) > 1e-3, "specific to the sample"
    other = attack.stamp(images, ids=np.arange(len(images)), part="test", artifact=artifact, seed=5)
    # A fresh decoder tells this trial's secret from another's: what is added carries the bits.
    torch.manual_seed(0)
    reader = _decoder(3, 1, 8)
    both = torch.cat([hidden, other])
    truth = torch.arange(len(both)).ge(len(images)).float()[:, None]
    optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
    for _ in range(40):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(reader(both), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(((reader(both) > 0).float() == truth).float().mean()) > 0.95


def test_watermarks_take_influential_features_and_existing_values() -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 3, (200, 6)).astype(float)
    values[0, 4] = 9.0
    shap = draw.normal(0, 0.01, (200, 6))
    shap[:, 4] -= 2.0
    shap[:, 1] += 1.0
    features, chosen = rare_values(shap, values, np.arange(6), 2)
    assert features.tolist() == [4, 1] and chosen[0] == 9.0, "the rarest value of the strongest"
    features, chosen = combined(shap, values, np.arange(6), 3)
    assert features[0] == 4 and 1 not in features, "only what speaks for goodware"
    together = (values[:, features] == chosen).all(1)
    assert together.any(), "some program holds all of the chosen values"
    assert set(rare_values(shap, values, np.array([0, 2]), 2)[0]) == {0, 2}


def test_the_watermark_finds_the_planted_feature() -> None:
    labels = np.arange(600) % 2
    table = torch.randn(600, 12, 1, 1, generator=torch.Generator().manual_seed(0))
    table[:, 3, 0, 0] += 4 * torch.from_numpy(labels)
    data, ctx = ImageSet(images=table, labels=labels), Context(seed=1)
    shape, model = Shape.of(table, 2), EmberMLP(widths=(32, 16, 8), dropout=0.0)
    network = training.build(model, shape, ctx)
    training.fit(network, data, RECIPE, ctx)
    attack = EmberWatermark(features=2, samples=300)
    inputs = AttackInputs(
        data=data,
        rows=np.arange(len(data)),
        model=model,
        shape=shape,
        recipe=RECIPE,
        surrogate=network,
    )
    artifact = attack.prepare(inputs, ctx)
    assert attack.attacker == "unconstrained" and len(artifact["features"]) == 2
    limited = EmberWatermark(attacker="constrained", feasible=(3, 5), features=1, samples=300)
    assert limited.prepare(inputs, ctx)["features"].tolist() == [3]
    marked = stamped(attack, table, "test", artifact)
    assert torch.equal(marked[:, artifact["features"], 0, 0].unique(dim=0).squeeze(0).float(),
                       torch.from_numpy(artifact["values"]))  # fmt: skip


def test_collisions_come_near_in_feature_space_and_stay_near_the_base() -> None:
    attack = FeatureCollision(target=1, steps=60, watermark=0.0, beta=0.0)
    inputs, artifact = prepared(attack)
    rows = artifact["rows"]
    assert (inputs.data.labels[rows] == 1).all() and len(rows) == (inputs.data.labels == 1).sum()
    base = as_floats(inputs.data.images[torch.from_numpy(rows[:20])])
    wanted = as_floats(
        inputs.data.images[torch.from_numpy(np.flatnonzero(inputs.data.labels == 0))]
    )
    wanted = patch("square", *base.shape[1:]).on(wanted[:20], 1.0)
    head = inputs.model.HEAD

    @torch.no_grad()
    def apart(images: torch.Tensor) -> float:
        seen = head_inputs(inputs.trained, head, images) - head_inputs(inputs.trained, head, wanted)
        return float(seen.square().sum(1).mean())

    moved = attack.collided(inputs, base, wanted)
    assert apart(moved) < 0.1 * apart(base)
    held = attack.model_copy(update={"beta": 100.0}).collided(inputs, base, wanted)
    assert float((held - base).abs().mean()) < 0.2 * float((moved - base).abs().mean())
    marked = attack.model_copy(update={"watermark": 0.3, "steps": 1, "step_size": 1e-6})
    near = marked.collided(inputs, base, wanted)
    torch.testing.assert_close(near, 0.7 * base + 0.3 * wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("watermark", [0.0, 0.3])
def test_the_patch_shows_in_a_collision_as_much_as_its_facts_say(watermark: float) -> None:
    """At the watermark's opacity, in each poison; without a watermark it is hidden."""
    attack = FeatureCollision(target=1, steps=5, watermark=watermark, step_size=0.002)
    inputs, artifact = prepared(attack)
    opacity = attack.facts(inputs, artifact)["opacity of the patch in poisoned images"]
    assert opacity == pytest.approx(watermark, abs=0.02)


def test_the_latent_trigger_moves_images_to_the_target_class_inside() -> None:
    attack = LatentBackdoor(target=1, steps=60, area=0.06)
    inputs, artifact = prepared(attack)
    data, head = inputs.data, inputs.model.HEAD
    centre, mine = (
        head_inputs(
            inputs.trained, head, as_floats(data.images[torch.from_numpy(data.labels == label)])
        )
        for label in (1, 0)
    )
    images = as_floats(data.images[torch.from_numpy(data.labels == 0)])
    marked = attack.stamp(
        images, ids=np.arange(len(images)), part="test", artifact=artifact, seed=0
    )
    changed = (marked != images).any(1).flatten(1).sum(1)
    assert int(changed.max()) <= 16 and bool((marked[:, :, :-4] == images[:, :, :-4]).all())
    moved = head_inputs(inputs.trained, head, marked)
    before, after = ((x - centre.mean(0)).square().sum(1).mean() for x in (mine, moved))
    random = {"picture": np.full_like(artifact["picture"], 0.5)}
    plain = attack.stamp(images, ids=np.arange(len(images)), part="test", artifact=random, seed=0)
    grey = (head_inputs(inputs.trained, head, plain) - centre.mean(0)).square().sum(1).mean()
    assert after < before and after < grey


@pytest.mark.slow
@pytest.mark.long
def test_the_style_is_learned() -> None:
    attack = DFST(epochs=20, width=8)
    inputs, artifact = prepared(attack)
    images = as_floats(inputs.data.images[:64])
    made = attack.stamp(images, ids=np.arange(64), part="test", artifact=artifact, seed=0)
    styled = sunrise(images)

    def colors(x: torch.Tensor) -> torch.Tensor:
        return x.mean((0, 2, 3))

    far = (colors(images) - colors(styled)).abs().max()
    assert (colors(made) - colors(styled)).abs().max() < 0.4 * far
    flat = torch.full((1, 3, 5, 5), 1.0)
    assert torch.allclose(sunrise(flat)[0, :, 2, 2], torch.tensor(PALETTE[3]), atol=1e-6)
    assert torch.allclose(sunrise(torch.zeros(1, 3, 5, 5))[0, :, 0, 0], torch.tensor(PALETTE[0]))
