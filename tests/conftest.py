"""What all tests share: one thread for each, Ray without tokens, both answers to `precision: auto`.

Small tensors gain nothing from two threads, and lose much on busy cores. Ray reads its way of
authentication once a process, whatever the environment says later.

Beside that: which tests share a worker of pytest-xdist, and how much CPU time a test may take.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
os.environ["RAY_AUTH_MODE"] = "disabled"
BEGAN = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "cpu_seconds", "CPU time that a test may take without the mark `slow`", default="60"
    )


@pytest.fixture(params=["float32", "bfloat16"])
def auto(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `precision: auto` stands for, both answers: no test may depend on which CPU runs it."""
    monkeypatch.setenv("RAYSWEEP_PRECISION", request.param)
    return str(request.param)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each worker of pytest-xdist whole groups, so that what a group shares is made once.

    Ray's group comes first, as it is the longest, and the many short ones of the contracts last.
    """
    if not hasattr(config, "workerinput"):
        return
    groups = {}
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        groups[item] = group(item.nodeid, params, {mark.name for mark in item.iter_markers()})
        item.add_marker(pytest.mark.xdist_group(groups[item]))
    items.sort(key=lambda item: (groups[item] != "ray", "/contracts/" in item.nodeid))


def group(nodeid: str, params: Mapping[str, Any], marks: Collection[str]) -> str:
    """Return the group of a test: Ray's, that of a method in the contracts, or its module's."""
    if "ray" in marks:
        return "ray"  # no two Rays run at once
    module = nodeid.partition("::")[0]
    return f"{module}-{params['name']}" if "/contracts/" in module and "name" in params else module


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[BEGAN] = cpu_seconds()
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that takes too much CPU time, its fixtures included, and is not marked `slow`.

    CPU time is that of this process and of its children that have ended, so that a busy machine
    fails no test.
    """
    yield
    taken, most = cpu_seconds() - item.stash[BEGAN], float(item.config.getini("cpu_seconds"))
    if taken > most and not item.get_closest_marker("slow"):
        pytest.fail(
            f"took {taken:.1f} s of CPU time, a test without the mark `slow` may take {most:g} s: "
            f"make it smaller, or mark it",
            pytrace=False,
        )


def cpu_seconds() -> float:
    return sum(os.times()[:4])
