"""A finished sweep in a store, without anything having been trained."""

from __future__ import annotations

import time

from raysweep.attacks.badnets import BadNets
from raysweep.datasets.digits import Digits
from raysweep.defenses.none import NoDefense
from raysweep.methods import Recipe
from raysweep.models.linear import Linear
from raysweep.plan.planner import Planner
from raysweep.results import history
from raysweep.results.description import Description, write_description
from raysweep.results.rows import Collector
from raysweep.store import Store
from raysweep.sweep.spec import Sweep, Track, to_plain, to_yaml

METRICS = {"ca": 0.9, "ca_n": 100, "asr": 0.8, "asr_n": 90, "ra": 0.1, "ra_n": 90, "n_train": 200}


def finished_sweep(store: Store, seeds: int, track: Track, name: str = "finished") -> Sweep:
    """Write a finished sweep: two attacks without a defense, and so many seeds.

    Every stage has its manifest, with numbers of its own, and the records are written.
    """
    sweep = Sweep(
        name=name, dataset=Digits(size=200), model=Linear(), defense=NoDefense(), seeds=seeds,
        attacks=(BadNets(rate=0.05), BadNets(rate=0.1)), track=track,
    )  # fmt: skip
    planner = Planner(sweep)
    stored: set[str] = set()
    for number, trial in enumerate(planner.trials):
        route = planner.route(trial, {})
        for key in (*route.named.values(), *planner.stages):
            if key not in stored:
                outcome = METRICS | {"ca": number / 1e6} if key == route.evaluate else {}
                store.put(key, outcome=outcome, info={"seconds": 0.1, "host": "here"})
                stored.add(key)
    write_description(
        store, name,
        Description(
            name=name, text=to_yaml(sweep), sweep=to_plain(sweep), created_at=time.time(),
            storage=store.where(), precision=planner.resolved(Recipe()).precision, concluded=False,
        ),
    )  # fmt: skip
    collector = Collector(planner, store, {}, {})
    rows, stages = collector.rows(name), collector.stages({})
    history.store_records(store, name, rows, stages, Description())
    return sweep
