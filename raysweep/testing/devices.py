"""Methods on a GPU that is not there: nothing that CUDA refuses, and the CPU's values."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch

from raysweep import training
from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.datasets import ImageSet, Shape, as_floats
from raysweep.defenses import Decision, Defense
from raysweep.methods import Context, Method, Recipe
from raysweep.models import Model
from raysweep.models.ember_mlp import EmberMLP
from raysweep.testing import attacks, models, toy
from raysweep.testing.defenses import outputs
from raysweep.testing.pretend_cuda import pretended_cuda
from raysweep.training import graph, resident

RECIPE = Recipe(epochs=2, batch_size=40, learning_rate=0.05, precision="float32")
SCORED = 16  # images


def plain(value: Any) -> Any:
    """Return a value with every tensor copied to the CPU, as an array."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().float().numpy()
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def equal_on_both(work: Callable[[str], Any]) -> int:
    """Demand the same bytes of work on the CPU and on the device; return how often that waited.

    The CPU's turn is in such a block too: where tensors are wrapped, autograd takes other formulas
    for views that were changed in place, which round otherwise.
    """
    resident.forget()  # as between two stages
    with pretended_cuda() as none:
        wanted = plain(work("cpu"))
    with pretended_cuda() as counts:
        made = work("cuda")
        waited = counts.waits.total()
        found = plain(made)
    resident.forget()
    assert not none.waits and not none.launches
    np.testing.assert_equal(found, wanted)
    return waited


def waits(work: Callable[[], Any]) -> int:
    """Return the number of times that the host waits for the device."""
    with pretended_cuda() as counts:
        work()
    resident.forget()
    return counts.waits.total()


def replayed_as_eager(work: Callable[[bool], Any]) -> int:
    """Demand the same bytes of work whose steps are replayed from graphs and of eager work.

    Args:
        work: is told whether its contexts let steps be captured (`Context.captured`).

    Returns:
        How often a graph was replayed.
    """
    made: list[tuple[Any, int]] = []
    with patch.object(graph, "FEWEST_STEPS", 1):
        for captured in (False, True):
            resident.forget()
            with pretended_cuda(graphs=True) as counts:
                given = work(captured)
                made.append((plain(given), counts.launches["graph"]))
    resident.forget()
    (wanted, none), (found, replays) = made
    assert not none
    np.testing.assert_equal(found, wanted)
    return replays


def victim(model: Model, shape: Shape, case: toy.Toy, ctx: Context) -> torch.nn.Module:
    """Return the toy's victim on the device of the context; another model is untrained."""
    network = training.build(model, shape, ctx)
    if model == toy.MODEL:
        network.load_state_dict(case.weights)
    return network.eval()


def attacked(attack: Attack, case: toy.Toy, device: str, *, captured: bool = True) -> Any:
    """Return the arrays that an attack prepares for the toy, and a few inputs, stamped."""
    ctx = Context(seed=3, device=device, captured=captured)
    data, shape = case.train, toy.SHAPE
    model: Model = toy.MODEL
    if "images" not in attack.DOMAINS:
        vectors = (data.images.float() / 255).flatten(1)[:, :, None, None]
        size, model = vectors.shape[1], EmberMLP(widths=(16, 8, 8))
        data = ImageSet(images=vectors, labels=data.labels)
        shape = Shape(
            channels=size, height=1, width=1, num_classes=toy.CLASSES,
            mean=(0.5,) * size, std=(0.3,) * size,
        )  # fmt: skip
    ids, made = np.arange(24), {}
    given: dict[str, Any] = {}
    if attack.SURROGATE:
        given = {"surrogate": victim(model, shape, case, ctx)}
    elif attack.EVADES:
        given = {
            "victim": victim(model, shape, case, ctx), "test": data.take(ids), "test_rows": ids,
        }  # fmt: skip
    if attack.PREPARES:
        rows = np.arange(len(data))
        inputs = AttackInputs(
            data=data, rows=rows, model=model, shape=shape, recipe=RECIPE, **given
        )
        made = dict(attack.prepare(inputs, ctx))
    images = as_floats(data.images).to(device)
    poisoned = np.flatnonzero(attack.pool(data.labels, toy.CLASSES))[:24]
    parts: dict[Part, Any] = {"poison": poisoned, "cover": ids, "test": ids}
    stamped = [
        attack.stamp(images[torch.from_numpy(rows)], ids=rows, part=part, artifact=made, seed=7)
        for part, rows in parts.items()
    ]
    return made, stamped


