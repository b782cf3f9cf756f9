"""Checkpoints of stages: their parts, when they are written, and what they are bound to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raysweep.arrays import Arrays
from raysweep.attacks.latent_backdoor import LatentBackdoor
from raysweep.defenses import neural_cleanse
from raysweep.errors import StoreError
from raysweep.methods import Context, checkpoints
from raysweep.methods.checkpoints import HELD, SECONDS, Checkpoints, packed, unpacked
from raysweep.plan.planner import Planner
from raysweep.stages import checkpoints as stored
from raysweep.stages import defend
from raysweep.stages.perform import perform
from raysweep.store import Store
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse
from raysweep.testing import toy
from raysweep.testing.attacks import prepared
from raysweep.training import Steps
from raysweep.training.optimizer import Adam

SWEEP = """
name: kills
dataset: {digits: {size: 300}}
model: linear
attacks: [badnets: {rate: 0.1}]
defenses: [strip: {overlays: 4}]
seeds: 1
recipe: {epochs: 1, precision: float32}
"""


class Killed(Exception):
    """Planted: the process is killed."""


class Now:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    clock = Now()
    monkeypatch.setattr(checkpoints, "time", clock)
    return clock


def always(write: Callable[[Arrays], None], restored: Arrays | None = None) -> Context:
    kept = Checkpoints(write, restored, pause=lambda cost: 0.0, held=0.0)
    return Context(seed=0, kept=kept.root)


def number(value: int) -> Callable[[], Arrays]:
    return lambda: {"number": np.array(value)}


def test_a_part_finds_the_arrays_of_its_own_place_alone() -> None:
    written: list[Arrays] = []
    ctx = always(written.append)
    ctx.part("a").checkpoint(number(1))
    ctx.part("a").checkpoint(number(2))
    ctx.part("b/0.a").part("a").checkpoint(number(3))
    ctx.checkpoint(number(4))
    ctx.part("a").checkpoint(number(5))
    found = unpacked(written[2], "")
    assert {path: int(own["number"]) for path, (_, own) in found.items()} == {
        "/0.a.1": 1, "/0.a.2": 2, "/0.b%2F0.a.1/0.a.1": 3,
    }  # fmt: skip
    again = always(written.append, written[2])
    assert [dict(again.part("a").restored), dict(again.part("a").restored)] == [
        {"number": 1}, {"number": 2},
    ]  # fmt: skip
    assert again.part("a").restored == {} and again.restored == {}
    # The checkpoint of the stage stands for the parts before it.
    assert unpacked(written[3], "").keys() == {""}
    last = always(written.append, written[4])
    assert last.restored["number"] == 4 and last.part("a").restored["number"] == 5
    first = always(written.append, written[4])
    first.checkpoint(number(6))
    assert first.part("a").restored == {}, "a part of the next round"


def test_a_part_of_a_later_round_waits_for_its_round() -> None:
    """The loop's own arrays may be of an earlier round than those of a part in it."""
    arrays = {"": (1, number(1)()), "/3.a.1": (1, number(5)())}
    kept = Checkpoints(lambda arrays: None, packed(arrays, ""))
    ctx, found = Context(seed=0, kept=kept.root), []
    for _ in range(3):
        found.append(dict(ctx.part("a").restored))
        ctx.checkpoint(number(0))
    assert found == [{}, {}, {"number": 5}]


def test_nothing_is_written_before_its_time_and_dear_writes_are_rarer(now: Now) -> None:
    written: list[float] = []
    made: list[int] = []

    def write(arrays: Arrays) -> None:
        now.seconds += 2
        written.append(now.seconds)

    def make() -> Arrays:
        made.append(1)
        now.seconds += 1
        return {}

    ctx = Context(seed=0, kept=Checkpoints(write).root)
    for _ in range(400):
        now.seconds += 0.5
        ctx.checkpoint(make)
    assert written == [100 + SECONDS + 3, 100 + SECONDS + 3 + 50 * 3 + 3] and len(made) == 2


def test_of_a_part_that_is_over_its_arrays_are_held_unless_it_was_short(now: Now) -> None:
    written: list[Arrays] = []
    ctx = Context(seed=0, kept=Checkpoints(written.append).root)
    for seconds in (HELD / 2, HELD):
        part = ctx.part("over")
        now.seconds += seconds
        part.checkpoint(number(1))
        part.checkpoint(number(2), over=True)
    now.seconds += SECONDS
    ctx.part("next").checkpoint(number(3))
    (arrays,) = written
    assert unpacked(arrays, "").keys() == {"/0.over.2", "/0.next.1"}


