"""Requests that no node of a cluster can meet: told after a while, and waited for no longer.

A class of stages may ask for GPUs where there are none, or for more memory than any node has, or a
cluster may have no workers. Stages of the other class go on; if a node comes that meets the
request, so do these.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Mapping, Sequence

import ray
from ray.experimental import internal_kv

from raysweep.run.cluster.nodes import bundles, fits_any_host
from raysweep.sweep.spec import Sweep

WAIT_SECONDS = 30.0  # for a node that meets a request
BACK_SECONDS = 600.0  # where there was one before: spot machines come again
MOST_KINDS = 6  # of nodes that one line tells


class Unmet:
    """The classes of stages that no node can run, each with the line that says so."""

    def __init__(self, sweep: Sweep) -> None:
        self._asked = bundles(sweep)
        self._since: dict[str, float] = {}
        self._met: set[str] = set()
        self.told: dict[str, str] = {}

    def look(self, classes: Collection[str]) -> list[str]:
        """Look at the nodes that are up; return what is to be said now, a line each.

        Args:
            classes: of the stages that are handed out.
        """
        now, lines = time.monotonic(), []
        for name in sorted({*classes, *self.told}):
            asked = self._asked[name]
            if fits_any_host(asked, ()):
                self._met.add(name)
                self._since.pop(name, None)
                if self.told.pop(name, ""):
                    lines.append(f"a node has come that can run stages of resources.{name}")
                continue
            waited = now - self._since.setdefault(name, now)
            enough = BACK_SECONDS if name in self._met else WAIT_SECONDS
            if name not in self.told and waited >= enough and not autoscaler_starts_hosts():
                self.told[name] = _line(name, asked, waited)
                lines.append(self.told[name])
        return lines


def autoscaler_starts_hosts() -> bool:
    """Return whether an autoscaler says that it is starting nodes."""
    with contextlib.suppress(Exception):  # the head does not answer, or says it in another way
        raw = internal_kv._internal_kv_get("__autoscaling_status") or b"{}"
        report = json.loads(raw).get("autoscaler_report") or {}
        if report.get("pending_nodes") or report.get("pending_launches"):
            return True
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return bool(status.pending_nodes or status.pending_launches)
    return False


def _line(name: str, asked: Mapping[str, float], waited: float) -> str:
    """Return the line on a request that no node meets: what is asked, what each node has."""
    hosts: dict[str, list[str]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            host = str(node["NodeManagerHostname"])
            hosts.setdefault(_amounts(asked, node["Resources"]), []).append(host)
    most = sorted(hosts, key=lambda kind: -len(hosts[kind]))[:MOST_KINDS]
    told = [f"{_named(hosts[kind])} has {kind}" for kind in most]
    return (
        f"resources.{name}: a stage asks for {_amounts(asked, asked)}, which no node of the "
        f"cluster has, after {waited:.0f} s ({'; '.join(told) or 'no node is up'}); such stages "
        f"are not run: ask for less, or add such a node and launch again"
    )


def _amounts(asked: Mapping[str, float], have: Mapping[str, float]) -> str:
    """Return the amounts of what is asked for: `1 CPU, 0 GPU, 2.5 GiB of memory`."""
    return ", ".join(
        f"{have.get(kind, 0) / (1 << 30):.3g} GiB of memory"
        if kind == "memory"
        else f"{have.get(kind, 0):g} {kind}"
        for kind in asked
    )


def _named(hosts: Sequence[str]) -> str:
    return hosts[0] if len(hosts) == 1 else f"{len(hosts)} nodes like {hosts[0]}: each"
