"""The code that runs on a host: compared before it works, recorded with everything it makes.

`refusal` and all that it calls travel to a worker as they are, not by name: the raysweep that is
installed there may be any other, or none. They use the standard library alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from raysweep import __version__

PACKAGES = ("torch", "torchvision", "ray", "numpy", "scikit-learn", "optuna", "wandb")

NONE_OF = "none of "
COMMIT = "RAYSWEEP_COMMIT"  # of code that was brought to a host by its driver


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code that decides the results, hence must be the same on every host of a run.

    Attributes:
        source: digest of raysweep's source files, and of `modules`; `none` without them.
        python: its minor version.
        torch: its version without the build, which follows `+`.
        torchvision: its version without the build.
        modules: method modules of other packages that the run uses.
    """

    source: str
    python: str
    torch: str
    torchvision: str
    modules: tuple[str, ...] = ()


def code_here(modules: Iterable[str] = ()) -> Code:
    """Return the code that this host would run.

    Args:
        modules: method modules of other packages that belong to it.
    """
    named = tuple(sorted(set(modules)))
    return Code(
        source=_source(named),
        python=".".join(platform.python_version_tuple()[:2]),
        torch=_version("torch").partition("+")[0],
        torchvision=_version("torchvision").partition("+")[0],
        modules=named,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _source(modules: Sequence[str]) -> str:
    """Return a digest of the source files, the same for all line endings."""
    package = _origin("raysweep")
    if package is None:
        return "none"
    folder = package.parent
    files = {
        f"raysweep/{file.relative_to(folder).as_posix()}": file for file in folder.rglob("*.py")
    }
    for module in modules:
        origin = _origin(module)
        if origin is None:
            return f"{NONE_OF}{module}"
        files[module] = origin
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        content = hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:12]


def _origin(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package that holds it
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def refusal(asked: dict[str, Any]) -> str:
    """Return the reason why this host may not work for a driver, or "" if it may.

    Args:
        asked: the driver's `Code`, as a dict.
    """
    here = asdict(code_here(asked["modules"]))
    host = socket.gethostname()
    words = {"source": "raysweep source", "python": "Python"}
    missing = here["source"].removeprefix(NONE_OF)
    if here["source"] != asked["source"] and missing != here["source"]:
        return (
            f"host {host} is given no work: module {missing}, which this sweep uses, is not there; "
            f"install its package on that host, or name its folder in PYTHONPATH there, restart "
            f"Ray on it, and launch again"
        )
    differing = [name for name in here if here[name] != asked[name] and name != "modules"]
    if differing:
        have = ", ".join(f"{words.get(name, name)} {here[name]}" for name in differing)
        want = ", ".join(f"{words.get(name, name)} {asked[name]}" for name in differing)
        return (
            f"host {host} is given no work: it has {have}, and the driver has {want}; bring both "
            f"to the same (one torch, and one checkout or release that nobody changes while a "
            f"launch runs), restart Ray on that host, and launch again"
        )
    try:
        importlib.import_module("raysweep.stages.perform")
    except Exception as error:  # noqa: BLE001  whatever it is, no stage can run here
        return (
            f"host {host} is given no work: raysweep cannot be imported there "
            f"({type(error).__name__}: {error}); repair its installation, and restart Ray on it"
        )
    return ""


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and everything that can change a number."""
    own = {"raysweep": __version__, "python": platform.python_version()}
    return own | {name: v for name in PACKAGES if (v := _version(name)) != "none"}


@cache
def git_commit() -> str:
    """Return the commit of raysweep's checkout, with `+dirty` if it has changes; else empty.

    Code that was brought to this host lies in no checkout: its driver said the commit.
    """
    if COMMIT in os.environ:
        return os.environ[COMMIT]

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        run = subprocess.run(
            ["git", *words],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
        return run.stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", "provenance.py")
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+dirty" if dirty else "") if tracked else ""
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def of_host(device: str) -> dict[str, Any]:
    """Return the facts that an artifact records of the host that made it, read once a process.

    Args:
        device: where the stage computed, `cpu` or `cuda`.

    Returns:
        commit and versions of its code; the processor's or GPU's name; NVIDIA's driver, None for
        the CPU.
    """
    import torch

    gpu = device != "cpu"
    return {
        "commit": git_commit(),
        "versions": versions(),
        "device_name": torch.cuda.get_device_name() if gpu else _first("/proc/cpuinfo", CPU),
        "driver": _driver() if gpu else None,
    }


CPU = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)
DRIVER = re.compile(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", re.MULTILINE)


def _driver() -> str | None:
    """Return the version of NVIDIA's driver; None if neither the kernel nor nvidia-smi tells it."""
    if version := _first("/proc/driver/nvidia/version", DRIVER):
        return version
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(
            asked, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.split("\n")[0].strip() or None


def _first(file: str, pattern: re.Pattern[str]) -> str | None:
    """Return the first match of a pattern in a file of the system, or None."""
    try:
        match = pattern.search(Path(file).read_text("utf-8", "replace"))
    except OSError:
        return None
    return match[1].strip() if match else None
