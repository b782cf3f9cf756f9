"""A Ray cluster: the way to it, its room for stages, and which of its hosts are of no use."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import ray
from ray import tune
from ray.experimental import internal_kv
from ray.util.placement_group import PlacementGroup, placement_group

from raysweep.errors import HostError, PlanError
from raysweep.run.cluster.address import found
from raysweep.run.cluster.runtime_env import runtime_env
from raysweep.run.cluster.temporary import short_folder
from raysweep.sweep.spec import Sweep


def connect(address: str | None, modules: Iterable[str] = ()) -> str:
    """Connect to the cluster at an address, or start one on this machine.

    Args:
        address: of a running cluster; none: start Ray here.
        modules: method modules of other packages, which travel to its nodes with our own.

    Returns:
        HOST:PORT of the head.

    Raises:
        PlanError: if there is no cluster at the address, or this driver may not use it.
        HostError: if Ray cannot be started on this machine.
    """
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        try:
            ray.init(address="local", include_dashboard=False, _temp_dir=short_folder(), **quiet)
        except Exception as error:  # noqa: BLE001  Ray has no one class for what may go wrong
            raise HostError(
                f"Ray cannot be started on this machine ({' '.join(str(error).split())}); check "
                f"memory, processors and the room in {tempfile.gettempdir()}, then launch again; "
                f"--inline does without Ray"
            ) from None
        return str(ray.get_runtime_context().gcs_address)
    head = found(address)
    try:
        with runtime_env(modules) as code:
            ray.init(address=head, runtime_env=code, **quiet)
    except Exception as error:  # noqa: BLE001  Ray has no one class for what may go wrong
        raise PlanError(
            f"the Ray cluster at --address {address!r} does not take this driver ({error}); check "
            f"that both run the same Ray and Python, and that it works (ray status)"
        ) from None
    return head


def bundles(sweep: Sweep) -> dict[str, dict[str, float]]:
    """Return the resources that a worker of each class takes of its host, in Ray's names."""
    found = {}
    for name, size in (("cpu", sweep.resources.cpu), ("gpu", sweep.resources.gpu)):
        asked = {"CPU": size.cpu, "GPU": size.gpu, "memory": size.memory_bytes}
        found[name] = {kind: amount for kind, amount in asked.items() if amount or kind == "CPU"}
    return found


def slots_of(cpus: float, gpus: float, sweep: Sweep, max_concurrent: int | None) -> dict[str, int]:
    """Return the number of stages of each class that fit at once, from 1 to `max_concurrent`."""
    slots = {}
    for name, size in (("cpu", sweep.resources.cpu), ("gpu", sweep.resources.gpu)):
        fit = cpus / size.cpu if size.cpu else cpus
        if size.gpu:
            fit = min(fit, gpus / size.gpu)
        slots[name] = max(1, min(int(fit), max_concurrent or int(fit) or 1))
    return slots


def room(refused: Collection[str] = ()) -> dict[str, float]:
    """Return the resources of all hosts that are up, without those of some node ids."""
    total: Counter[str] = Counter()
    for resources in hosts(refused):
        total.update(resources)
    return dict(total)


def fits_any_host(asked: Mapping[str, float], refused: Collection[str]) -> bool:
    """Return whether a worker fits on a host that is up, without some node ids."""
    return any(
        all(resources.get(kind, 0) >= amount for kind, amount in asked.items())
        for resources in hosts(refused)
    )


def hosts(refused: Collection[str] = ()) -> list[dict[str, float]]:
    """Return the resources of every host that is up, without some node ids."""
    up = (node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in refused)
    return [node["Resources"] for node in up]


def check_room(sweep: Sweep, have: Mapping[str, float]) -> None:
    """Check that this machine has the resources of each class; a cluster may still grow.

    Raises:
        PlanError: names the field, what is asked, and what there is.
    """
    for name, asked in bundles(sweep).items():
        for kind, wanted in asked.items():
            if wanted > have.get(kind, 0):
                raise PlanError(
                    f"resources.{name}.{kind.lower()}: a stage asks for {wanted:g}, this machine "
                    f"has {have.get(kind, 0):g}; ask for less, or launch on a cluster (--address)"
                )


class Shape(tune.PlacementGroupFactory):  # type: ignore[misc]
    """The resources of a worker, on any host but the ones that refused.

    Shapes that ask the same are equal, whatever hosts they avoid, so that Tune gives a batch to a
    worker that is up already.
    """

    def __init__(self, bundle: dict[str, float], refused: list[str]) -> None:
        super().__init__([bundle])
        self.refused = refused

    def to_placement_group(self) -> PlacementGroup:
        """Return the room that Ray is asked for."""
        nodes = f"!in({','.join(self.refused)})"
        selectors = [{"ray.io/node-id": nodes}] if self.refused else None
        return placement_group(self.bundles, bundle_label_selector=selectors)


def shape_of(sweep: Sweep) -> Callable[[Mapping[str, str]], Shape]:
    """Return a function from a packed batch to the shape of its class.

    It travels to the workers, with `Shape`, by value.
    """
    asked = bundles(sweep)
    return lambda config: Shape(
        asked[config["resource"]] | json.loads(config["larger"]), json.loads(config["refused"])
    )


def refusals(prefix: str) -> dict[str, str]:
    """Return why hosts refuse to work for a run, by node id."""
    keys = [key.decode() for key in internal_kv._internal_kv_list(prefix)]
    return {
        key.removeprefix(prefix): (internal_kv._internal_kv_get(key) or b"").decode()
        for key in keys
    }