def test_a_checkpoint_stands_for_parts_that_are_held_however_soon(now: Now) -> None:
    """Otherwise the networks of all rounds would pile up until the next write."""
    kept = Checkpoints(lambda arrays: None)
    ctx = Context(seed=0, kept=kept.root)
    for value in range(3):
        part = ctx.part("round")
        now.seconds += HELD
        part.checkpoint(number(value), over=True)
        assert kept.held.keys() - {""} == {f"/{value}.round.1"}
        ctx.checkpoint(number(value))
        assert kept.held.keys() == {""} and kept.held[""][1]["number"] == value


def test_arrays_are_copied_when_they_are_held() -> None:
    written: list[Arrays] = []
    ctx, live = always(written.append), np.zeros(2)
    ctx.part("a").checkpoint(lambda: {"live": live})
    live += 1
    ctx.part("b").checkpoint(number(0))
    assert unpacked(written[1], "")["/0.a.1"][1]["live"].tolist() == [0, 0]


@pytest.mark.parametrize("error", [StoreError("503"), OSError("no space left")])
def test_a_checkpoint_that_cannot_be_written_costs_time_alone(error: Exception, now: Now) -> None:
    tried: list[int] = []

    def write(arrays: Arrays) -> None:
        tried.append(1)
        raise error

    ctx = Context(seed=0, kept=Checkpoints(write).root)
    for _ in range(3):
        now.seconds += SECONDS
        ctx.checkpoint(dict)
        ctx.checkpoint(dict)
    assert len(tried) == 3


def test_items_that_were_mapped_are_not_mapped_again() -> None:
    written: list[Arrays] = []
    calls: list[int] = []

    def square(value: int) -> Any:
        calls.append(value)
        return np.full(value, value**2)

    def work(ctx: Context) -> list[Any]:
        return [*ctx.mapped("squares", square, range(4)), *ctx.mapped("squares", square, [7, 8])]

    whole = work(always(written.append))
    calls.clear()
    again = work(always(lambda arrays: None, written[5]))
    assert calls == [8] and len(whole) == len(again) == 6
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_steps_give_back_all_that_they_change() -> None:
    written: list[Arrays] = []

    def work(ctx: Context, upto: int = 9) -> tuple[torch.Tensor, int]:
        values = torch.ones(3, requires_grad=True)
        draw = torch.Generator().manual_seed(1)
        adam = Adam([values], lr=0.1)
        steps = Steps(ctx.part("search"), values=values, adam=adam, draw=draw)
        for _ in range(steps.first, upto):
            adam.zero_grad()
            (values * torch.rand(3, generator=draw)).square().sum().backward()
            adam.step()
            steps.take()
        steps.end()
        return values.detach(), steps.first

    whole, _ = work(always(written.append))
    for at in (0, 4, 9):
        again, first = work(always(lambda arrays: None, written[at]))
        assert first == min(at + 1, 9) and torch.equal(again, whole)
    for part in ("values", "adam", "draw"):
        # Planted: a thing as it was before the last step.
        found = {path: own for path, (_, own) in unpacked(written[4], "").items()}["/0.search.1"]
        before = {path: own for path, (_, own) in unpacked(written[3], "").items()}["/0.search.1"]
        mixed = {n: (before if n.startswith(part) else found)[n] for n in found}
        wrong = packed({"/0.search.1": (5, mixed)}, "")
        assert not torch.equal(work(always(lambda arrays: None, wrong))[0], whole), part


