"""Ray's runtime environment of a run: the driver's code, which Ray brings to every node.

The package itself travels, and the packages of a user's own methods and networks, each with the
entry points by which its methods are found. What they import of others does not: torch and all that
has to be installed are the same on every host, or the host is given no work (`provenance`).
Nothing of the environment travels here, since Ray's dashboard shows what does.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import raysweep
from raysweep.methods.registry import ROLES
from raysweep.provenance import COMMIT, git_commit

MOST_BYTES = 64 << 20  # of a user's package that travels
EXCLUDED = ("__pycache__/", "*.pyc")


class RuntimeEnv(TypedDict, total=False):
    """A runtime environment, in Ray's own names."""

    py_modules: list[str]
    working_dir: str
    excludes: list[str]
    env_vars: dict[str, str]


@contextmanager
def runtime_env(modules: Iterable[str]) -> Iterator[RuntimeEnv]:
    """Yield the runtime environment that brings this driver's code; its files last as long.

    Where this driver is itself a job that was brought with its code, so are its workers, and the
    environment is empty.

    Args:
        modules: method modules of other packages that the run uses.
    """
    if _brought():
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        named = sorted(set(modules))
        packages = [_package(top) for top in sorted({name.partition(".")[0] for name in named})]
        yield {
            "py_modules": [
                raysweep.__path__[0],
                *(str(path) for path in packages if path is not None),
                *map(str, _distributions(named, Path(folder))),
            ],
            "excludes": list(EXCLUDED),
            "env_vars": {COMMIT: git_commit()},
        }


def _brought() -> bool:
    """Return whether this process runs as a job of Ray, with modules that came with it."""
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return bool((given.get("runtime_env") or {}).get("py_modules"))


def _package(top: str) -> Path | None:
    """Return the folder or the file of a package; None if it is none, or too large to travel."""
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    path = Path(folders[0]) if folders else Path(spec.origin or "")
    if len(folders) > 1 or not (path.is_dir() or path.suffix == ".py"):
        return None
    files = (file for file in path.rglob("*") if file.is_file()) if folders else (path,)
    return path if sum(file.stat().st_size for file in files) <= MOST_BYTES else None


def _distributions(modules: Iterable[str], folder: Path) -> list[Path]:
    """Write what makes the methods of modules known to a host; return the folders.

    A folder of such a name beside a package is an installed distribution to Python.
    """
    found = {}
    for role in ROLES:
        for point in importlib.metadata.entry_points(group=f"raysweep.{role}"):
            if point.module in modules and point.dist is not None:
                found[f"{point.dist.name}-{point.dist.version}.dist-info"] = point.dist
    for name, distribution in found.items():
        (folder / name).mkdir()
        for file in ("METADATA", "entry_points.txt"):
            (folder / name / file).write_text(distribution.read_text(file) or "", encoding="utf-8")
    return [folder / name for name in sorted(found)]
