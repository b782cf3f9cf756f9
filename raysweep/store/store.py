"""Content-addressed artifacts on any pyarrow filesystem: a folder, s3://, gs://.

    <root>/manifests/<kind>/<key>.json                        written last: a stage is done
    <root>/objects/<kind>/<two digits>/<key>-<unique>.safetensors   its arrays
    <root>/scratch/<key>.checkpoint                           checkpoints of running stages
    <root>/sweeps/<name>/…                                    records, ledgers, logs, reports

Every file appears whole or not at all. Manifests carry checksums of their files and of themselves,
which are verified when they are read. Nothing that is read is ever executed: tensors are
safetensors, the rest is JSON. Writers of one key at one time never touch each other's objects; the
last manifest stands, and whatever it does not name is litter that nobody reads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raysweep.arrays import Array
from raysweep.errors import DamagedArtifact, StoreError
from raysweep.identity import cache_folder, kind_of
from raysweep.store.files import Files, Folder
from raysweep.store.manifest import Manifest, pack, seal, unpack, unseal
from raysweep.store.root import Root

_KEY = re.compile(r"(?=.{3,120}$)[A-Za-z0-9_]+-[A-Za-z0-9_-]+")
REQUESTS = 16  # to a remote store at once
__all__ = ["Manifest", "Store"]


class Store(Root):
    """Artifacts and records below one root; pickles as its URI and cache alone."""

    def __init__(self, uri: str, *, cache: Path | None = None) -> None:
        """Name a place; nothing is read or written yet.

        Args:
            uri: a folder, or a URI that pyarrow knows.
            cache: where objects of a remote store are kept after reading, by checksum; by default
                `RAYSWEEP_CACHE`, else ~/.cache/raysweep. It may be emptied at any time.
        """
        super().__init__(uri)
        self._cache = cache
        self._verified: dict[tuple[bool, str], tuple[int, int]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (functools.partial(Store, cache=self._cache), (self.uri,))

    # Artifacts

    def put(
        self,
        key: str,
        *,
        arrays: Mapping[str, Array] | None = None,
        outcome: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the product of a stage, the manifest last; replace an earlier one of the key.

        Raises:
            StoreError: if it cannot be written; no manifest and no object is left.
            TypeError: if outcome or info are not JSON, or arrays no numbers.
        """
        _check(key)
        kind = kind_of(key)
        body = {"kind": kind, "key": key, "files": {}, "outcome": outcome or {}, "info": info or {}}
        sealed = seal(body)
        files: dict[str, dict[str, Any]] = {}
        before = self._objects(key)
        try:
            if arrays:
                data = pack(arrays)
                path = f"objects/{kind}/{key[-2:]}/{key}-{uuid.uuid4().hex[:12]}.safetensors"
                files[path] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
                self.write(path, data)
                sealed = seal(body | {"files": files})
            self.write(_manifest_path(key), sealed)
        except BaseException:
            for path in files:
                with contextlib.suppress(StoreError):
                    self.delete(path)
            raise
        for path in before:
            with contextlib.suppress(StoreError):
                self.delete(path)

    def _objects(self, key: str) -> Sequence[str]:
        """Return the paths of the objects that a stored stage names; none if it is damaged."""
        return [path for one in self.manifests([key])[0].values() for path in one.files]

    def manifest(self, key: str) -> Manifest | None:
        """Return a stage's manifest, or None if it is not done.

        Raises:
            DamagedArtifact: if its content differs from its checksum.
        """
        _check(key)
        raw = self.read(_manifest_path(key))
        return None if raw is None else unseal(key, raw)

    def manifests(self, keys: Iterable[str]) -> tuple[dict[str, Manifest], Sequence[str]]:
        """Return the manifests of the stages that are stored, by key, and the damaged keys."""

        def look(key: str) -> Manifest | DamagedArtifact | None:
            try:
                return self.manifest(key)
            except DamagedArtifact as error:
                return error

        asked = list(keys)
        if self._remote:
            with ThreadPoolExecutor(REQUESTS) as pool:
                found = list(pool.map(look, asked))
        else:
            found = list(map(look, asked))
        pairs = list(zip(asked, found, strict=True))
        damaged = [key for key, one in pairs if isinstance(one, DamagedArtifact)]
        return {key: one for key, one in pairs if isinstance(one, Manifest)}, damaged

    def outcome(self, key: str) -> Mapping[str, Any] | None:
        """Return the outcome of a stage, or None if it is not done."""
        manifest = self.manifest(key)
        return None if manifest is None else manifest.outcome

    def arrays(self, key: str, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the arrays of a stage, all or some by name; they are read-only.

        The bytes of an object are verified when this process first reads them, and again if size
        or modification time have changed.

        Raises:
            DamagedArtifact: if bytes differ from the manifest, or are gone.
            StoreError: if the stage is not done.
            KeyError: if a name is not there.
        """
        manifest = self.manifest(key)
        if manifest is None:
            raise StoreError(f"storage {self.where()}: {key} is not stored; launch again")
        try:
            found = self._unpacked(manifest)
        except DamagedArtifact:
            newer = self.manifest(key)
            if newer is None or newer.files == manifest.files:
                raise
            found = self._unpacked(newer)  # replaced while we read
        return found if names is None else {name: found[name] for name in names}

    def _unpacked(self, manifest: Manifest) -> dict[str, Array]:
        key = manifest.key
        read = [unpack(key, self._object(key, *file)) for file in manifest.files.items()]
        return {name: array for arrays in read for name, array in arrays.items()}

    def _object(self, key: str, path: str, facts: Mapping[str, Any]) -> bytes:
        if not self._remote:
            data = self._verified_bytes(self._files, path, facts)
            if data is None:
                raise DamagedArtifact(key, f"{path} is gone or fails its checksum")
            return data
        cache, kept = Folder(self._cache or cache_folder()), f"objects/{facts['sha256']}"
        data = self._verified_bytes(cache, kept, facts)
        if data is None:
            data = self._verified_bytes(self._files, path, facts)
            if data is None:
                raise DamagedArtifact(key, f"{path} is gone or fails its checksum")
            with contextlib.suppress(OSError):  # A full or read-only cache costs time alone.
                cache.write(kept, data)
        return data

    def _verified_bytes(self, files: Files, path: str, facts: Mapping[str, Any]) -> bytes | None:
        """Return the bytes of an object if they agree with the manifest, else None."""
        memo = (files is self._opened, path)
        try:
            stamp, data = files.stamp(path), files.read(path)
        except OSError as error:
            raise StoreError(f"storage {self.where()}: cannot read {path} ({error})") from error
        if data is None or len(data) != facts["size"]:
            return None
        if stamp is None or self._verified.get(memo) != stamp:
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                return None
            if stamp is not None:
                self._verified[memo] = stamp
        return data

    def done(self) -> set[str]:
        """Return the keys of all stored stages; one listing, no look at each key."""
        keys = set()
        for path in self.list("manifests"):
            _, _, rest = path.partition("/")
            kind, _, name = rest.partition("/")
            key = name.removesuffix(".json")
            if name.endswith(".json") and _KEY.fullmatch(key) and kind == kind_of(key):
                keys.add(key)
        return keys

    def discard(self, key: str) -> None:
        """Forget a stage: its manifest first, then its files."""
        objects = self._objects(key)
        self.delete(_manifest_path(key))
        for path in objects:
            self.delete(path)

    # Checkpoints of running stages

    def checkpoint(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Keep arrays of a stage that is not done, replacing earlier ones."""
        data = pack(arrays)
        self.write(_checkpoint_path(key), hashlib.sha256(data).digest() + data)

    def restore(self, key: str) -> dict[str, Array]:
        """Return the arrays of the last checkpoint; empty if there is none, or it is damaged."""
        raw = self.read(_checkpoint_path(key)) or b""
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            return {}
        return unpack(key, raw[32:])

    def drop_checkpoint(self, key: str) -> None:
        """Remove a stage's checkpoint, if there is one."""
        self.delete(_checkpoint_path(key))


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise StoreError(
            f"a key is a stage kind, a dash, then letters, digits, - and _, got {key!r}"
        )


def _manifest_path(key: str) -> str:
    return f"manifests/{kind_of(key)}/{key}.json"


def _checkpoint_path(key: str) -> str:
    _check(key)
    return f"scratch/{key}.checkpoint"
