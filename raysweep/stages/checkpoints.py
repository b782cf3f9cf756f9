"""The checkpoint of a stage in the store, bound to all that its arrays depend on."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict

from raysweep import provenance
from raysweep.errors import DamagedArtifact, StoreError
from raysweep.identity import canonical
from raysweep.methods.checkpoints import Checkpoints, Part
from raysweep.stages.stage import AXES, Packed, Work
from raysweep.store import Store


def checkpoint(
    stage: Packed, work: Work, store: Store, device: str, read: Mapping[str, str]
) -> Part:
    """Return the whole of a stage as a part that can go on from its last checkpoint.

    A checkpoint that was written for other inputs, on another kind of device, or by other code is
    ignored, and so is one that cannot be read: that costs time alone.

    Args:
        stage: the stage.
        work: the work that it was unpacked to; it keeps nothing if it is not `LONG`.
        store: where checkpoints are.
        device: where the work is computed.
        read: key → content of everything that the stage reads.
    """
    if not work.LONG:
        return Checkpoints().root
    try:
        restored = store.restore(stage.key)
    except (StoreError, DamagedArtifact):
        restored = {}
    there = [method for axis, _ in AXES if (method := getattr(work, axis, None)) is not None]
    modules = {module for method in there for module in method.modules()}
    code = _code(frozenset(name for name in modules if not name.startswith("raysweep.")))
    bound = canonical([stage.key, asdict(code), device, dict(read)])
    write = functools.partial(store.checkpoint, stage.key)
    return Checkpoints(write, restored, bound=bound).root


@functools.cache
def _code(modules: frozenset[str]) -> provenance.Code:
    """Return the code that this process runs; read once, as it was imported once."""
    return provenance.code_here(modules)
