"""A check of this machine: versions, devices, data, W&B, storage, disk and memory.

Nothing is asked of the network but the storage.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from raysweep import methods
from raysweep.datasets import Dataset
from raysweep.errors import PlanError, StoreError
from raysweep.paths import setting
from raysweep.provenance import versions
from raysweep.results.records import storage_uri
from raysweep.results.wandb_runs import key_source
from raysweep.run.cluster.jobs_server import EXTRA
from raysweep.store import Store
from raysweep.sweep.resources import ResourceClass, Resources, bfloat16_is_fast
from raysweep.sweep.spec import Sweep, Track
from raysweep.training.device import try_kernel

GIB = 1 << 30
JOBS_PACKAGES = ("aiohttp", "aiohttp_cors", "grpc", "opencensus", "prometheus_client", "virtualenv")
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor: whether a thing is there, and whether the sweep needs it."""

    text: str
    found: bool = True
    needed: bool = False


def print_doctor(console: Console, storage: str | None, sweep: Sweep | None = None) -> bool:
    """Print the state of this machine and the needs of a sweep; return whether all are met.

    Without a sweep only the storage is needed.
    """
    resources = sweep.resources if sweep else Resources()
    complete = True
    for check in _checks(storage, sweep, resources):
        lacking = check.needed and not check.found
        complete = complete and not lacking
        mark = "missing: " if lacking else ""
        console.print(f"{mark}{check.text}", style="red" if lacking else None)
    if sweep is not None:
        said = "this machine has all that it needs" if complete else "not all that it needs is here"
        console.print(f"{sweep.name}: {said}")
    return complete


def _checks(storage: str | None, sweep: Sweep | None, resources: Resources) -> Iterator[Check]:
    for package, version in versions().items():
        yield Check(text=f"{package} {version}")
    yield from _machine(resources)
    yield from _data(sweep)
    yield _wandb(sweep.track if sweep else Track())
    yield _jobs_server()
    store = Store(storage_uri(storage))
    try:
        store.check()
        yield Check(text=f"storage: {store.where()} is writable")
    except StoreError as error:
        yield Check(text=f"storage: {error}", found=False, needed=True)
        return
    free = store.free_bytes()
    if free is not None:
        text = f"disk: {free / GIB:.1f} GiB free for the storage"
        yield Check(text=text, found=free >= GIB, needed=sweep is not None)


def _machine(resources: Resources) -> Iterator[Check]:
    classes = (resources.cpu, resources.gpu)
    cpus = os.cpu_count() or 1
    fast = "bfloat16" if bfloat16_is_fast(Resources()) else "float32"
    yield _enough(f"{cpus} CPUs (precision auto: {fast})", "CPUs", cpus, classes, "cpu")
    kernels = try_kernel()
    # A GPU's name is followed by a colon where its kernel failed; then none is relied on.
    usable = 0 if kernels.startswith("no GPU") or ": " in kernels else kernels.count(", ") + 1
    yield _enough(f"GPUs, one kernel tried on each: {kernels}", "GPUs", usable, classes, "gpu")
    total, available = _memory()
    if total:
        free = f", {available / GIB:.1f} GiB free" if available else ""
        text = f"memory: {total / GIB:.1f} GiB{free}"
        yield _enough(text, "bytes of memory", total, classes, "memory_bytes")


def _enough(
    text: str, unit: str, have: float, classes: tuple[ResourceClass, ...], field: str
) -> Check:
    """Return the check that a stage of each class fits on this machine."""
    asked = max(getattr(one, field) for one in classes)
    if asked <= have:
        return Check(text=text)
    return Check(
        text=f"{text}; a stage asks for {asked:,} {unit} (resources), which another machine of "
        f"a cluster may have",
        found=False, needed=True,
    )  # fmt: skip


def _memory() -> tuple[int | None, int | None]:
    """Return the bytes of memory of this machine, and of those the free ones, as far as known."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None, None
    try:
        found = _AVAILABLE.search(Path("/proc/meminfo").read_text("utf-8"))
    except OSError:
        found = None
    return total, int(found[1]) * 1024 if found else None


def _data(sweep: Sweep | None) -> Iterator[Check]:
    yield Check(text=f"RAYSWEEP_DATA: {setting('RAYSWEEP_DATA') or 'not set'}")
    if sweep is not None:
        yield from (_dataset(one, needed=True) for one in dict.fromkeys(sweep.datasets))
        return
    kinds = {name: methods.load("datasets", name) for name in methods.available("datasets")}
    asking = [
        name for name, kind in kinds.items()
        if any(info.is_required() for info in kind.model_fields.values())
    ]  # fmt: skip
    for name, kind in kinds.items():
        if name not in asking and issubclass(kind, Dataset):
            yield _dataset(kind(), needed=False)
    yield Check(text=f"data that a sweep file gives the path of: {', '.join(asking)}")


def _dataset(dataset: Dataset, *, needed: bool) -> Check:
    """Return the check that the source files of a dataset are on this machine."""
    try:
        files = dataset.local_files()
    except (PlanError, OSError) as error:
        return Check(text=f"data: {error}", found=False, needed=needed)
    if files:
        folder = files[0].parent
        return Check(text=f"data: {dataset.name}: {len(files)} files, the first in {folder}")
    return Check(
        text=f"data: {dataset.name}: not on this machine; put its Parquet files into "
        f"RAYSWEEP_DATA, or plan a sweep of it with internet, which downloads it",
        found=False, needed=needed,
    )  # fmt: skip


def _jobs_server() -> Check:
    """Return the check that this machine can submit, and serve the submissions of others."""
    lacking = [name for name in JOBS_PACKAGES if importlib.util.find_spec(name) is None]
    if not lacking:
        return Check(text="submit: Ray's jobs server and its client can run here")
    return Check(
        text=f"submit: a jobs server needs {', '.join(lacking)}, not here: {EXTRA}", found=False
    )


def _wandb(track: Track) -> Check:
    source = key_source()
    key = f"a key from {source}" if source else "no key, which online needs: wandb login"
    return Check(
        text=f"W&B: {track.wandb} (track.wandb); {key}", found=bool(source),
        needed=track.wandb == "online",
    )  # fmt: skip
