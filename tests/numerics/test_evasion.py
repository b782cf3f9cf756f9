"""Adversarial examples against closed forms, and measured beside a backdoor in one sweep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from raysweep import training
from raysweep.attacks import Attack, AttackInputs, _evasion
from raysweep.attacks.badnets import BadNets
from raysweep.attacks.carlini_wagner import CarliniWagner
from raysweep.attacks.label_consistent import LabelConsistent
from raysweep.attacks.pgd import PGD
from raysweep.datasets import ImageSet, Shape
from raysweep.datasets.digits import Digits
from raysweep.defenses.kernel_density import KernelDensity
from raysweep.defenses.matched_filter import MatchedFilter
from raysweep.defenses.none import NoDefense
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.errors import PlanError
from raysweep.jobs.launch import launch
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.plan.planner import Planner
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.spec import Sweep
from raysweep.sweep.tuning import Tune
from raysweep.testing.toy import CLASSES, MODEL, RECIPE, SHAPE, network, toy
from raysweep.tuning.folds import _takes_part
from raysweep.tuning.stored import stored_findings

LINEAR = Shape(channels=3, height=8, width=8, num_classes=2, mean=(0.0,) * 3, std=(1.0,) * 3)
PIXELS = 3 * 8 * 8
ONE: dict[str, Any] = {"constant": 10.0, "searches": 1}  # a constant that is not searched


def linear(scale: float, bias: float) -> tuple[nn.Module, torch.Tensor]:
    """Return logits (0, w x + b) of two classes, and w as an image."""
    weights = torch.randn(PIXELS, generator=torch.Generator().manual_seed(3)) * scale
    net = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([torch.zeros(PIXELS), weights]))
        net[1].bias.copy_(torch.tensor([0.0, bias]))
    return net.eval(), weights.view(3, 8, 8)


def shown(count: int, low: int, high: int) -> torch.Tensor:
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(low, high + 1, (count, 3, 8, 8)).astype(np.uint8))


def given(
    net: nn.Module, images: torch.Tensor, labels: np.ndarray, rows: np.ndarray, shape: Shape,
    recipe: Recipe = RECIPE,
) -> AttackInputs:  # fmt: skip
    test = ImageSet(images=images, labels=labels)
    return AttackInputs(
        data=test, rows=rows, model=MODEL, shape=shape, recipe=recipe,
        victim=net, test=test, test_rows=rows,
    )  # fmt: skip


def made(
    attack: Attack, net: nn.Module, images: torch.Tensor, labels: np.ndarray | None = None
) -> np.ndarray:
    """Return what an attack makes of images that a linear network is to call class 1."""
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    inputs = given(net, images, labels, np.arange(len(images)), LINEAR)
    return np.array(attack.prepare(inputs, Context(seed=1))["test_images"])


def on_toy(attack: Attack, kept: np.ndarray | None = None, recipe: Recipe = RECIPE) -> np.ndarray:
    """Return what an attack makes of the toy's test images, or of some of them in some order."""
    case = toy(0.0)
    rows = np.arange(len(case.test)) if kept is None else kept
    test = case.test.take(rows)
    inputs = given(network(case.weights), test.images, test.labels, 3 * rows, SHAPE, recipe)
    return np.array(attack.prepare(inputs, Context(seed=1))["test_images"])


def success(attack: Attack, images: np.ndarray, recipe: Recipe = RECIPE) -> float:
    case = toy(0.0)
    logits = training.predict(network(case.weights), torch.from_numpy(images), recipe, "cpu")
    hit = logits.argmax(1).numpy() == attack.relabel(case.test.labels, CLASSES)
    return float(hit[attack.eligible(case.test.labels, CLASSES)].mean())


def norms(images: np.ndarray, before: torch.Tensor) -> np.ndarray:
    change = (images.astype(float) - before.numpy()) / 255
    return np.sqrt(np.square(change).reshape(len(change), -1).sum(1))


# Closed forms


@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_ends_in_the_corner_of_the_box_on_a_linear_model(random_start: bool) -> None:
    net, weights = linear(0.05, 0.0)
    images = shown(30, 0, 255)
    labels = np.arange(30) % 3 // 2  # every third image has the wanted label
    attack = PGD(target=1, epsilon=9, step_size=2, steps=10, random_start=random_start)
    corner = (images.int() + 9 * weights.sign().int()).clamp(0, 255).to(torch.uint8).numpy()
    expected = np.where((labels == 1)[:, None, None, None], images.numpy(), corner)
    assert np.array_equal(made(attack, net, images, labels), expected)
    assert (expected != corner).any() and (corner == 255).any() and (corner == 0).any()


