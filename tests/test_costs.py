"""Expected seconds: sample passes in closed form, scaling of what was timed, guesses by size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raysweep.attacks.badnets import BadNets
from raysweep.attacks.sig import SIG
from raysweep.datasets.digits import Digits
from raysweep.defenses._confusion import SCHEDULES
from raysweep.defenses.confusion_training import ConfusionTraining
from raysweep.defenses.datamodels import Datamodels
from raysweep.defenses.model_mutation import ModelMutation
from raysweep.defenses.none import NoDefense
from raysweep.defenses.perfect_filter import PerfectFilter
from raysweep.defenses.red import RED
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.methods.recipe import Recipe
from raysweep.models.linear import Linear
from raysweep.models.resnet9 import ResNet9
from raysweep.models.six_conv import SixConv
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.models.tiny_groupnorm import TinyGroupNorm
from raysweep.plan.costs import BFLOAT16_CORE, CORE, FILE, FORWARD, GPU, Costs, operations, record
from raysweep.plan.planner import Planner
from raysweep.run.preview import preview
from raysweep.stages.stage import Stage
from raysweep.store import Store
from raysweep.sweep.spec import Sweep
from raysweep.training.operations import forward_operations

pytestmark = pytest.mark.usefixtures("auto")
N = 1297  # training samples of digits


def sweep(*defenses: Any, **given: Any) -> Sweep:
    values: dict[str, Any] = {
        "name": "t", "dataset": Digits(), "model": TinyCNN(), "attacks": [BadNets()],
        "defenses": defenses or [NoDefense()], "seeds": 1,
        "recipe": Recipe(epochs=7, precision="float32"),
    }  # fmt: skip
    return Sweep.model_validate({**values, **given})


def planned(given: Sweep) -> Planner:
    planner = Planner(given)
    for trial in planner.trials:
        planner.route(trial, {})
    return planner


def of_kind(planner: Planner, kind: str) -> list[Stage]:
    return [stage for stage in planner.stages.values() if stage.kind == kind]


def test_confusion_training_counts_the_passes_of_its_released_schedule() -> None:
    # By hand: 160.8 epochs of the whole set; 28,000 batches of 32 clean images, half of
    # them with 32 inspected ones; the set six times forward.
    wanted = 50_000 * 160.8 + 28_000 * 32 * 1.5 + 6 * 50_000 / 3
    assert SCHEDULES["cifar10"].passes(50_000) == pytest.approx(wanted)


def test_work_is_counted_in_sample_passes(tmp_path: Path) -> None:
    models = Datamodels(models=40, per_shard=10, epochs=3, alpha=0.5, first=2)
    planner = planned(sweep(models, ConfusionTraining(schedule="small"), SpectralSignatures()))
    costs = Costs(planner, Store(str(tmp_path)))
    assert {costs.work(stage) for stage in of_kind(planner, "train")} == {7 * N}
    assert {costs.work(stage) for stage in of_kind(planner, "features")} == {FORWARD * N}
    shards = of_kind(planner, "shard")
    assert len(shards) == 4
    assert sum(map(costs.work, shards)) == pytest.approx(40 * 3 * 0.5 * N)
    worked = {stage.method: costs.work(stage) for stage in of_kind(planner, "defend")}
    assert worked == {
        "datamodels": N,
        "confusion_training": pytest.approx(SCHEDULES["small"].passes(N)),
        "spectral_signatures": N,
    }


def test_what_was_timed_scales_with_the_work(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    planner = planned(sweep())
    (short,) = of_kind(planner, "train")
    first = Costs(planner, store)
    assert not first.known(short)
    record(store, {first.name(short): [(14.0, first.work(short)), (28.0, first.work(short))]})
    again = Costs(planner, store)
    assert again.known(short) and again(short) == pytest.approx(21.0)
    longer = planned(sweep(recipe=Recipe(epochs=70, precision="float32")))
    (train,) = of_kind(longer, "train")
    assert Costs(longer, store)(train) == pytest.approx(210.0)
    other = planned(sweep(model=TinyCNN(width=8)))
    (train,) = of_kind(other, "train")
    assert not Costs(other, store).known(train)


def test_a_method_that_is_told_all_teaches_no_pace_of_hours(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    given = [RED.model_validate({"knows": knows}) for knows in ("pattern", "target")]
    planner = planned(sweep(*given))
    runs = of_kind(planner, "defend")
    told, searching = sorted(runs, key=Costs(planner, store).work)
    costs = Costs(planner, store)
    assert costs.work(told) == FORWARD * N and costs.work(searching) == given[1].passes(N, 7, 10)
    record(store, {costs.name(told): [(2.0, costs.work(told))]})
    assert costs.name(told) == costs.name(searching)
    assert Costs(planner, store)(searching) == pytest.approx(
        2.0 * costs.work(searching) / costs.work(told)
    )


def test_old_timings_are_forgotten(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for pace in (1.0,) * 200 + (3.0,) * 50:
        record(store, {"train/x": [(pace, 1.0)]})
    planner = planned(sweep())
    assert Costs(planner, store).recorded["train/x"] > 2  # of all 250 the mean is 1.4


@pytest.mark.parametrize(
    "raw", [b"{", b"[1]", b'{"train/x": 2}', b'{"train/x": ["a", 1]}', b'{"train/x": [0.5, 0]}']
)
def test_damaged_timings_are_passed_over(tmp_path: Path, raw: bytes) -> None:
    store = Store(str(tmp_path))
    store.write(FILE, raw)
    planner = planned(sweep())
    assert not Costs(planner, store).recorded


def test_a_recipe_of_no_epochs_is_timed_too(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    planner = planned(sweep(recipe=Recipe(epochs=0, precision="float32")))
    (train,) = of_kind(planner, "train")
    costs = Costs(planner, store)
    record(store, {costs.name(train): [(0.5, costs.work(train))]})
    assert Costs(planner, store).known(train)


def test_a_guess_grows_with_the_network_and_shrinks_on_a_gpu(tmp_path: Path, auto: str) -> None:
    def seconds(**given: Any) -> float:
        recipe = Recipe(epochs=700, precision="float32")  # beyond the least guess on any core
        planner = planned(sweep(recipe=recipe, **given))
        (train,) = of_kind(planner, "train")
        return Costs(planner, Store(str(tmp_path)))(train)

    small, large = (operations(model, Digits(), 10) for model in (TinyCNN(), ResNet9()))
    core = {"float32": CORE, "bfloat16": BFLOAT16_CORE}[auto]
    assert seconds() == pytest.approx(700 * N * small / core)
    assert seconds(model=ResNet9()) == pytest.approx(700 * N * large / core)
    half = {"gpu": {"gpu": 0.5}}
    assert seconds(model=ResNet9(), resources=half) == pytest.approx(700 * N * large / (GPU / 2))


def test_operations_in_closed_form() -> None:
    # A product and a sum for each weight, and twice as many backward.
    assert operations(Linear(), Digits(side=8), 10) == pytest.approx(3 * 2 * (3 * 8 * 8) * 10)


def test_subset_models_are_counted_by_their_own_network(tmp_path: Path) -> None:
    planner = planned(sweep(Datamodels(models=20, per_shard=10, first=2), model=ResNet9()))
    costs = Costs(planner, Store(str(tmp_path)))
    for shard in of_kind(planner, "shard"):
        assert costs.name(shard) == f"shard/datamodels/{TinyGroupNorm().label}"


def test_a_plan_bounds_what_decisions_may_add(tmp_path: Path) -> None:
    given = sweep(PerfectFilter(), SpectralSignatures(), seeds=2)
    seen = preview(given, Store(str(tmp_path)))
    planner = planned(given)
    costs = Costs(planner, Store(str(tmp_path)))
    trainings = sum(map(costs, of_kind(planner, "train")))
    assert seen.undecided == 4 and seen.below == 12
    assert seen.below_seconds == pytest.approx(2 * trainings)
    assert seen.seconds == pytest.approx(sum(map(costs, planner.stages.values())))


def cautions(tmp_path: Path, *defenses: Any, **given: Any) -> list[str]:
    seen = preview(sweep(*defenses, **given), Store(str(tmp_path)))
    return [line.partition(" on digits: ")[0] for line in seen.forecasts]


def test_a_plan_warns_of_an_attack_that_takes_more_than_half_of_its_pool(tmp_path: Path) -> None:
    assert cautions(tmp_path, attacks=[SIG(rate=0.045, target=8), BadNets(rate=0.4)]) == []
    told = preview(
        sweep(attacks=[SIG(rate=0.09, target=8), BadNets(rate=0.6)]), Store(str(tmp_path))
    ).forecasts
    assert any("rate 0.6 poisons 778 of the 1297 images" in line for line in told)
    assert any(line.startswith("sig(target=8) on digits: rate 0.09 poisons 116") for line in told)


def test_a_plan_warns_of_mutation_where_the_head_is_the_only_dense_layer(tmp_path: Path) -> None:
    assert cautions(tmp_path, ModelMutation()) == ["model_mutation"]
    assert cautions(tmp_path, ModelMutation(sign="adversarial")) == []
    assert cautions(tmp_path, ModelMutation(), model=SixConv()) == []


def test_a_bound_counts_the_parts_after_a_pause(tmp_path: Path) -> None:
    paused = Datamodels(models=80, per_shard=10, first=20, until=0.9)
    planner = planned(sweep(paused))
    costs = Costs(planner, Store(str(tmp_path)))
    shards, (victim,) = of_kind(planner, "shard"), of_kind(planner, "train")
    assert len(shards) == 2
    seen = preview(sweep(paused), Store(str(tmp_path)))
    # Six shards, a reduction at 20, at 40 and at 80 of which one is known, and what follows.
    assert (seen.undecided, seen.below) == (1, 6 + 2 + 3)
    assert seen.below_seconds == pytest.approx(6 * costs(shards[0]) + costs(victim))


def test_operations_are_those_that_torch_counts_without_its_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of attention too, whose fused kernels have no formula."""
    layer = torch.nn.TransformerEncoderLayer(36, 2, 16, batch_first=True)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(2), layer).eval()
    images = torch.zeros(1, 3, 8, 8)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch._dynamo", None)  # whoever imports it fails
        counted = forward_operations(network, images)
    with FlopCounterMode(display=False) as counter:
        network.to("meta")(images.to("meta"))
    assert counted == counter.get_total_flops() > 0
