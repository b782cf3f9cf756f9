"""Content-addressed artifacts on any pyarrow filesystem: a folder, s3://, gs://.

    <root>/manifests/<kind>/<key>.json                        written last: a stage is done
    <root>/objects/<kind>/<two digits>/<key>-<unique>.safetensors   its arrays
    <root>/scratch/<key>.safetensors                          checkpoints of running stages
    <root>/sweeps/<name>/…                                    records, ledgers, logs, reports

Every file is written under a unique name and appears whole or not at all. Manifests carry
checksums of their files and of themselves, which are verified when they are read. Nothing that is
read is ever executed: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raysweep.errors import DamagedArtifact, StoreError
from raysweep.identity import cache_folder

Array = NDArray[Any]
_KEY = re.compile(r"[A-Za-z0-9_-]{1,120}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is stored of one stage.

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


class _Files(Protocol):
    def read(self, path: str) -> bytes | None: ...
    def write(self, path: str, data: bytes) -> None: ...
    def list(self, folder: str) -> list[str]: ...
    def delete(self, path: str) -> None: ...


class _Folder:
    """A local folder; plain file calls, several times faster than through pyarrow."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes | None:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            try:
                temporary.write_bytes(data)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(data)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def list(self, folder: str) -> list[str]:
        top = self.root / folder
        found = (p for p in top.rglob("*") if p.is_file() and not p.name.endswith(".tmp"))
        return sorted(p.relative_to(self.root).as_posix() for p in found)

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)


class _Bucket:
    """A pyarrow filesystem; an object appears when its upload is complete."""

    def __init__(self, uri: str) -> None:
        from pyarrow import fs

        self._filesystem, self._root = fs.FileSystem.from_uri(uri)

    def _path(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def read(self, path: str) -> bytes | None:
        try:
            with self._filesystem.open_input_stream(self._path(path)) as stream:
                data: bytes = stream.read()
                return data
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes) -> None:
        with self._filesystem.open_output_stream(self._path(path)) as stream:
            stream.write(data)

    def list(self, folder: str) -> list[str]:
        from pyarrow import fs

        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        infos = self._filesystem.get_file_info(selector)
        cut = len(self._path(""))
        return sorted(i.path[cut:] for i in infos if i.type == fs.FileType.File)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(path))