def defended(
    defense: Defense, case: toy.Toy, device: str, scored: int = SCORED, *, captured: bool = True
) -> Any:
    """Return all that a defense gives on the toy; a repair is of the true class and samples."""
    ctx = Context(seed=5, device=device, captured=captured)

    def inputs(**more: Any) -> Any:
        if "victim" in defense.needs():
            more["victim"] = victim(toy.MODEL, toy.SHAPE, case, ctx)
        return toy.inputs(defense, case, **more)

    shards = [dict(defense.shard(part, inputs(), ctx)) for part in defense.parts(toy.CLASSES)]
    findings = defense.run(inputs(shards=shards), ctx)
    found: dict[str, Any] = {
        "numbers": outputs(dataclasses.replace(findings, model=None)),
        "model": findings.model,
    }
    if findings.score_inputs is not None:
        images = as_floats(case.test.images[:scored])
        found["scores"] = findings.score_inputs(images, np.arange(scored))
    if defense.REPAIRS:
        scores = np.eye(toy.CLASSES)[toy.TARGET]
        decision = Decision(classes=(toy.TARGET,), class_scores=scores, flags=case.mask)
        given = inputs(shards=shards, found=dict(findings.kept), decision=decision)
        found["repaired"] = defense.repair(given, ctx)
    return found


def trained(model: Model, device: str, *, captured: bool = True) -> Any:
    """Return the losses and weights of an epoch, on the smallest images that suit a model."""
    vectors = "images" not in model.DOMAINS
    size = next(
        size for size in models.SIZES if (size[1] == 1) == vectors and models.suits(model, size)
    )
    images = torch.rand(4, *size, generator=torch.Generator().manual_seed(1))
    data = ImageSet(images=images, labels=np.arange(4))
    ctx = Context(seed=1, device=device, captured=captured)
    network = training.build(model, models.shape(*size), ctx)
    losses = training.fit(network, data, RECIPE.model_copy(update={"epochs": 1}), ctx)
    return losses, network.state_dict()


class DeviceContract:
    """A test that an attack, a defense or a model inherits: it computes on a GPU as on the CPU.

    No GPU is needed: tensors "on CUDA" wrap tensors of the CPU and are refused what CUDA refuses,
    such as an operand on another device, or in a graph whatever makes the host wait.

    Attributes:
        method: the class of the method.
    """

    method: ClassVar[type[Method]]

    @pytest.fixture
    def kind(self) -> type[Method]:
        """The method's class."""
        return self.method

    def _work(self, kind: type[Method]) -> Callable[..., Any]:
        """Return the work of the method, to be given the device."""
        if issubclass(kind, Attack):
            attack = attacks.make(kind, target=toy.TARGET, sources=None)
            return functools.partial(attacked, attack, toy.toy())
        if issubclass(kind, Defense):
            return functools.partial(defended, kind.model_validate(dict(kind.TOY)), toy.toy())
        if issubclass(kind, Model):
            return functools.partial(trained, models.make(kind))
        pytest.skip("a dataset computes nothing")

    def test_equals_itself_on_the_cpu(self, kind: type[Method]) -> None:
        """The same bytes come of both devices, on the toy."""
        equal_on_both(self._work(kind))

    def test_a_replayed_step_equals_an_eager_one(self, kind: type[Method]) -> None:
        """Steps of trainings that a GPU replays from a graph give the bytes of eager ones."""
        work = self._work(kind)
        replayed_as_eager(lambda captured: work("cuda", captured=captured))