def test_pgd_takes_one_step_of_its_size_from_a_start_that_fills_the_ball() -> None:
    net, weights = linear(0.05, 0.0)
    images = shown(30, 100, 150)
    one = made(PGD(target=1, step_size=3, steps=1, random_start=False), net, images).astype(int)
    assert (one - images.numpy() == 3 * weights.sign().int().numpy()).all()
    still = PGD(target=1, epsilon=20, step_size=0.01, steps=1)
    start = made(still, net, images).astype(int) - images.numpy()
    assert set(np.unique(start)) == set(range(-20, 21))
    assert abs(start.mean()) < 0.5 and start.std() == pytest.approx(40 / 12**0.5, rel=0.05)
    assert (start[0] != start[1]).mean() > 0.9, "each image has a start of its own"


@pytest.mark.further
@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_carlini_wagner_finds_the_nearest_point_on_a_linear_model(kappa: float) -> None:
    images = shown(2, 80, 170)
    _, weights = linear(0.3, 0.0)
    direction = weights.double().numpy().ravel()
    attack = CarliniWagner(target=1, kappa=kappa, steps=400, **ONE)
    found = {}
    for margin in (2.0, 4.0):
        ends = []
        for image in images.split(1):
            # A bias of its own for each, so that its margin is the one that is wanted.
            bias = -margin - float((image[0] / 255 * weights).sum())
            net, _ = linear(0.3, bias)
            ends.append(made(attack, net, image)[0])
            reached = net(torch.from_numpy(ends[-1][None]).float() / 255)[0].detach()
            assert float(reached[1] - reached[0]) > kappa, "after rounding to 8 bits"
        change = (np.stack(ends).astype(float) - images.numpy()).reshape(2, -1) / 255
        lengths = np.linalg.norm(change, axis=1)
        nearest = (margin + kappa) / np.linalg.norm(direction)
        assert (lengths > 0.999 * nearest).all() and (lengths < 1.02 * nearest).all()
        cosines = change @ direction / lengths / np.linalg.norm(direction)
        assert (cosines > 0.99).all()
        found[margin] = lengths
    assert (found[2.0] < found[4.0]).all()


@pytest.mark.further
def test_a_constant_that_is_too_small_is_raised_and_one_too_large_lowered() -> None:
    net, weights = linear(0.3, -12.0)
    images = shown(6, 80, 170)
    margins = 12 - (images / 255 * weights).flatten(1).sum(1).numpy()
    nearest = margins / float(weights.norm())
    short: dict[str, Any] = {"target": 1, "steps": 60, "learning_rate": 0.1}
    alone = made(CarliniWagner(constant=1e-2, searches=1, **short), net, images)
    assert np.array_equal(alone, images.numpy()), "without a success an image stays as it is"
    large = made(CarliniWagner(constant=100, searches=1, **short), net, images)
    assert (norms(large, images) > 1.3 * nearest).all()
    for constant in (1e-2, 100):
        searched = made(CarliniWagner(constant=constant, searches=12, **short), net, images)
        lengths = norms(searched, images)
        assert (lengths > 0.999 * nearest).all() and (lengths < 1.05 * nearest).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_success_is_one_in_the_precision_of_the_victims_predictions(precision: Any) -> None:
    net, _ = linear(0.3, -12.0)
    with torch.no_grad():  # where bfloat16 has steps of 0.5
        net[1].bias += 100  # type: ignore[index,operator]
    recipe, images = RECIPE.model_copy(update={"precision": precision}), shown(40, 80, 170)
    inputs = given(net, images, np.zeros(40, np.int64), np.arange(40), LINEAR, recipe)
    attack = CarliniWagner(target=1, steps=80, learning_rate=0.02, **ONE)
    ends = torch.from_numpy(np.array(attack.prepare(inputs, Context(seed=1))["test_images"]))
    assert (training.predict(net, images, recipe, "cpu").argmax(1) == 0).all()
    assert (training.predict(net, ends, recipe, "cpu").argmax(1) == 1).all()