class Store:
    """Artifacts and records below one root; pickles as its URI alone."""

    def __init__(self, uri: str, *, cache: Path | None = None) -> None:
        """Name a place; nothing is read or written yet.

        Args:
            uri: a folder, or a URI that pyarrow knows.
            cache: where objects of a remote store are kept after reading.
        """
        remote = "://" in uri and not uri.startswith("file://")
        self.uri = uri if remote else str(Path(uri.removeprefix("file://")).expanduser().resolve())
        self._cache = cache
        self._remote = remote
        self._opened: _Files | None = None
        self._verified: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self.uri,), {"_cache": self._cache})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._cache = state["_cache"]

    @property
    def _files(self) -> _Files:
        if self._opened is None:
            try:
                self._opened = _Bucket(self.uri) if self._remote else _Folder(Path(self.uri))
            except (OSError, ValueError) as error:
                raise StoreError(
                    f"storage {self.uri}: {error}; use a folder, s3://bucket/path or gs://…"
                ) from None
        return self._opened

    def local(self, path: str) -> Path | None:
        """Return a path below the root as a local path, or None for a remote store."""
        return None if self._remote else Path(self.uri) / _safe(path)

    # Plain files

    def check(self) -> None:
        """Write, read and delete a probe.

        Raises:
            StoreError: if the storage cannot be used; names the reason.
        """
        probe = f"scratch/.probe-{uuid.uuid4().hex}"
        self.write(probe, b"probe")
        if self.read(probe) != b"probe":
            raise StoreError(f"storage {self.uri}: a probe file reads back differently")
        self._files.delete(probe)

    def write(self, path: str, data: bytes) -> None:
        """Write a file; it appears whole or not at all.

        Raises:
            StoreError: if it cannot be written, for example on a full disk; nothing is left.
        """
        try:
            self._files.write(_safe(path), data)
        except OSError as error:
            raise StoreError(
                f"storage {self.uri}: cannot write {path} ({error}); free space or permissions, "
                f"then launch again: what is stored is kept"
            ) from error

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None if there is none."""
        try:
            return self._files.read(_safe(path))
        except OSError as error:
            raise StoreError(f"storage {self.uri}: cannot read {path} ({error})") from error

    def list(self, prefix: str) -> list[str]:
        """Return the paths of all files below a folder, sorted."""
        try:
            return self._files.list(_safe(prefix))
        except OSError as error:
            raise StoreError(f"storage {self.uri}: cannot list {prefix} ({error})") from error

    # Artifacts

    def put(
        self,
        kind: str,
        key: str,
        *,
        arrays: Mapping[str, Array] | None = None,
        outcome: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Store what a stage gives, the manifest last; a second writer of a key replaces it."""
        _checked(kind, key)
        files = {}
        if arrays:
            data = _pack(arrays)
            path = f"objects/{kind}/{key[-2:]}/{key}-{uuid.uuid4().hex[:12]}.safetensors"
            files[path] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            self.write(path, data)
        body = {
            "kind": kind,
            "key": key,
            "files": files,
            "outcome": dict(outcome or {}),
            "info": dict(info or {}),
        }
        try:
            self.write(_manifest_path(kind, key), _seal(body))
        except BaseException:
            for path in files:
                self._files.delete(path)
            raise

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """Return a stage's manifest, or None if it is not done.

        Raises:
            DamagedArtifact: if its content differs from its checksum.
        """
        _checked(kind, key)
        raw = self.read(_manifest_path(kind, key))
        if raw is None:
            return None
        try:
            body = json.loads(raw)
            checksum = body.pop("checksum")
            sound = checksum == _checksum(body) and (body["kind"], body["key"]) == (kind, key)
            return Manifest(**body) if sound else _damaged(key, "its manifest fails its checksum")
        except (ValueError, TypeError, KeyError, AttributeError):
            return _damaged(key, "its manifest is not whole")

    def arrays(self, kind: str, key: str, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the arrays of a stage, or those of some names; they are read-only.

        Raises:
            DamagedArtifact: if bytes differ from the manifest, or are gone.
            StoreError: if the stage is not done.
            KeyError: if a name is not there.
        """
        manifest = self.manifest(kind, key)
        if manifest is None:
            raise StoreError(f"storage {self.uri}: {key} is not stored")
        found: dict[str, Array] = {}
        for path, facts in manifest.files.items():
            found |= _unpack(key, self._object(key, path, facts))
        return found if names is None else {name: found[name] for name in names}

    def _object(self, key: str, path: str, facts: Mapping[str, Any]) -> bytes:
        kept = (self._cache or cache_folder() / "objects") / f"{facts['sha256']}"
        data = None
        if self._remote and kept.is_file():
            data = kept.read_bytes()
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                data = None
        if data is None:
            data = self.read(path)
            if data is None:
                return _damaged(key, f"{path} is gone")
            if path not in self._verified or len(data) != facts["size"]:
                if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                    return _damaged(key, f"{path} fails its checksum")
                if self._remote:
                    _Folder(kept.parent).write(kept.name, data)
                else:
                    self._verified.add(path)
        return data

    def done(self) -> dict[str, str]:
        """Return key → kind of everything that is stored; one listing, no look at each key."""
        keys = {}
        for path in self.list("manifests"):
            _, kind, name = path.split("/")
            keys[name.removesuffix(".json")] = kind
        return keys

    def discard(self, kind: str, key: str) -> None:
        """Forget a stage: its manifest first, then its files."""
        _checked(kind, key)
        try:
            manifest = self.manifest(kind, key)
        except DamagedArtifact:
            manifest = None
        self._files.delete(_manifest_path(kind, key))
        for path in manifest.files if manifest else ():
            self._files.delete(_safe(path))
            self._verified.discard(path)

    # Checkpoints of running stages

    def checkpoint(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Keep arrays of a stage that is not done, replacing earlier ones."""
        self.write(f"scratch/{_checked('x', key)}.safetensors", _pack(arrays))

    def restore(self, key: str) -> dict[str, Array]:
        """Return what the last checkpoint kept; nothing if there is none, or it is not whole."""
        data = self.read(f"scratch/{_checked('x', key)}.safetensors")
        try:
            return _unpack(key, data) if data else {}
        except DamagedArtifact:
            return {}

    def drop_checkpoint(self, key: str) -> None:
        """Remove a stage's checkpoint, if there is one."""
        self._files.delete(f"scratch/{_checked('x', key)}.safetensors")

    def free_bytes(self) -> int | None:
        """Return the free space of a local store, in bytes; None for a remote one."""
        return None if self._remote else shutil.disk_usage(Path(self.uri)).free


def _damaged(key: str, detail: str) -> Any:
    raise DamagedArtifact(key, detail)


def _safe(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/") or "\\" in path:
        raise StoreError(f"a path in the store must stay below its root, got {path!r}")
    return path


def _checked(kind: str, key: str) -> str:
    for word in (kind, key):
        if not _KEY.fullmatch(word):
            raise StoreError(f"kinds and keys are letters, digits, - and _, got {word!r}")
    return key


def _manifest_path(kind: str, key: str) -> str:
    return f"manifests/{kind}/{key}.json"


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _seal(body: dict[str, Any]) -> bytes:
    return json.dumps({**body, "checksum": _checksum(body)}, separators=(",", ":")).encode()


def _pack(arrays: Mapping[str, Array]) -> bytes:
    from safetensors.numpy import save

    # ascontiguousarray alone would make scalars one-dimensional.
    plain = {n: np.ascontiguousarray(a).reshape(np.shape(a)) for n, a in arrays.items()}
    data: bytes = save(plain)
    return data


def _unpack(key: str, data: bytes) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        return _damaged(key, f"its tensors cannot be read ({error})")  # type: ignore[no-any-return]
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