def test_a_search_that_was_killed_draws_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are drawn for several steps at once, and a kill may fall between two such draws."""
    monkeypatch.setattr(neural_cleanse, "DRAWN_AT_ONCE", 4)
    method, case, written = neural_cleanse.NeuralCleanse(steps=11), toy.toy(), list[Arrays]()

    def search(ctx: Context) -> Any:
        return np.stack(method.shard("1", toy.inputs(method, case), ctx)["pattern"])

    whole = search(always(written.append))
    for at in (3, 4, 5, 9):
        again = search(always(lambda arrays: None, written[at - 1]))
        np.testing.assert_array_equal(again, whole, err_msg=f"after {at} steps")


def test_an_attack_that_was_killed_draws_on() -> None:
    attack, written = LatentBackdoor(target=3, steps=4, batch=3), list[Arrays]()

    def picture(ctx: Context) -> Any:
        return prepared(attack, (1, 16, 16), ctx)["picture"]

    whole = picture(always(written.append))
    again = picture(always(lambda arrays: None, written[1]))
    np.testing.assert_array_equal(again, whole)


# Bound to the stage, its code, its device, its inputs


def part_of(store: Store, **other: Any) -> Any:
    work: Any = SimpleNamespace(LONG=other.pop("long", True))
    stage: Any = SimpleNamespace(key=other.pop("key", "train-1"))
    given = {"device": "cpu", "read": {"prepare-1": "a"}} | other
    return stored.checkpoint(stage, work, store, **given)


def test_a_checkpoint_of_anything_else_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_pause", lambda cost: 0.0)
    store = Store(str(tmp_path))
    part_of(store).checkpoint(number(7))
    assert part_of(store).restored["number"] == 7
    data = store.read("scratch/train-1.checkpoint")
    assert data is not None
    store.write("scratch/train-2.checkpoint", data)
    for other in ({"key": "train-2"}, {"device": "cuda"}, {"read": {"prepare-1": "b"}},
                  {"long": False}):  # fmt: skip
        assert part_of(store, **other).restored == {}, other
    here = stored._code(frozenset())
    for change in ({"source": "0" * 12}, {"torch": "2.0.0"}):
        code = type(here)(**{**vars_of(here), **change})
        monkeypatch.setattr(stored, "_code", lambda modules, code=code: code)
        assert part_of(store).restored == {}, change


def vars_of(code: Any) -> dict[str, Any]:
    return {name: getattr(code, name) for name in code.__dataclass_fields__}


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign", "unreadable"])
def test_a_damaged_checkpoint_is_ignored(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_pause", lambda cost: 0.0)
    store = Store(str(tmp_path))
    part_of(store).checkpoint(number(7))
    file = tmp_path / "scratch" / "train-1.checkpoint"
    data = file.read_bytes()
    if damage == "flipped":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:50])
    elif damage == "foreign":
        store.checkpoint("train-1", {"fit.fit.cpu/means": np.zeros(3)})
    else:
        file.unlink()
        file.mkdir()
    assert part_of(store).restored == {}


@pytest.mark.parametrize("role", ["defend", "shard"])
def test_a_stage_of_a_defense_that_was_killed_goes_on(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SWEEP
    if role == "shard":
        text = text.replace("strip: {overlays: 4}", "neural_cleanse: {steps: 12}")
    monkeypatch.setattr(checkpoints, "_pause", lambda cost: 0.0)
    monkeypatch.setattr(defend, "AT_ONCE", 40)
    planner = Planner(from_text(parse("kills.yaml", text)))
    planner.route(planner.trials[0], {})
    stages = planner.stages
    key = next(key for key in stages if key.startswith(role))
    whole, store = Store(str(tmp_path / "whole")), Store(str(tmp_path / "store"))
    written: list[str] = []
    write, last = Store.checkpoint, 0

    def watched(self: Store, of: str, arrays: Arrays) -> None:
        write(self, of, arrays)
        written.append(of)
        if len(written) == last:
            raise Killed

    monkeypatch.setattr(Store, "checkpoint", watched)
    for other in (whole, store):
        for before in list(stages)[: list(stages).index(key)]:
            assert perform(stages[before].packed(), other, {}, 0).status == "done"
    written.clear()
    assert perform(stages[key].packed(), whole, {}, 0).status == "done"
    every, last = len(written), len(written) // 2
    assert every >= 8 and set(written) == {key}
    written.clear()
    assert perform(stages[key].packed(), store, {}, 0).error.startswith("Killed")
    assert store.list("scratch") == [f"scratch/{key}.checkpoint"]
    assert perform(stages[key].packed(), store, {}, 0).status == "done"
    assert len(written) == every, "what was written is not done again"
    assert store.list("scratch") == []
    one, other = whole.manifest(key), store.manifest(key)
    assert one is not None and other is not None and one.content == other.content
