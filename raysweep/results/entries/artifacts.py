"""Artifacts of W&B: the manifest of a stage as a small file, named by the stage's key.

dataset → poison → model → scores → result are the stages that a trial's numbers come from. Each
holds parameters, outcome and digests; arrays and images stay in the storage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

from raysweep.identity import Json
from raysweep.results.columns import KEYS, Cell
from raysweep.results.entries.entry import Artifact
from raysweep.store import Manifest

# Role of a stage in a trial → type of its artifact.
TYPES = {
    "data": "dataset", "poison": "poison", "victim": "model", "defend": "scores",
    "evaluate": "result",
}  # fmt: skip


def stage_keys(row: Mapping[str, Cell]) -> dict[str, str]:
    """Return role → key of the stages that a trial's row names."""
    named = {role: row[column] for role, column in _key_columns(tuple(row)).items()}
    return {role: key for role, key in named.items() if isinstance(key, str)}


@lru_cache(maxsize=64)
def _key_columns(columns: tuple[str, ...]) -> dict[str, str]:
    """Return role → column; asked of every row of a table, which have the same columns."""
    return KEYS.within(columns)


def artifact(role: str, manifest: Manifest) -> Artifact:
    """Return the artifact of a stage that plays a role in a trial."""
    digests: dict[str, Json] = {
        path.rpartition("/")[2]: {"sha256": facts["sha256"], "size": facts["size"]}
        for path, facts in manifest.files.items()
    }
    body: Mapping[str, Json] = {
        "key": manifest.key, "kind": manifest.kind, "content": manifest.content,
        "identity": manifest.info.get("identity"), "outcome": dict(manifest.outcome),
        "files": digests,
    }  # fmt: skip
    text = json.dumps(body, indent=1, sort_keys=True)
    return Artifact(
        name=manifest.key, type=TYPES[role],
        metadata={"key": manifest.key, "kind": manifest.kind, "content": manifest.content},
        files={"manifest.json": text.encode()},
    )  # fmt: skip


def newest(key: str) -> str:
    """Return the reference to the newest version of a stage's artifact."""
    return f"{key}:latest"
