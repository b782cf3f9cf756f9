"""Optuna's samplers and pruners, every argument that changes what they suggest written out.

With the defaults of Optuna 5.0: a later version that has others would search otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import optuna

from raysweep.sweep.tuning import Tune
from raysweep.tuning.space import Space

RANDOM_FIRST = 10  # candidates before a model of them is made


def sampler_of(tune: Tune, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of a search."""
    return SAMPLERS[tune.sampler](tune, space, seed)


def _tpe(tune: Tune, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    one = len(tune.metric) == 1
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=RANDOM_FIRST,
        n_ei_candidates=24,
        multivariate=one,
        # Parameters under a condition are modeled together with those that share it.
        group=one and any(values.when for values in space.values()),
        constant_liar=True,
        warn_independent_sampling=False,
    )


def _gp(tune: Tune, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(
        seed=seed,
        n_startup_trials=RANDOM_FIRST,
        deterministic_objective=False,
        warn_independent_sampling=False,
    )


def _nsga2(tune: Tune, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIISampler(
        seed=seed,
        population_size=50,
        mutation_prob=None,
        crossover=optuna.samplers.nsgaii.UniformCrossover(swapping_prob=0.5),
        crossover_prob=0.9,
        swapping_prob=0.5,
    )


def _random(tune: Tune, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: Mapping[str, Callable[[Tune, Space, int], optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "random": _random,
    "grid": _random,  # its points are enqueued: Optuna's own grid cannot be asked and told
    "nsga2": _nsga2,
}
PRUNERS: Mapping[str, Callable[[int], optuna.pruners.BasePruner]] = {
    "none": lambda _: optuna.pruners.NopPruner(),
    "median": lambda _: optuna.pruners.MedianPruner(
        n_startup_trials=5, n_warmup_steps=0, interval_steps=1, n_min_trials=1
    ),
    "hyperband": lambda steps: optuna.pruners.HyperbandPruner(
        min_resource=1, max_resource=steps, reduction_factor=3, bootstrap_count=0
    ),
    "wilcoxon": lambda _: optuna.pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=2),
}