@pytest.mark.further
def test_the_constants_of_the_authors_come_nearer_than_one_that_is_not_searched() -> None:
    """The facts tell it: nine constants in the authors' way, and one of the framework's."""
    net, weights = linear(0.3, -12.0)
    images = shown(6, 80, 170)
    nearest = (12 - (images / 255 * weights).flatten(1).sum(1).numpy()) / float(weights.norm())
    framework = CarliniWagner(target=1, steps=100, learning_rate=0.5, **ONE)
    found = {a: made(a, net, images) for a in (CarliniWagner(target=1, steps=100), framework)}
    own, fixed = (norms(ends, images) / nearest for ends in found.values())
    assert (own > 0.999).all() and np.median(own) < 1.12 < 1.2 < np.median(fixed)
    for attack, ends in found.items():
        inputs = given(net, images, np.zeros(6, np.int64), np.arange(6), LINEAR)
        facts = attack.facts(inputs, {"test_images": ends})
        reached = facts["median L2 norm of adversarial changes"]
        assert reached == pytest.approx(np.median(norms(ends, images)), rel=1e-5)


def test_norms_are_of_the_inputs_that_were_changed() -> None:
    """Of four inputs that the ASR counts, one stays as it is; the fifth has the wanted label."""
    net, _ = linear(0.3, 0.0)
    images = torch.full((5, 3, 8, 8), 100, dtype=torch.uint8)
    inputs = given(net, images, np.array([0, 0, 0, 0, 1]), np.arange(5), LINEAR)
    ends = images.numpy().copy()
    ends[0, 0, 0, 0] += 51
    ends[1, 0, 0, :4] -= 51
    ends[2, 0, :4, :4] += 51
    assert PGD(target=1).facts(inputs, {"test_images": ends}) == pytest.approx({
        "median L2 norm of adversarial changes": 0.4,
        "median Linf norm of adversarial changes": 0.2,
        "share of inputs without an adversarial change": 0.25,
    })  # fmt: skip
    still = PGD(target=1).facts(inputs, {"test_images": images.numpy()})
    assert still == {"share of inputs without an adversarial change": 1.0}


# On a network that was trained


@pytest.mark.parametrize("epsilon", [3, 40])
def test_the_budget_holds_after_rounding_and_is_used(epsilon: int) -> None:
    attack = PGD(target=1, epsilon=epsilon, step_size=epsilon / 7, steps=20)
    change = np.abs(on_toy(attack).astype(int) - toy(0.0).test.images.numpy())
    per_image = change.reshape(len(change), -1).max(1)
    wanted = toy(0.0).test.labels == 1
    assert (per_image[~wanted] == epsilon).all() and (per_image[wanted] == 0).all()


