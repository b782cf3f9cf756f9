"""The bytes of an artifact: a manifest sealed by a checksum, and arrays as safetensors.

Reading executes nothing, and trusts nothing: bytes that were not written by `seal` and `pack`, or
have changed by one bit since, are a `DamagedArtifact`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from raysweep.arrays import Array
from raysweep.errors import DamagedArtifact
from raysweep.identity import digest, kind_of

_SHA = re.compile(r"[0-9a-f]{64}")
_OBJECT = re.compile(
    r"objects/([A-Za-z0-9_-]+)/[A-Za-z0-9_-]+/([A-Za-z0-9_-]+)-[0-9a-f]{12}\.safetensors"
)
_HEAD = b'{"checksum":"'
_BODY = len(_HEAD) + 64 + len(b'",')


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of one stored stage.

    Attributes:
        files: path below the root → {sha256, size}.
        outcome: small JSON results, part of what the stage produced.
        info: recorded, never hashed: seconds, host, versions.
    """

    kind: str
    key: str
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outcome: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def content(self) -> str:
        """A digest of the result: arrays and outcome, not what is recorded beside them."""
        arrays = sorted(facts["sha256"] for facts in self.files.values())
        return digest(json.dumps([self.outcome, arrays], sort_keys=True))

    @property
    def read(self) -> Mapping[str, str]:
        """Key → content of everything that the stage read; empty if that was not recorded."""
        recorded = self.info.get("read")
        return recorded if isinstance(recorded, dict) else {}


def seal(body: Mapping[str, Any]) -> bytes:
    """Return a manifest's bytes: JSON whose first value is the checksum of all that follows it."""
    plain = {name: dict(part) if isinstance(part, Mapping) else part for name, part in body.items()}
    rest = json.dumps(plain, separators=(",", ":")).encode()[1:]
    return _HEAD + hashlib.sha256(rest).hexdigest().encode() + b'",' + rest


def is_sealed(key: str, raw: bytes) -> bool:
    """Return whether bytes begin as a manifest of this stage does, and have their checksum."""
    whole = raw[:_BODY] == _HEAD + hashlib.sha256(raw[_BODY:]).hexdigest().encode() + b'",'
    return whole and raw.startswith(f'"kind":"{kind_of(key)}","key":"{key}",'.encode(), _BODY)


def unseal(key: str, raw: bytes) -> Manifest:
    """Return the manifest of a stage from its bytes.

    Raises:
        DamagedArtifact: if the checksum fails, or the content is not that of this stage.
    """
    if raw[:_BODY] != _HEAD + hashlib.sha256(raw[_BODY:]).hexdigest().encode() + b'",':
        raise DamagedArtifact(key, "its manifest fails its checksum")
    try:
        found = Manifest(**json.loads(b"{" + raw[_BODY:]))
        sound = (found.kind, found.key) == (kind_of(key), key) and all(
            _is_own(found, path)
            and _SHA.fullmatch(facts["sha256"])
            and isinstance(facts["size"], int)
            for path, facts in found.files.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        _not_ours(key)
    if not sound or not isinstance(found.outcome, dict) or not isinstance(found.info, dict):
        _not_ours(key)
    return found


def _is_own(manifest: Manifest, path: str) -> bool:
    match = _OBJECT.fullmatch(path)
    return match is not None and match.groups() == (manifest.kind, manifest.key)


def _not_ours(key: str) -> NoReturn:
    raise DamagedArtifact(key, "its manifest was not written by this store") from None


def pack(arrays: Mapping[str, Array]) -> bytes:
    """Return arrays as safetensors.

    Raises:
        TypeError: if an array is not of real numbers or booleans.
    """
    from safetensors.numpy import save

    for name, array in arrays.items():
        if np.asarray(array).dtype.kind not in "biuf":
            raise TypeError(f"array {name!r} must be of numbers, got {np.asarray(array).dtype}")
    # ascontiguousarray alone would make scalars one-dimensional.
    plain = {n: np.ascontiguousarray(a).reshape(np.shape(a)) for n, a in arrays.items()}
    data: bytes = save(plain)
    return data


def unpack(key: str, data: bytes) -> dict[str, Array]:
    """Return the arrays in safetensors bytes, read-only; `key` names them in the error.

    Raises:
        DamagedArtifact: if they are no safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedArtifact(key, f"its tensors cannot be read ({error})") from None
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
