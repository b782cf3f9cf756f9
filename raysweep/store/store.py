"""Content-addressed artifacts on any pyarrow filesystem: a folder, s3://, gs://.

    <root>/manifests/<kind>/<key>.json                        written last: a stage is done
    <root>/objects/<kind>/<two digits>/<key>-<unique>.safetensors   its arrays
    <root>/index/<unique>.parquet                             what is known of manifests: a cache
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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raysweep.arrays import Array
from raysweep.errors import DamagedArtifact, StoreError
from raysweep.identity import cache_folder, kind_of
from raysweep.store.cache import Cache
from raysweep.store.files import Stamp
from raysweep.store.index import FEWEST, Index, Manifests
from raysweep.store.manifest import Manifest, pack, seal, unpack, unseal
from raysweep.store.root import Root

_KEY = re.compile(r"(?=.{3,120}$)[A-Za-z0-9_]+-[A-Za-z0-9_-]+")
REQUESTS = 16  # to a remote store at once
DURABLE_SECONDS = 1.0  # a sync takes 0.2 to 10 ms for each of two files
__all__ = ["Manifest", "Store"]


class Store(Root):
    """Artifacts and records below one root; pickles as its URI and cache alone."""

    def __init__(self, uri: str, *, cache: Path | None = None) -> None:
        """Name a place; nothing is read or written yet.

        Args:
            uri: a folder, or a URI that pyarrow knows.
            cache: where objects of a remote store are kept after reading, by checksum; by default
                `RAYSWEEP_CACHE`, else ~/.cache/raysweep. It may be emptied at any time, and holds
                `RAYSWEEP_CACHE_GB` at most, else a tenth of the disk.
        """
        super().__init__(uri)
        self._cache = cache
        self._objects_here = Cache(cache or cache_folder())
        self._verified: dict[str, Stamp] = {}
        self._index = Index(self)
        self._clock = 0
        self._asked: Mapping[str, Manifest] = {}

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

        What took a second or more, by `seconds` in `info`, outlasts a loss of power once it is
        stored. What took less is done again sooner than it is synced: a loss of power may leave
        an empty manifest, which counts as damaged.

        Raises:
            StoreError: if it cannot be written; no manifest and no object is left.
            TypeError: if outcome or info are not JSON, or arrays no numbers.
        """
        _check(key)
        kind = kind_of(key)
        body: dict[str, Any] = {
            "kind": kind, "key": key, "files": {}, "outcome": outcome or {}, "info": info or {},
        }  # fmt: skip
        files: dict[str, dict[str, Any]] = {}
        # A look costs a request of a remote store: there, `remember` removes what is replaced.
        before = () if self._remote else self._objects(key)
        durable = body["info"].get("seconds", 0) >= DURABLE_SECONDS
        try:
            if arrays:
                data = pack(arrays)
                path = f"objects/{kind}/{key[-2:]}/{key}-{uuid.uuid4().hex[:12]}.safetensors"
                sha256 = hashlib.sha256(data).hexdigest()
                files[path] = {"sha256": sha256, "size": len(data)}
                self.write(path, data, durable=durable)
                if self._remote:
                    self._objects_here.write(sha256, data)
            self.write(_manifest_path(key), seal(body | {"files": files}), durable=durable)
        except BaseException:
            self._drop(files)
            raise
        self._drop(before)

    def _objects(self, key: str) -> Sequence[str]:
        """Return the paths of the objects that a stored stage names; none if it is damaged."""
        try:
            found = self.manifest(key)
        except DamagedArtifact:
            return ()
        return () if found is None else tuple(found.files)

    def _drop(self, paths: Iterable[str]) -> None:
        for path in paths:
            with contextlib.suppress(StoreError):
                self.delete(path)

    def manifest(self, key: str) -> Manifest | None:
        """Return a stage's manifest, or None if it is not done.

        Raises:
            DamagedArtifact: if its content differs from its checksum.
        """
        raw = self._manifest_bytes(key)
        return None if raw is None else unseal(key, raw)

    def _manifest_bytes(self, key: str) -> bytes | None:
        _check(key)
        return self.read(_manifest_path(key))

    def manifests(self, keys: Iterable[str]) -> tuple[Mapping[str, Manifest], Sequence[str]]:
        """Return the manifests of the stages that are stored, by key, and the damaged keys.

        After `done`, the first look at a key that it returned is answered as of that moment, if
        the index knows the manifest; any further look reads it.
        """
        asked = list(keys)
        indexed = self._index.take(asked)
        lacking = [key for key in asked if key not in indexed]
        opened, damaged = self.manifests_now(lacking, self._index.learn)
        self._asked = Manifests(asked, opened, indexed, self.manifest)
        return self._asked, damaged

    def manifests_now(
        self, keys: Sequence[str], learn: Callable[[str, bytes], None] = lambda key, raw: None
    ) -> tuple[dict[str, Manifest], Sequence[str]]:
        """Return manifests and damaged keys as they are stored now; any thread may ask."""
        if self._remote and len(keys) > 1:
            with ThreadPoolExecutor(REQUESTS) as pool:
                raws = list(pool.map(self._manifest_bytes, keys))
        else:
            raws = list(map(self._manifest_bytes, keys))
        opened, damaged = {}, []
        for key, raw in zip(keys, raws, strict=True):
            if raw is None:
                continue
            try:
                opened[key] = unseal(key, raw)
            except DamagedArtifact:
                damaged.append(key)
            else:
                learn(key, raw)
        return opened, damaged

    def manifest_as_asked(self, key: str) -> Manifest | None:
        """Return the manifest that the last call of `manifests` returned; else read it now.

        A stage looks at its inputs once, so that it reads the very artifacts whose contents it
        records.

        Raises:
            DamagedArtifact: if its content differs from its checksum.
        """
        return self._asked.get(key) or self.manifest(key)

    def outcome(self, key: str) -> Mapping[str, Any] | None:
        """Return the outcome of a stage, or None if it is not done."""
        manifest = self.manifest(key)
        return None if manifest is None else manifest.outcome

    def arrays(self, key: str, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the arrays of a stage, all or some by name; they are read-only.

        The bytes of an object are verified when this process first reads them, and again if size
        or modification time have changed. The manifest is that of `manifest_as_asked`.

        Raises:
            DamagedArtifact: if bytes differ from the manifest, or are gone.
            StoreError: if the stage is not done.
            KeyError: if a name is not there.
        """
        manifest = self.manifest_as_asked(key)
        if manifest is None:
            raise StoreError(f"storage {self.where()}: {key} is not stored; launch again")
        while True:
            try:
                found = self._unpacked(manifest)
                break
            except DamagedArtifact:
                newer = self.manifest(key)
                if newer is None or newer.files == manifest.files:
                    raise
                manifest = newer  # replaced while we read
        return found if names is None else {name: found[name] for name in names}

    def _unpacked(self, manifest: Manifest) -> dict[str, Array]:
        key = manifest.key
        read = [unpack(key, self._object(key, *file)) for file in manifest.files.items()]
        return {name: array for arrays in read for name, array in arrays.items()}

    def _object(self, key: str, path: str, facts: Mapping[str, Any]) -> bytes:
        if self._remote:
            data = self._objects_here.read(facts["sha256"], facts["size"])
            if data is not None:
                return data
        stamp = None if self._remote else self.stamp(path)
        data = self.read(path)
        known = stamp is not None and self._verified.get(path) == stamp
        if data is None or len(data) != facts["size"] or not (known or _is_whole(data, facts)):
            raise DamagedArtifact(key, f"{path} is gone or fails its checksum")
        if self._remote:
            self._objects_here.write(facts["sha256"], data)
        elif stamp is not None:
            self._verified[path] = stamp
        return data

    def verify(self, key: str) -> None:
        """Read everything of a stored stage where it is stored, and nothing of it elsewhere.

        Raises:
            DamagedArtifact: if bytes differ from their checksum, are gone, or are no tensors.
        """
        manifest = self.manifest(key)
        if manifest is None:
            return
        for path, facts in manifest.files.items():
            data = self.read(path)
            if data is None or not _is_whole(data, facts):
                newer = self.manifest(key)
                if newer is None or newer.files != manifest.files:  # replaced while we read
                    return
                raise DamagedArtifact(key, f"{path} is gone or fails its checksum")
            unpack(key, data)

    def check(self) -> int:
        """Write, read and delete a probe; return when that was by the storage's own clock."""
        self._clock = super().check()
        return self._clock

    def done(self) -> set[str]:
        """Return the keys of all stored stages; one listing, no look at each key."""
        listed = {
            key: stamp
            for path, stamp in self.stamps("manifests").items()
            if (key := key_of(path)) is not None
        }
        self._index.begin(listed, self._clock)
        return set(listed)

    def listed(self, key: str) -> Stamp:
        """Return size and modification time of a manifest, for a key that `done` returned."""
        return self._index.stamp(key)

    def remember(self, keys: Iterable[str], made: Collection[str] = ()) -> None:
        """Write manifests of stages into the index, for the next plan; best effort.

        On a remote store, objects of manifests that were replaced since they were read go.

        Args:
            keys: of stages that are stored.
            made: the keys of those that were stored since `done` was last called.
        """
        known = list(keys)
        replaced = self._index.forget(made) and self._remote
        if self._index.unwritten(known) < FEWEST and not replaced:
            return
        try:
            if self._index.lacks(known):
                self.check()
                stored = self.done()
                lacking = [key for key in self._index.lacks(known) if key in stored]
                now, _ = self.manifests(lacking)
                for key, raw in self._index.replaced.items() if self._remote else ():
                    if key in now:
                        self._drop(unseal(key, raw).files.keys() - now[key].files.keys())
            self._index.save(known)
        except (StoreError, DamagedArtifact):
            pass  # The next plan reads what is not indexed.

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


def _is_whole(data: bytes, facts: Mapping[str, Any]) -> bool:
    """Return whether bytes are those that a manifest names."""
    digest: str = facts["sha256"]
    return len(data) == facts["size"] and hashlib.sha256(data).hexdigest() == digest


def key_of(path: str) -> str | None:
    """Return the key of the manifest at a path; None if no manifest has such a path."""
    _, _, rest = path.partition("/")
    kind, _, name = rest.partition("/")
    key = name.removesuffix(".json")
    is_one = name.endswith(".json") and _KEY.fullmatch(key) and kind == kind_of(key)
    return key if is_one else None


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
