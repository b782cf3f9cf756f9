"""Repairs: that they keep the clean task, and that they did what they are there for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from raysweep.defenses import Decision, nad
from raysweep.defenses._layers import map_layers
from raysweep.defenses.fine_pruning import FinePruning
from raysweep.defenses.nad import NAD, Attention, _with_maps, attention
from raysweep.defenses.neural_cleanse import NeuralCleanse
from raysweep.methods.context import Context
from raysweep.testing import toy


def test_pruned_channels_are_zero_in_every_step_of_the_fine_tuning() -> None:
    case, method = toy.toy(), FinePruning(epochs=4, batch_size=16)
    victim, seen = toy.network(case.weights), []

    def watch(layer: nn.Module, given: object) -> None:
        if layer.training:
            seen.append(layer.weight.detach().clone())  # type: ignore[operator]

    victim.get_submodule(toy.MODEL.HEAD).register_forward_pre_hook(watch)
    found = method.run(toy.inputs(method, case, victim=victim), Context(seed=5))
    pruned = torch.from_numpy(found.statistics["pruned"])
    assert found.model is not None and len(pruned) > 0
    assert (case.weights["head.weight"][:, pruned] != 0).any()
    # The first step sees what pruning left; several steps an epoch, so that one may regrow.
    steps = [*seen, found.model["head.weight"]]
    assert len(seen) > 4 and not torch.equal(steps[0], steps[-1])
    assert all((weight[:, pruned] == 0).all() for weight in steps)
    assert toy.accuracy(found.model, case) > 0.85


def apart(student: dict[str, torch.Tensor], teacher: nn.Module, case: toy.Toy) -> float:
    """Return the mean squared distance of attention maps on test images, over all layers."""
    layers = map_layers(toy.inputs(NAD(), case), Context(seed=0))
    images = case.test.images.float() / 255
    with torch.no_grad():
        one, other = (_with_maps(n, layers, images)[1] for n in (toy.network(student), teacher))
        pairs = zip(one, other, strict=True)
        return float(sum((attention(a, 2) - attention(b, 2)).square().mean() for a, b in pairs))


def test_distillation_brings_the_students_attention_to_the_teachers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nearer than the same training without the attention's loss, which is fine-tuning, does.

    With a small weight; at the default of 1,000 and this network's size the distance grows.
    """
    case, teachers = toy.toy(), []

    class Kept(Attention):
        def __init__(self, teacher: nn.Module, *rest: object) -> None:
            teachers.append(copy.deepcopy(teacher).eval())
            super().__init__(teacher, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(nad, "Attention", Kept)
    distances = []
    for beta in (100.0, 0.0):
        method = NAD(epochs=12, teacher_epochs=6, learning_rate=0.01, beta=beta)
        found = toy.found(method, case).model
        assert found is not None and toy.accuracy(found, case) > 0.85
        distances.append(apart(found, teachers[-1], case))
    one, other = (teacher.state_dict() for teacher in teachers)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert distances[0] < 0.6 * distances[1]


def test_distillation_forgets_the_trigger_that_fine_tuning_keeps() -> None:
    case = toy.toy()
    distilled, plain = (toy.found(NAD(epochs=40, beta=beta), case).model for beta in (1000.0, 0.0))
    assert distilled is not None and plain is not None
    assert toy.asr(distilled, case) < 0.6 < 0.95 < toy.asr(plain, case)
    assert toy.accuracy(distilled, case) > 0.85


def test_unlearning_is_by_sgd_whatever_trained_the_victim() -> None:
    case = toy.toy()
    method = NeuralCleanse(unlearning_epochs=2)
    masks = np.zeros((toy.CLASSES, toy.SIDE, toy.SIDE), np.float32)
    masks[:, -3:, -3:] = 1
    found = {"masks": masks, "patterns": np.ones_like(masks)[:, None]}
    decision = Decision(classes=(toy.TARGET,), class_scores=np.eye(toy.CLASSES)[toy.TARGET])
    repaired = []
    for optimizer in ("sgd", "adam"):
        recipe = toy.RECIPE.model_copy(update={"optimizer": optimizer})
        seen = toy.inputs(method, case, found=found, decision=decision, recipe=recipe)
        repaired.append(method.repair(seen, Context(seed=5)))
    assert all(torch.equal(repaired[0][name], repaired[1][name]) for name in repaired[0])
    assert not torch.equal(repaired[0]["head.weight"], case.weights["head.weight"])
