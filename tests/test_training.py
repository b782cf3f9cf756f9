"""The training loop: determinism, streams, phases, schedules, augmentation, non-finite losses."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raysweep import training
from raysweep.datasets import ImageSet
from raysweep.errors import NonFiniteLoss
from raysweep.methods.checkpoints import Checkpoints, unpacked
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models.linear import Linear
from raysweep.store.manifest import pack, unpack
from raysweep.testing import toy
from raysweep.training import Batch, Stream, augmentation, graph, step

FAST = Recipe(epochs=2, batch_size=100, precision="float32")


def trained(seed: int = 1, recipe: Recipe = FAST) -> tuple[dict[str, torch.Tensor], list[float]]:
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=seed))
    losses = training.fit(network, toy.toy().train, recipe, Context(seed=seed))
    return network.state_dict(), losses


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_bytes(precision: str) -> None:
    recipe = FAST.model_copy(update={"precision": precision, "augment": ("crop", "flip")})
    state = torch.get_rng_state()
    (one, losses), (two, again) = trained(recipe=recipe), trained(recipe=recipe)
    assert torch.equal(torch.get_rng_state(), state)
    assert losses == again and all(torch.equal(one[k], two[k]) for k in one)
    other, _ = trained(seed=2, recipe=recipe)
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_counting_what_is_right_changes_no_byte_of_a_training(precision: str) -> None:
    recipe = FAST.model_copy(
        update={"precision": precision, "augment": ("crop", "flip"), "label_smoothing": 0.1}
    )
    plain, losses = trained(recipe=recipe)
    objective = training.CrossEntropy(recipe, "cpu")
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    again = training.fit(
        network, toy.toy().train, recipe, Context(seed=1), objective=objective,
        on_epoch=objective.settle,
    )  # fmt: skip
    assert again == losses and len(objective.accuracies) == recipe.epochs
    assert all(torch.equal(plain[name], own) for name, own in network.state_dict().items())


def test_the_accuracy_of_an_epoch_is_that_of_its_samples() -> None:
    """Hardly a step is taken, so that each epoch meets the network as it is in the end."""
    recipe = FAST.model_copy(update={"learning_rate": 1e-12, "weight_decay": 0.0, "batch_size": 64})
    data, objective = toy.toy().train, training.CrossEntropy(recipe, "cpu")
    network = training.build(Linear(), toy.SHAPE, Context(seed=1))
    training.fit(
        network, data, recipe, Context(seed=1), objective=objective, on_epoch=objective.settle
    )
    right = training.predict(network, data.images, recipe, "cpu").argmax(1) == data.labels
    assert objective.accuracies == [float(right.double().mean())] * 2 and 0 < right.sum() < len(
        data
    )


def test_a_killed_training_counts_on() -> None:
    written: dict[str, np.ndarray] = {}
    recipe = FAST.model_copy(update={"epochs": 4})

    def run(kept: Checkpoints) -> list[float]:
        network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
        objective = training.CrossEntropy(recipe, "cpu")
        training.fit(
            network, toy.toy().train, recipe, Context(seed=1, kept=kept.root), objective=objective,
            on_epoch=objective.settle,
        )  # fmt: skip
        return objective.accuracies

    def write(arrays: Mapping[str, np.ndarray]) -> None:
        ((_, (passed, _)),) = unpacked(arrays, "").items()
        if passed == 2 * 6 + 3:
            written.update(unpack("train-x", pack(arrays)))
            raise Stopped

    whole = run(Checkpoints())
    with pytest.raises(Stopped):
        run(Checkpoints(write, pause=lambda cost: 0.0))
    assert run(Checkpoints(restored=written)) == whole and len(set(whole)) == 4


def test_a_non_finite_loss_names_its_step() -> None:
    calls = 0

    def objective(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = training.cross_entropy(model, batches)
        return loss * float("nan") if calls == 9 else loss

    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    with pytest.raises(NonFiniteLoss, match="loss of step 8 is nan; lower learning_rate"):
        training.fit(network, toy.toy().train, FAST, Context(seed=1), objective=objective)


def test_streams_are_mixed_every_so_often_and_seen_once_a_pass() -> None:
    case = toy.toy()
    seen: list[tuple[int, ...]] = []
    rows: list[int] = []

    def objective(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        seen.append(tuple(len(batches[n].labels) if n in batches else 0 for n in ("a", "b")))
        rows.extend(batches["a"].rows.tolist())
        logits = [model(batch.images) for batch in batches.values()]
        return sum(x.square().mean() for x in logits)  # type: ignore[return-value]

    streams = {"a": Stream(data=case.train), "b": Stream(data=case.clean, every=3, batch_size=40)}
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    training.fit(network, streams, FAST, Context(seed=1), objective=objective)
    assert seen == [(100, 40 if step % 3 == 0 else 0) for step in range(12)]
    assert sorted(rows[:600]) == sorted(rows[600:]) == list(range(600))
    assert rows[:600] != rows[600:], "reshuffled"


def test_phases_have_their_own_order_and_carry_an_optimizer() -> None:
    orders: dict[str, list[int]] = {"one": [], "two": []}
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    optimizer = training.make_optimizer(network, FAST)
    for phase in orders:

        def objective(
            model: nn.Module, batches: Mapping[str, Batch], kept: list[int] = orders[phase]
        ) -> torch.Tensor:
            kept.extend(batches["data"].rows.tolist())
            return training.cross_entropy(model, batches)

        training.fit(
            network, toy.toy().train, FAST, Context(seed=1), objective=objective, phase=phase,
            optimizer=optimizer,
        )  # fmt: skip
    assert orders["one"] != orders["two"]
    assert optimizer.state


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (7, 2), (12, 2), (13, 3)])
def test_training_takes_the_steps_it_is_given(steps: int, epochs: int) -> None:
    """Of six steps a pass; the last epoch is a part, and the schedule ends with the last step."""
    recipe = FAST.model_copy(update={"epochs": 50, "schedule": "cosine"})
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    optimizer = training.make_optimizer(network, recipe)
    rates: list[float] = []
    seen: list[int] = []

    def objective(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        return training.cross_entropy(model, batches)

    means = training.fit(
        network, toy.toy().train, recipe, Context(seed=1), objective=objective, steps=steps,
        optimizer=optimizer, on_epoch=lambda epoch, _: seen.append(epoch),
    )  # fmt: skip
    assert len(rates) == steps and len(means) == epochs and seen == list(range(1, epochs + 1))
    assert rates == [training.learning_rate(recipe, step, steps) for step in range(steps)]


def test_training_stops_when_asked() -> None:
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    losses = training.fit(
        network, toy.toy().train, FAST.model_copy(update={"epochs": 9}), Context(seed=1),
        on_epoch=lambda epoch, model: epoch == 3,
    )  # fmt: skip
    assert len(losses) == 3 and not network.training


class Stopped(Exception):
    """Planted: the process is killed."""


class Seen:
    """Remembers the epochs that it is called after."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def __call__(self, epoch: int, model: nn.Module) -> None:
        self.epochs.append(epoch)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"epochs": torch.tensor(self.epochs)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.epochs = [10 * epoch for epoch in state["epochs"].tolist()]