@pytest.mark.parametrize(
    "attack",
    [PGD(target=1, epsilon=20), CarliniWagner(target=1, steps=20, learning_rate=0.5, **ONE)],
    ids=["pgd", "carlini_wagner"],
)
def test_neither_batches_nor_order_matter(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = on_toy(attack)
    monkeypatch.setattr(_evasion, "BATCH", 7)
    order = np.random.default_rng(0).permutation(len(whole))[:40]
    some = on_toy(attack, order)
    # Sums in another order may move a pixel whose gradient is nearly zero.
    assert (some != whole[order]).mean() < 0.001
    shift = np.abs(some.astype(int) - whole[order])
    assert shift.mean() < 0.01


@pytest.mark.further
@pytest.mark.parametrize("label_map", ["all_to_one", "all_to_all"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_the_victim_is_shown_succeeds(label_map: Any, precision: Any) -> None:
    recipe = RECIPE.model_copy(update={"precision": precision})
    near = CarliniWagner(target=1, label_map=label_map, steps=60, learning_rate=0.05, **ONE)
    ends = on_toy(near, recipe=recipe)
    assert success(near, ends, recipe) > 0.98, "after rounding, in the victim's own precision"
    box = PGD(target=1, label_map=label_map, epsilon=60, step_size=4, steps=40)
    boxed = on_toy(box, recipe=recipe)
    assert success(box, boxed, recipe) > 0.9
    before, eligible = toy(0.0).test.images, near.eligible(toy(0.0).test.labels, CLASSES)
    assert norms(ends, before)[eligible].mean() < 0.7 * norms(boxed, before)[eligible].mean()
    assert success(near, before.numpy(), recipe) < 0.02


@pytest.mark.parametrize(
    "attack", [PGD(), CarliniWagner(steps=3, **ONE)], ids=["pgd", "carlini_wagner"]
)
@pytest.mark.parametrize("mode", [True, False])
def test_the_victim_is_left_as_it_was(
    attack: Attack, mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = toy(0.0)
    net = network(case.weights).train(mode)
    first = next(net.parameters()).requires_grad_(False)
    inputs = given(net, case.test.images, case.test.labels, np.arange(len(case.test)), SHAPE)

    def as_it_was() -> bool:
        kept = all(torch.equal(value, case.weights[n]) for n, value in net.state_dict().items())
        gradients = [p.requires_grad for p in net.parameters()]
        untouched = all(p.grad is None for p in net.parameters())
        return (
            kept and untouched and net.training is mode
            and not first.requires_grad and all(gradients[1:])
        )  # fmt: skip

    attack.prepare(inputs, Context(seed=1))
    assert as_it_was()

    def fail(self: Attack, net: nn.Module, *args: Any, **options: Any) -> Any:
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        raise RuntimeError("in the middle")

    monkeypatch.setattr(type(attack), "perturbed", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        attack.prepare(inputs, Context(seed=1))
    assert as_it_was()


# In a sweep

SWEEP = """
name: both
dataset: {digits: {size: 600, clean_size: 150}}
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 6, batch_size: 64}
attacks:
  - none
  - badnets: {rate: [0.0, 0.1]}
  - pgd: {epsilon: 64, step_size: 4, steps: 30}
  - carlini_wagner: {steps: 30, learning_rate: 0.1, constant: 10.0, searches: 1}
defenses:
  - none
  - model_mutation: {mutants: 20}
  - model_mutation: {mutants: 20, sign: adversarial}
  - kernel_density
  - lid
  - activation_sequence
  - spectral_signatures
  - neural_cleanse: {steps: 12}
seeds: 1
track: {wandb: disabled}
"""
DETECTORS = ["activation_sequence", "kernel_density", "lid", "model_mutation"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Store, pd.DataFrame]:
    """The sweep, run inline."""
    file = tmp_path_factory.mktemp("both") / "both.yaml"
    file.write_text(SWEEP)
    sweep, store = load_sweep(file), file.parent / "store"
    rows = launch(sweep, SWEEP, str(store), inline=True).rows
    assert (rows["status"] == "ok").all(), rows[["status", "error"]]
    return sweep, Store(str(store)), rows


def test_the_victim_is_the_clean_model_and_is_trained_once(swept: Any) -> None:
    _, store, rows = swept
    clean = rows[rows["rate"] == 0]
    assert set(clean["attack_name"]) == {"none", "badnets", "pgd", "carlini_wagner"}
    assert clean["key_victim"].nunique() == 1 and rows["key_victim"].nunique() == 2
    # Without spectral signatures' retraining, the clean model and the poisoned one are all.
    plain = rows[rows["defense_name"] == "none"]
    alone = {*plain["key_victim"], *plain["key_model"]}
    filtered = {*rows[rows["defense_name"] == "spectral_signatures"]["key_model"]}
    trained = {key for key in store.done() if key.startswith("train-")}
    assert len(alone) == 2 and trained == alone | filtered
    evading = rows[rows["evades"] & (rows["defense_name"] == "none")]
    assert (evading["asr"] > 0.9).all() and (evading["poison_count"] == 0).all()
    assert evading["ca"].nunique() == 1 and evading["ca"].iloc[0] > 0.9
    floor = plain.set_index(["attack_name", "rate"])["asr"]["badnets", 0.0]
    assert floor < 0.3, "the trigger says nothing to the clean model"


def test_a_record_holds_the_norms_that_were_reached(swept: Any) -> None:
    _, _, rows = swept
    norms_of = rows.groupby("attack_name")["found.median L2 norm of adversarial changes"]
    assert norms_of.count().to_dict() == {"badnets": 0, "none": 0, "pgd": 8, "carlini_wagner": 8}
    assert 0 < norms_of.first()["carlini_wagner"] < norms_of.first()["pgd"]


# Least AUROC of each detector; of model mutation with the sign that the inputs call for, which is
# the backdoors' for PGD too, whose steps go on into the wanted class.
LEAST = {
    "badnets": {"model_mutation": 0.55, "kernel_density": 0.9, "lid": 0.9,
                "activation_sequence": 0.7},
    # Strong steps look alike in every layer: activation_sequence has .26 to .51 on eight seeds.
    "pgd": {"model_mutation": 0.6, "kernel_density": 0.85, "lid": 0.55},
    "carlini_wagner": {"model_mutation": 0.9, "kernel_density": 0.85, "lid": 0.55,
                       "activation_sequence": 0.7},
}  # fmt: skip


@pytest.mark.parametrize("attack", LEAST)
def test_detectors_are_measured_on_both_kinds_of_inputs(swept: Any, attack: str) -> None:
    _, _, rows = swept
    mine = rows[(rows["attack_name"] == attack) & (rows["defense_name"].isin(DETECTORS))]
    assert (mine["input_tpr_n"] == mine["asr_n"]).all()
    strongest = mine[mine["rate"] == mine["rate"].max()].set_index("defense_name")
    signs = strongest.loc["model_mutation"].set_index("defense.sign")["input_auroc"]
    assert signs["adversarial"] == pytest.approx(1 - signs["backdoor"], abs=1e-6)
    sign = "adversarial" if attack == "carlini_wagner" else "backdoor"
    found = {**strongest["input_auroc"], "model_mutation": signs[sign]}
    assert found.keys() == set(DETECTORS)
    assert all(found[name] > least for name, least in LEAST[attack].items()), found
    assert (strongest["input_fpr"] < 0.2).all()
    # Sequences of few layers tie, and the threshold lies above all that tie: FPR 0 is one answer.
    assert (strongest["input_fpr"].drop("activation_sequence") > 0).all()


def test_a_trigger_that_was_never_learned_is_nearly_chance(swept: Any) -> None:
    _, _, rows = swept
    mine = rows[(rows["attack_name"] == "badnets") & (rows["rate"] == 0)]
    found = mine[mine["defense_name"].isin(DETECTORS)]["input_auroc"]
    assert len(found) == 5 and found.between(0.25, 0.75).all()


def test_there_is_no_backdoor_to_be_found(swept: Any) -> None:
    sweep, store, rows = swept
    inspected = rows[rows["defense_name"] == "neural_cleanse"].set_index(["attack_name", "rate"])
    for attack in ("pgd", "carlini_wagner"):
        one, clean = inspected.loc[(attack, 0.0)], inspected.loc[("none", 0.0)]
        assert one["verdict_correct"] == (not one["verdict"])
        assert one["verdict"] == clean["verdict"] and pd.isna(one["target_found"])
        filtered = rows[(rows["attack_name"] == attack)
                        & (rows["defense_name"] == "spectral_signatures")].iloc[0]  # fmt: skip
        assert filtered["tpr_n"] == 0 and pd.isna(filtered["auroc"]) and filtered["fpr"] > 0
    assert not pd.isna(inspected.loc[("badnets", 0.1)]["target_found"])
    planner = Planner(sweep)
    evading = [t for t in planner.trials if t.attack.EVADES]
    positives = {t.defense.name for t in evading if _takes_part(t, Tune())}
    assert positives == set(DETECTORS), "a filter has nothing to find, and is not tuned on it"
    trial = next(t for t in evading if t.defense == KernelDensity() and t.attack.name == "pgd")
    replayed = stored_findings(planner, store, trial)
    recorded = rows[(rows["attack_name"] == "pgd") & (rows["defense_name"] == "kernel_density")]
    assert replayed.ranks["auroc"] == pytest.approx(float(recorded["input_auroc"].iloc[0]))


def planned(attack: Attack, *defenses: Any) -> Planner:
    return Planner(
        Sweep.model_validate(
            {"name": "t", "dataset": Digits(), "model": TinyCNN(), "attacks": [attack],
             "defenses": defenses or [NoDefense()], "seeds": 1}
        )
    )  # fmt: skip


def test_the_plan_gives_the_victim_to_those_that_evade_and_a_surrogate_to_others() -> None:
    def inputs(attack: Attack) -> tuple[Planner, dict[str, str], str]:
        planner = planned(attack)
        (trial,) = planner.trials
        setting = planner.setting(trial)
        return planner, dict(planner.stages[setting.stamp["artifact"]].inputs), setting.victim

    for attack in (PGD(), CarliniWagner()):
        planner, roles, victim = inputs(attack)
        assert roles.keys() == {"data", "victim"} and roles["victim"] == victim
        assert sum(key.startswith("train-") for key in planner.stages) == 1
        assert planner.setting(planner.trials[0]).poison is None
    _, roles, victim = inputs(LabelConsistent(rate=0.01))
    assert roles.keys() == {"data", "surrogate"} and roles["surrogate"] != victim


def test_an_oracle_of_the_trigger_is_refused_where_there_is_none() -> None:
    planner = planned(PGD(), MatchedFilter(), SpectralSignatures())
    refused, allowed = planner.trials
    said = "matched_filter works on the trigger, but attack pgd has none; exclude this combination"
    with pytest.raises(PlanError, match=said):
        planner.route(refused, {})
    assert planner.route(allowed, {}).waiting
    given_one = planned(BadNets(), MatchedFilter())
    assert given_one.route(given_one.trials[0], {}).waiting
