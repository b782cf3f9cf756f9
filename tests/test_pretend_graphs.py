"""Captured steps on the pretended device: a graph's rules, and eager training's bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raysweep import training
from raysweep.datasets import ImageSet
from raysweep.defenses.neural_cleanse import NeuralCleanse
from raysweep.methods.checkpoints import Checkpoints
from raysweep.methods.context import Context
from raysweep.methods.recipe import Augmentation, Recipe
from raysweep.models.tiny_groupnorm import TinyGroupNorm
from raysweep.store.manifest import pack, unpack
from raysweep.testing import toy
from raysweep.testing.devices import RECIPE, defended, replayed_as_eager, victim
from raysweep.testing.pretend_cuda import pretended_cuda
from raysweep.training import Batch, Stream, ensemble
from raysweep.training.ensemble import Way
from tests.contracts.test_devices import SIZES, case, defense_of, small

Work = Callable[[], Any]


def captured(work: Work, *generators: torch.Generator) -> tuple[torch.cuda.CUDAGraph, Any]:
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        out = work()
    return graph, out


def ones() -> torch.Tensor:
    return torch.ones(3, device="cuda")


REFUSED: dict[str, Callable[[torch.Tensor], Any]] = {
    "a number that is read": lambda x: x.sum().item(),
    "a condition": lambda x: bool(x[0] > 0),
    "a mask": lambda x: x[x > 0],
    "places": lambda x: x.nonzero(),
    "a copy to the device": lambda x: x + torch.ones(3).to("cuda"),
    "a copy from the device": lambda x: x.cpu(),
    "a list": lambda x: x.tolist(),
    "numbers of a list": lambda x: x * torch.tensor([1.0, 2.0, 3.0], device="cuda"),
    "a wait": lambda x: torch.cuda.synchronize(),
    "draws that are not registered": lambda x: torch.rand(
        3, device="cuda", generator=torch.Generator("cuda")
    ),
    "a capture inside": lambda x: captured(lambda: x + 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_capture_refuses(name: str) -> None:
    with pytest.raises(RuntimeError), pretended_cuda(graphs=True):
        x = ones()
        captured(lambda: REFUSED[name](x))


def test_a_capture_does_nothing_and_a_replay_reads_what_is_there() -> None:
    with pretended_cuda(graphs=True) as counts:
        x, y = ones(), ones()

        def work() -> torch.Tensor:
            y.add_(x)
            return (y * 2).reshape(3, 1)[:, 0]

        graph, out = captured(work)
        assert y.tolist() == [1, 1, 1] and out.isnan().all()
        graph.replay()
        assert y.tolist() == [2, 2, 2] and out.tolist() == [4, 4, 4]
        x.fill_(3)
        graph.replay()
        assert y.tolist() == [5, 5, 5] and out.tolist() == [10, 10, 10]
        assert counts.launches["graph"] == 2


def test_numbers_of_the_host_stay_as_they_were() -> None:
    with pretended_cuda(graphs=True):
        x, number, tensor = ones(), [1.0], torch.tensor(1.0)
        graph, out = captured(lambda: x * number[0] * tensor)
        number[0], _ = 5.0, tensor.fill_(5.0)
        graph.replay()
        assert out.tolist() == [1, 1, 1]


def test_draws_go_on_from_replay_to_replay_as_eager_ones() -> None:
    with pretended_cuda(graphs=True):
        own = torch.Generator("cuda").manual_seed(1)
        x = ones()

        def work() -> torch.Tensor:
            drawn = torch.rand(3, device="cuda", generator=own)
            return F.dropout(x, 0.5) + drawn + torch.randn_like(x)

        state = own.get_state(), torch.get_rng_state()
        wanted = [work().tolist() for _ in range(3)]
        own.set_state(state[0])
        torch.set_rng_state(state[1])
        graph, out = captured(work, own)
        found = []
        for _ in range(3):
            graph.replay()
            found.append(out.tolist())
    assert found == wanted and wanted[0] != wanted[1]


def fitted(recipe: Recipe, ctx: Context, data: Any = None, **more: Any) -> tuple[Any, list[float]]:
    body = training.build(toy.MODEL, toy.SHAPE, ctx)
    network = torch.nn.Sequential(body, torch.nn.Dropout(0.2))
    return network, training.fit(network, data or small().train, recipe, ctx, **more)


def steps(recipe: Recipe) -> int:
    return recipe.epochs * -(-len(small().train) // recipe.batch_size)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_captured_training_equals_an_eager_one(optimizer: str, precision: str) -> None:
    recipe = RECIPE.model_copy(
        update={"optimizer": optimizer, "precision": precision, "learning_rate": 0.01,
                "augment": get_args(Augmentation), "batch_size": 19}
    )  # fmt: skip
    sizes = {
        len(part) for part in torch.arange(len(small().train)).tensor_split(steps(recipe) // 2)
    }

    def work(captured: bool) -> Any:
        ctx = Context(seed=1, device="cuda", captured=captured)
        counting = training.CrossEntropy(recipe, "cuda")
        network, losses = fitted(recipe, ctx, objective=counting, on_epoch=counting.settle)
        return network.state_dict(), losses, counting.accuracies

    assert len(sizes) == 2, "a graph for each"
    assert replayed_as_eager(work) == steps(recipe)


class Joint:
    """Cross-entropy over all streams of a step."""

    capturable = True

    def __call__(self, model: torch.nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        """Return the sum over the streams."""
        losses = [F.cross_entropy(model(b.images).float(), b.labels) for b in batches.values()]
        return torch.stack(losses).sum()


def test_a_second_stream_in_every_other_step() -> None:
    first, second = small().train, small().train.take(np.arange(30))

    def work(captured: bool) -> Any:
        streams = {"first": Stream(data=first), "second": Stream(data=second, every=2)}
        ctx = Context(seed=1, device="cuda", captured=captured)
        network, losses = fitted(RECIPE, ctx, streams, objective=Joint())
        return network.state_dict(), losses

    assert replayed_as_eager(work) == steps(RECIPE)


@pytest.mark.parametrize("begins", [True, False])
def test_a_training_goes_on_the_other_way_after_a_kill(begins: bool) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": "adam", "augment": ("crop", "flip")})

    def work(captured: bool) -> Any:
        kept: list[Any] = []

        def keep(arrays: Mapping[str, Any]) -> None:
            kept.append(unpack("train-x", pack(arrays)))

        written = Checkpoints(keep, pause=lambda cost: 0.0).root
        network, losses = fitted(
            recipe, Context(seed=1, device="cuda", captured=captured and begins, kept=written)
        )
        if captured:
            restored = Checkpoints(restored=kept[steps(recipe) // 2]).root
            ctx = Context(seed=1, device="cuda", captured=not begins, kept=restored)
            network, losses = fitted(recipe, ctx)
        return network.state_dict(), losses

    replays = replayed_as_eager(work)
    assert replays in (steps(recipe), steps(recipe) // 2 - 1), replays


@pytest.mark.parametrize("way", ["vmap", "one by one"])
def test_captured_members_equal_eager_ones(way: Way) -> None:
    data, model = small().train, TinyGroupNorm(width=4)
    masks = np.random.default_rng(3).random((3, len(data))) < 0.5

    def work(captured: bool) -> Any:
        ctx = Context(seed=1, device="cuda", captured=captured)
        return ensemble.fit_many(model, data, masks, RECIPE, ctx, toy.SHAPE, way=way)

    assert replayed_as_eager(work) == steps(RECIPE) * (1 if way == "vmap" else 3)


# Those with objectives or searches of their own that a graph may replay.
CAPTURED = {
    "abl", "asset", "confusion_training", "datamodels", "feature_strength", "nad",
    "neural_cleanse",
}  # fmt: skip


@pytest.mark.further
@pytest.mark.parametrize("name", sorted(CAPTURED))
@pytest.mark.parametrize("size", SIZES)
def test_a_captured_defense_equals_an_eager_one(name: str, size: str) -> None:
    defense = defense_of(name, size)

    def work(captured: bool) -> Any:
        return defended(defense, case(size), "cuda", captured=captured)

    assert replayed_as_eager(work) > 0


@pytest.mark.parametrize("begins", [True, False])
def test_a_search_for_a_trigger_is_replayed_step_by_step(begins: bool) -> None:
    """Also where it is killed, and goes on the other way."""
    defense = NeuralCleanse(steps=24, learning_rate=0.5)

    def work(captured: bool) -> Any:
        kept: list[Any] = []

        def keep(arrays: Mapping[str, Any]) -> None:
            kept.append(unpack("shard-x", pack(arrays)))

        def searched(way: bool, **given: Any) -> Any:
            part = Checkpoints(**given, pause=lambda cost: 0.0).root
            ctx = Context(seed=1, device="cuda", captured=way, kept=part)
            network = victim(toy.MODEL, toy.SHAPE, small(), ctx)
            return defense.search(toy.TARGET, toy.inputs(defense, small(), victim=network), ctx)

        first = searched(captured and begins, write=keep)
        return searched(not begins, restored=kept[15]) if captured else first

    assert replayed_as_eager(work) == (24 if begins else 8)


def test_every_objective_that_may_be_captured_is_compared() -> None:
    folder = Path(training.__file__).parents[1] / "defenses"
    marked = {f.stem for f in folder.glob("*.py") if "capturable" in f.read_text()}
    marked |= {f.stem for f in folder.glob("*.py") if "LoopStep(" in f.read_text()}
    shared = {"_confusion": "confusion_training"}
    assert {shared.get(name, name) for name in marked} <= CAPTURED
    attacks = folder.with_name("attacks").glob("*.py")
    assert not [f for f in attacks if "capturable" in f.read_text()]


class Counting:
    """An objective that is marked and may not be: it counts in Python."""

    capturable = True

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: torch.nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        self.calls += 1
        return training.cross_entropy(model, batches) * (1 + 0.1 * self.calls)


class Refusing:
    """An objective that only the capture refuses, such as for memory that is lacking."""

    capturable = True

    def __call__(self, model: torch.nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("planted")
        return training.cross_entropy(model, batches)


def trained_by(make: Callable[[], Any], captured: bool, data: ImageSet | None = None) -> Any:
    ctx = Context(seed=1, device="cuda", captured=captured)
    network, losses = fitted(RECIPE, ctx, data, objective=make())
    return network.state_dict(), losses


def test_an_objective_that_counts_in_python_is_found() -> None:
    with pytest.raises(AssertionError, match="not equal"):
        replayed_as_eager(functools.partial(trained_by, Counting))


def test_what_cannot_be_captured_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    assert replayed_as_eager(functools.partial(trained_by, Refusing)) == 0
    assert "a step is not captured, it runs eagerly: planted" in caplog.text
