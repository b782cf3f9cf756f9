"""The cost of a search: the stages of all its candidates, as if it had been run by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from raysweep.attacks import Attack
from raysweep.plan.route import followed
from raysweep.tuning.measurements import Measurements
from raysweep.tuning.search import Search
from raysweep.tuning.stored import needed


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The number of stages of a search, and the seconds and GPU seconds that they took."""

    stages: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0


def spent(search: Search, measurements: Measurements) -> Spent:
    """Return the cost of a search's candidates; nothing if it replayed stored scores alone.

    Of a defense's search that is the defense's own work. A candidate of an attack has a victim of
    its own, so that all its stages count, each once, but for the decoded dataset.
    """
    if search.study is None:
        return Spent()
    if isinstance(search.subject, Attack):
        return _of_stages(search, measurements)
    tried, settings = search.evaluated(measurements), len(search.settings)
    seconds, gpu_seconds = (
        float(np.nansum([one.metrics.get(cost, math.nan) for one in tried])) * settings
        for cost in ("seconds", "gpu_seconds")
    )
    return Spent(seconds=seconds, gpu_seconds=gpu_seconds)


def _of_stages(search: Search, measurements: Measurements) -> Spent:
    planner, store = measurements.planner, measurements.store
    keys = set[str]()
    for tried in search.evaluated(measurements):
        for setting in search.settings:
            trial = search.trial_in(setting, tried.parameters)
            keys |= needed(planner, followed(partial(planner.route, trial), store.outcome))
    manifests, _ = store.manifests(sorted(keys))
    infos = [manifest.info for manifest in manifests.values()]
    return Spent(
        stages=len(keys),
        seconds=sum(float(info.get("seconds", 0.0)) for info in infos),
        gpu_seconds=sum(float(info.get("gpu_seconds", 0.0)) for info in infos),
    )
