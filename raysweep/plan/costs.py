"""Durations of stages: as long as stages like them took, else a guess from the network's size.

The work of a stage is counted in sample passes: one sample once forward and backward through the
network; forward alone counts a third. Stages without a network count the samples they handle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache

from raysweep.datasets import Dataset, Shape
from raysweep.errors import StoreError
from raysweep.identity import Json
from raysweep.models import Model
from raysweep.plan.planner import Planner
from raysweep.stages.stage import FORWARD, Stage
from raysweep.store import Store

FILE = "paces.json"
REMEMBERED = 50  # older stages are forgotten: machines change
# Floating-point operations per second that training reaches, by order of magnitude: a core with
# AVX2, a core with bfloat16 units, and a GPU: half an hour of an A100 for 100 epochs of ResNet-18
# on 50,000 images (Confusion Training's authors).
CORE, BFLOAT16_CORE, GPU = 6e10, 3e11, 1e13
LEAST_SECONDS = 0.02
LEAST_GUESS = 0.5  # with a network: too little, and all stages of a small sweep go to one worker
SIDE = 32  # pixels, where a dataset does not say how large its images are


def pace_name(stage: Stage) -> str:
    """Return the name of all stages that are timed as one: kind, method and network."""
    network = stage.work.network
    return f"{stage.kind}/{stage.method}" + (f"/{network.label}" if network else "")


class Costs:
    """Seconds that the stages of a plan are expected to take; the plan may grow."""

    def __init__(self, planner: Planner, store: Store) -> None:
        self.planner = planner
        self.recorded = {name: pace for name, (pace, _) in _recorded(store).items()}
        self._seconds: dict[str, float] = {}

    def __call__(self, stage: Stage) -> float:
        """Return the seconds that a stage is expected to take."""
        if stage.key not in self._seconds:
            pace, least = self.recorded.get(self.name(stage), 0.0), LEAST_SECONDS
            if not pace:
                pace = self._guess(stage)
                least = LEAST_GUESS if stage.work.network else LEAST_SECONDS
            self._seconds[stage.key] = max(self.work(stage) * pace, least)
        return self._seconds[stage.key]

    def known(self, stage: Stage) -> bool:
        """Return whether stages like this one have been timed."""
        return self.name(stage) in self.recorded

    def name(self, stage: Stage) -> str:
        """Return the name under which paces are kept, as `pace_name` has it."""
        return pace_name(stage)

    def work(self, stage: Stage) -> float:
        """Return the stage's sample passes, or samples where no network is at work.

        At least those of every sample once forward: a method whose training takes no passes would
        else teach a pace that makes hours of those that take some.
        """
        dataset = self._dataset(stage)
        if dataset is None:
            return 1.0
        facts = self.planner.facts(dataset)
        samples = len(facts.labels)
        return max(stage.work.passes(samples, facts.num_classes), samples * FORWARD)

    def _guess(self, stage: Stage) -> float:
        """Return seconds per unit of work."""
        network, dataset = stage.work.network, self._dataset(stage)
        if network is None or dataset is None:
            return stage.work.PACE
        wanted = self.planner.sweep.resources
        core = BFLOAT16_CORE if self.planner.bfloat16 else CORE
        share = min(wanted.gpu.gpu, 1.0)
        speed = GPU * share if share else core * stage.work.threads
        return operations(network, dataset, self.planner.facts(dataset).num_classes) / speed

    def _dataset(self, stage: Stage) -> Dataset | None:
        """Return the dataset that a stage decodes, or whose decoded form it reads."""
        key = stage.inputs.get("data")
        return (self.planner.stages[key] if key else stage).work.decoded


@cache
def operations(network: Model, dataset: Dataset, num_classes: int) -> float:
    """Return floating-point operations of a sample pass; the network is built for it.

    One that takes no other images than its dataset's is counted as dense: two for each weight.
    """
    import torch

    from raysweep.training.operations import forward_operations

    shape = shape_of(dataset, num_classes)
    with torch.random.fork_rng(devices=[]):
        built = network.build(shape).eval()
    try:
        size = (shape.channels, shape.height, shape.width)
        forward = forward_operations(built, torch.zeros(1, *size))
    except Exception:  # noqa: BLE001  whatever a network of the user's raises at a guessed shape
        forward = 2 * sum(weights.numel() for weights in built.parameters())
    return forward / FORWARD


def shape_of(dataset: Dataset, num_classes: int) -> Shape:
    """Return the shape of a dataset's samples as it is supposed to be before it is decoded."""
    side = getattr(dataset, "side", SIDE)
    channels, height, width = (
        (3, side, side) if dataset.DOMAIN == "images" else (getattr(dataset, "features", 1), 1, 1)
    )
    return Shape(
        channels=channels, height=height, width=width, num_classes=num_classes,
        mean=(0.0,) * channels, std=(1.0,) * channels,
    )  # fmt: skip


def record(store: Store, spent: Mapping[str, list[tuple[float, float]]]) -> None:
    """Keep how long stages took, for the next plan; a storage that fails costs this alone.

    Args:
        store: where it is kept.
        spent: name of `Costs` → seconds and work of each stage.
    """
    if not spent:
        return
    try:
        known = _recorded(store)
    except StoreError:
        return  # nothing replaces paces that could not be read
    for name, took in spent.items():
        pace, n = known.get(name, (0.0, 0))
        n = min(n, REMEMBERED)
        paces = [seconds / max(work, 1.0) for seconds, work in took]  # a recipe of no epochs: 0
        known[name] = ((pace * n + math.fsum(paces)) / (n + len(paces)), n + len(paces))
    store.try_write(FILE, json.dumps(known).encode())


def _recorded(store: Store) -> dict[str, tuple[float, int]]:
    """Return seconds per unit of work by name, and of how many stages; empty for a new store."""
    try:
        found = json.loads(store.read(FILE) or b"{}")
    except (ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {name: pace for name, entry in entries if (pace := _pace(entry)) is not None}


def _pace(entry: Json) -> tuple[float, int] | None:
    """Return the pace of an entry and the number of stages behind it; None if it is damaged."""
    if not isinstance(entry, list) or len(entry) != 2:
        return None
    pace, n = entry
    if not (isinstance(n, int) and n > 0 and isinstance(pace, int | float)):
        return None
    return (float(pace), n) if 0 <= pace < math.inf else None
