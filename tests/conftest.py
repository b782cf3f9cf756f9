"""What all tests share: one thread for each, Ray without tokens, both answers to `precision: auto`.

Small tensors gain nothing from two threads, and lose much on busy cores. Ray reads its way of
authentication once a process, whatever the environment says later.

Beside that: which tests share a worker of pytest-xdist, and how much CPU time a test may take.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import axe as axe
from tests.browser import browser as browser
from tests.browser import downloads as downloads
from tests.s3 import s3_server as s3_server

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
os.environ["RAY_AUTH_MODE"] = "disabled"
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so begins what a shell runs behind itself
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROLES = ("attacks", "defenses", "datasets", "models")
PACKAGE = Path(__file__).parents[1] / "raysweep"
RAY = ("ray", "ray over hosts")
OVER_HOSTS = {
    "test_hosts",
    "test_head",
    "test_chaos",
    "test_submit",
    "test_watch",
    "test_elsewhere",
}
METHODS = {file.stem for role in ROLES for file in (PACKAGE / role).glob("*.py")}
BEGAN = pytest.StashKey[float]()
POLITE = 10  # niceness of workers beside the one whose tests start Ray, which then run as if alone


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "cpu_seconds", "CPU time that a test may take without the mark `slow`", default="60"
    )


@pytest.fixture(params=["float32", "bfloat16"])
def auto(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `precision: auto` stands for, both answers: no test may depend on which CPU runs it."""
    monkeypatch.setenv("RAYSWEEP_PRECISION", request.param)
    return str(request.param)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker whole groups, so that what a group shares is made once.

    Groups by mark (`--dist loadgroup`) come to nothing where pytest-xdist is older than pytest, so
    a group is told by the test's id, which is all that is known where tests are handed out.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid, config.rootpath)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


def pytest_collection(session: pytest.Session) -> None:
    """Import test modules, each worker of pytest-xdist from another place on.

    Rewriting the assertions of all modules takes as long as importing them. On a fresh checkout
    every worker would do so for each; like this it finds most of them written by the others.
    """
    if worker := getattr(session.config, "workerinput", None):
        at = int(worker["workerid"].removeprefix("gw")) / worker["workercount"]
        with contextlib.chdir(session.config.rootpath):
            files = sorted(f for arg in session.config.args for f in Path(arg).rglob("test_*.py"))
        first = int(at * len(files))
        for file in [*files[first:], *files[:first]]:
            with contextlib.suppress(Exception, pytest.skip.Exception):  # raised where collected
                importlib.import_module(module_of(file, session.config.rootpath))


def module_of(file: Path, root: Path) -> str:
    relative = file.relative_to(root) if file.is_absolute() else file
    return ".".join(relative.with_suffix("").parts)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On several workers, begin with Ray, the longest group, and end with the short contracts."""
    if hasattr(config, "workerinput"):
        groups = {item: group(item.nodeid, config.rootpath) for item in items}
        items.sort(key=lambda item: (groups[item] not in RAY, "contracts" in groups[item]))


def group(nodeid: str, root: Path) -> str:
    """Return the group of a test: one of Ray's, that of a method in contracts, or its module's."""
    module, _, test = nodeid.partition("::")
    name, *parameters = re.split(r"[\[\]-]", test)
    if name in ray_tests(root / module):
        return RAY[Path(module).stem in OVER_HOSTS]  # no two Rays of one group run at once
    shared = "/contracts/" in module or module.endswith("test_versions.py")
    names = (part.rpartition("/")[2] for part in parameters)
    method = next((part for part in names if part in METHODS), None)
    return f"contracts {method}" if method and shared else module  # what it finds is found once


@functools.cache
def ray_tests(file: Path) -> frozenset[str]:
    """Return the names of a file's tests that are marked `ray`."""
    return frozenset(
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and "pytest.mark.ray" in map(ast.unparse, node.decorator_list)
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    if hasattr(item.config, "workerinput") and not os.nice(0):
        os.nice(0 if group(item.nodeid, item.config.rootpath) in RAY else POLITE)
    subprocess._cleanup()  # type: ignore[attr-defined]  # children left by tests before this one
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