class WithDropout(nn.Module):
    """The toy's network behind dropout."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.drop, self.inner = nn.Dropout(0.2), inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(self.drop(images))
        return out


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_killed_training_continues_to_the_same_bytes(optimizer: str) -> None:
    """Two streams in the middle of a pass, and an objective that draws and counts by itself."""
    case = toy.toy()
    recipe = Recipe(
        epochs=5, batch_size=100, learning_rate=0.01, optimizer=optimizer,  # type: ignore[arg-type]
        augment=("crop", "flip"), precision="float32",
    )  # fmt: skip
    streams = {"a": Stream(data=case.train), "b": Stream(data=case.clean, every=4, batch_size=40)}
    written: dict[str, np.ndarray] = {}

    def run(kept: Checkpoints, seen: Seen) -> tuple[dict[str, torch.Tensor], list[float]]:
        network = WithDropout(training.build(toy.MODEL, toy.SHAPE, Context(seed=1)))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        drawn, calls = torch.Generator().manual_seed(3), torch.zeros(1)

        def objective(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
            calls.add_(1)
            weights = 0.5 + torch.rand(2, generator=drawn) + calls / 100
            losses = [training.cross_entropy(model, {"x": batch}) for batch in batches.values()]
            return (torch.stack(losses) * weights[: len(losses)]).sum()

        means = training.fit(
            network, streams, recipe, Context(seed=1, kept=kept.root),
            objective=training.resumable(objective, drawn, calls), on_epoch=seen,
        )  # fmt: skip
        return network.state_dict(), means

    def write(arrays: Mapping[str, np.ndarray]) -> None:
        ((path, (passed, _)),) = unpacked(arrays, "").items()
        if passed == 3 * 6 + 2:
            assert path == "/0.fit fit.1"
            written.update(unpack("train-x", pack(arrays)))
            raise Stopped

    whole, means = run(Checkpoints(), Seen())
    with pytest.raises(Stopped):
        run(Checkpoints(write, pause=lambda cost: 0.0), Seen())
    mine = {n.partition("\x1f")[2]: a for n, a in written.items()}
    assert len(mine["means"]) == 3 and len(mine["losses"]) == 2
    assert len(mine["waiting a"]) == 400 and len(mine["waiting b"]) in (40, 80)
    seen = Seen()
    resumed, again = run(Checkpoints(restored=written), seen)
    assert seen.epochs == [10, 20, 30, 4, 5] and again == means
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    random_state = torch.Generator().manual_seed(7).get_state().numpy()
    for part in ("model.inner.head.weight", "optimizer.0", "order a", "noise a", "random",
                 "waiting b", "objective.0", "objective.1"):  # fmt: skip
        # Planted: one part of the state is another.
        planted = {
            n: (random_state if a.dtype == np.uint8 else a[::-1] + (part == "objective.1"))
            if n.partition("\x1f")[2].startswith(part) and a.ndim else a
            for n, a in written.items()
        }  # fmt: skip
        other, _ = run(Checkpoints(restored=planted), Seen())
        assert not all(torch.equal(whole[n], other[n]) for n in whole), part


def test_a_training_that_may_remember_anything_keeps_nothing() -> None:
    def objective(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        return training.cross_entropy(model, batches)

    written: list[Any] = []
    hooked = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    hooked.register_forward_hook(lambda *given: None)
    kept = Checkpoints(written.append, pause=lambda cost: 0.0)
    training.fit(hooked, toy.toy().train, FAST, Context(seed=1, kept=kept.root))
    assert written == []
    for more in ({"objective": objective}, {"on_epoch": lambda epoch, model: None}):
        kept = Checkpoints(written.append, pause=lambda cost: 0.0)
        network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
        training.fit(network, toy.toy().train, FAST, Context(seed=1, kept=kept.root), **more)  # type: ignore[arg-type]
        assert written == []


def test_a_training_that_was_over_is_not_done_again_and_gives_its_optimizer_back() -> None:
    written: list[Any] = []

    def work(kept: Checkpoints) -> tuple[Any, ...]:
        network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
        optimizer, steps = training.make_optimizer(network, FAST), 0
        ctx = Context(seed=1, kept=kept.root)

        def counted(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
            nonlocal steps
            steps += 1
            return training.cross_entropy(model, batches)

        dynamics = training.Dynamics(toy.toy().train, FAST, "cpu")
        fit = functools.partial(
            training.fit, network, toy.toy().train, FAST, ctx,
            objective=training.resumable(counted), optimizer=optimizer,
        )  # fmt: skip
        losses = [fit(phase="one", on_epoch=dynamics), fit(phase="two")]
        return steps, losses, dynamics.losses, network.state_dict()

    whole = work(Checkpoints(written.append, pause=lambda cost: 0.0, held=0.0))
    between = [a for a in written if not any("fit two" in name for name in a)][-1]
    steps, losses, dynamics, weights = work(Checkpoints(restored=between))
    assert (whole[0], steps) == (24, 12) and losses == whole[1]
    assert torch.equal(dynamics, whole[2])
    assert all(torch.equal(weights[n], t) for n, t in whole[3].items())


def test_dynamics_record_each_sample_after_each_epoch_and_change_nothing() -> None:
    case = toy.toy()
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    recorder = training.Dynamics(case.train, FAST, "cpu")
    assert recorder.losses.shape == (0, 600)
    training.fit(network, case.train, FAST, Context(seed=1), on_epoch=recorder)
    weights, _ = trained()
    assert all(torch.equal(weights[n], t) for n, t in network.state_dict().items())
    assert recorder.losses.shape == (2, 600) and recorder.losses.dtype == torch.float32
    last = training.per_sample_losses(network, case.train, FAST, "cpu")
    assert torch.equal(recorder.losses[-1], last)
    logits = network(case.train.images.float() / 255).detach()
    labels = torch.from_numpy(case.train.labels)
    expected = -logits.log_softmax(1)[torch.arange(600), labels]
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)


def test_label_smoothing_and_nesterov_and_milestones_do_what_they_say() -> None:
    plain, _ = trained()
    for change in ({"label_smoothing": 0.1}, {"nesterov": False}):
        other, _ = trained(recipe=FAST.model_copy(update=change))
        assert not torch.equal(plain["head.weight"], other["head.weight"]), change
    recipe = Recipe(learning_rate=1.0, schedule="multistep", milestones=(0.3, 0.6))
    rates = [training.learning_rate(recipe, step, 100) for step in (29, 30, 59, 60)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])
    with pytest.raises(ValueError, match="each above 0 and below 1"):
        Recipe(milestones=(0.5, 1.5))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, 0.854, 0.5, 0.146, 0.0]),
        ("multistep", [1, 1, 0.1, 0.01, 0.01]),
        ("one_cycle", [0.05, 0.9375, 0.625, 0.3125, 0.0]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    recipe = Recipe(learning_rate=1.0, schedule=schedule)  # type: ignore[arg-type]
    found = [training.learning_rate(recipe, step, 100) for step in (0, 25, 50, 75, 100)]
    assert found == pytest.approx(expected, abs=1e-3)


def test_sgd_agrees_with_a_plain_loop() -> None:
    """One full batch, one step, no momentum: w - lr * (gradient + decay * w)."""
    case = toy.toy()
    few = ImageSet(images=case.train.images[:64], labels=case.train.labels[:64])
    recipe = Recipe(
        epochs=1, batch_size=64, learning_rate=0.5, momentum=0.0, weight_decay=0.01,
        schedule="constant", precision="float32",
    )  # fmt: skip
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    network.train()
    before = network.get_parameter("head.weight").detach().clone()
    logits = network(few.images.float() / 255)
    F.cross_entropy(logits, torch.from_numpy(few.labels)).backward()
    gradient = network.get_parameter("head.weight").grad
    assert gradient is not None
    expected = before - 0.5 * (gradient + 0.01 * before)
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    training.fit(network, few, recipe, Context(seed=1))
    torch.testing.assert_close(
        network.get_parameter("head.weight").detach(), expected, atol=1e-5, rtol=1e-4
    )


def test_augmentations_move_pixels_and_keep_shapes() -> None:
    images = torch.rand(64, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    for name in ("crop", "flip", "rotate", "cutout"):
        noise = torch.Generator().manual_seed(1)
        out = augmentation.augment(images, (name,), noise)  # type: ignore[arg-type]
        assert out.shape == images.shape and not torch.equal(out, images)
        again = augmentation.augment(images, (name,), torch.Generator().manual_seed(1))  # type: ignore[arg-type]
        assert torch.equal(out, again)
        assert float(out.min()) >= 0 and float(out.max()) <= 1 + 1e-5
    flipped = augmentation.flip(images, torch.Generator().manual_seed(1))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all() and 10 < int(mirrored.sum()) < 54
    blank = augmentation.cutout(torch.ones(64, 1, 16, 16), torch.Generator().manual_seed(1))
    share = 1 - blank.flatten(1).mean(1)
    assert float(share.max()) <= 25 / 256 and float(share.min()) > 0
    cropped = augmentation.crop(images, torch.Generator().manual_seed(1))
    padded = F.pad(images, (2, 2, 2, 2))
    windows = padded.unfold(2, 16, 1).unfold(3, 24, 1)
    found = (windows == cropped[:, :, None, None]).flatten(4).all(4).all(1).flatten(1).any(1)
    assert found.all(), "every crop is a window of the padded image"


@pytest.mark.parametrize("names", [("crop", "flip", "cutout"), ("flip", "rotate", "crop")])
def test_augmenting_bytes_is_augmenting_floats(names: tuple[Any, ...]) -> None:
    pixels = torch.randint(0, 256, (50, 3, 16, 24), dtype=torch.uint8)
    both = [
        augmentation.augment(images, names, torch.Generator().manual_seed(1))
        for images in (pixels, pixels.float() / 255)
    ]
    assert both[0].dtype == torch.float32 and torch.equal(both[0], both[1])


def test_a_crop_is_the_window_that_was_drawn() -> None:
    """Against slicing image by image, with the draws repeated."""
    images = torch.rand(40, 2, 16, 24)
    cropped = augmentation.crop(images, torch.Generator().manual_seed(1))
    draws = (torch.rand((2, 40), generator=torch.Generator().manual_seed(1)) * 5).long()
    padded = F.pad(images, (2, 2, 2, 2))
    for image, y, x in zip(range(40), *draws.tolist(), strict=True):
        assert torch.equal(cropped[image], padded[image, :, y : y + 16, x : x + 24])


def test_predictions_do_not_depend_on_batches() -> None:
    case = toy.toy()
    network = toy.network(case.weights)
    whole = training.predict(network, case.test.images, toy.RECIPE, "cpu")
    parts = training.predict(network, case.test.images, toy.RECIPE, "cpu", batch_size=7)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
    assert whole.shape == (200, toy.CLASSES) and np.isfinite(whole.numpy()).all()


class Remembering:
    """Cross-entropy, weighed by how often it was called: what it keeps is in `memory`."""

    def __init__(self) -> None:
        self.calls = torch.zeros(1)
        self.memory = (self.calls,)

    def __call__(self, model: torch.nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        self.calls += 1
        return training.cross_entropy(model, batches) * (1 + 0.1 * self.calls).squeeze()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_attempt_to_capture_a_step_leaves_no_trace(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps that warm a capture up are taken back: weights, optimizer, draws, memory."""
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", torch.set_rng_state)
    recipe = toy.RECIPE.model_copy(
        update={"epochs": 2, "optimizer": optimizer, "learning_rate": 0.01, "augment": ("crop",)}
    )
    taken = step.EagerStep.taken

    def warmed(self: step.EagerStep, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        changed = [*self.model.parameters(), *self.model.buffers(), *self.objective.memory]
        noises = [source.noise for source in self.sources.values()]
        state = graph.EarlierState(changed, self.optimizer, noises)
        for _ in range(graph.WARM_UP):
            taken(self, rows)
        state.restore()
        return taken(self, rows)

    def trained() -> tuple[list[float], dict[str, torch.Tensor]]:
        ctx = Context(seed=3)
        body = training.build(toy.MODEL, toy.SHAPE, ctx)
        network = torch.nn.Sequential(body, torch.nn.Dropout(0.3))
        losses = training.fit(network, toy.toy().train, recipe, ctx, objective=Remembering())
        counting = training.CrossEntropy(recipe, "cpu")
        training.fit(
            network, toy.toy().train, recipe, ctx, objective=counting, on_epoch=counting.settle
        )
        return [*losses, *counting.accuracies], network.state_dict()

    losses, wanted = trained()
    monkeypatch.setattr(step.EagerStep, "taken", warmed)
    again, found = trained()
    assert losses == again
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_optimizer_is_torchs_own_without_its_compiler(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = FAST.model_copy(update={"optimizer": optimizer})
    weights = torch.linspace(-1, 1, 6).reshape(2, 3)

    def stepped(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> torch.Tensor:
        own = nn.Parameter(weights.clone())
        taken = make([own])
        for _ in range(3):
            taken.zero_grad(set_to_none=True)
            (own**2).sum().backward()
            taken.step()
        return own.detach()

    def plain(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        ours = training.make_optimizer(parameters, recipe)
        kind = type(ours).__mro__[1]
        assert kind in (torch.optim.SGD, torch.optim.Adam)
        return kind(parameters, **ours.defaults)

    expected = stepped(plain)
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # whoever imports it fails
    assert torch.equal(stepped(lambda given: training.make_optimizer(given, recipe)), expected)
