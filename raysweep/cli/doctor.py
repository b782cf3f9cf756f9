"""A check of this machine: versions, devices, data, storage."""

from __future__ import annotations

import os

from rich.console import Console

from raysweep.errors import StoreError
from raysweep.paths import setting
from raysweep.provenance import versions
from raysweep.results.records import storage_uri
from raysweep.store import Store
from raysweep.sweep.resources import Resources, bfloat16_is_fast
from raysweep.training.device import try_kernel


def print_doctor(console: Console, storage: str | None) -> bool:
    """Print versions, devices, data and storage; return whether a sweep can run here."""
    for package, version in versions().items():
        console.print(f"{package} {version}")
    fast = "bfloat16" if bfloat16_is_fast(Resources()) else "float32"
    console.print(f"{os.cpu_count()} CPUs (precision auto: {fast})")
    console.print(f"GPUs, one kernel tried on each: {try_kernel()}")
    console.print(f"RAYSWEEP_DATA: {setting('RAYSWEEP_DATA') or 'not set'}")
    store = Store(storage_uri(storage))
    try:
        store.check()
    except StoreError as error:
        console.print(f"storage: {error}", style="red")
        return False
    console.print(f"storage: {store.where()} is writable")
    return True
