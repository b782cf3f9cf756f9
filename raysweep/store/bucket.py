"""Files below one root of a pyarrow filesystem: s3://, gs://, abfs://, hdfs://.

A file appears whole or not at all: it is uploaded as one object, or written under a unique name and
renamed into place where the filesystem has renames.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from raysweep.store.files import Stamp, temporary

if TYPE_CHECKING:
    from collections.abc import Sequence

RENAMING = frozenset({"local", "hdfs", "viewfs"})  # pyarrow filesystems that write in place
LISTINGS = 16  # at once
ATTEMPTS = 3  # of one request to S3, within seconds; `Root` waits longer
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 30.0
# Words of errors that waiting does not mend: Amazon's names, and what other stores answer.
LASTING = (
    "ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID",
    "SIGNATURE_DOES_NOT_MATCH", "MISSING_AUTHENTICATION_TOKEN", "UNRECOGNIZED_CLIENT",
    "HTTP status 301", "HTTP status 401", "HTTP status 403", "PERMISSION_DENIED",
)  # fmt: skip


def lasting(error: OSError) -> bool:
    """Return whether an error of a remote place stays however long one waits."""
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return True
    return any(word in str(error) for word in LASTING)


class Bucket:
    """A pyarrow filesystem."""

    def __init__(self, uri: str) -> None:
        """Connect.

        Raises:
            ValueError, OSError: if pyarrow does not know the scheme or an option of it.
        """
        from pyarrow import fs

        filesystem, root = fs.FileSystem.from_uri(uri)
        self._filesystem = _patient(uri, filesystem.region) if uri.startswith("s3:") else filesystem
        self._root = root.rstrip("/")
        self._renames = self._filesystem.type_name in RENAMING

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"

    def read(self, path: str) -> bytes | None:
        """Return an object's bytes, or None if there is no such object; two requests."""
        try:
            # Its size is known once it is open: a stream would be read in small pieces.
            with self._filesystem.open_input_file(self._path(path)) as file:
                data: bytes = file.read(file.size())
                return data
        except FileNotFoundError:
            return None

    def stamp(self, path: str) -> Stamp | None:
        """Return size and modification time of an object, or None if it is not there."""
        return self._stamps(self._filesystem.get_file_info([self._path(path)])).get(path)

    def stamps(self, folder: str) -> dict[str, Stamp]:
        """Return size and modification time of all objects: a listing of each folder inside.

        A listing gives a thousand objects a request, one request after the other, hence several
        listings at once.
        """
        from pyarrow import fs

        above = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=False)
        entries = self._filesystem.get_file_info(above)
        inside = [
            fs.FileSelector(entry.path, allow_not_found=True, recursive=True)
            for entry in entries
            if entry.type == fs.FileType.Directory
        ]
        found = self._stamps(entries)
        with ThreadPoolExecutor(LISTINGS) as pool:
            for listed in pool.map(self._filesystem.get_file_info, inside):
                found |= self._stamps(listed)
        return found

    def _stamps(self, entries: Sequence[Any]) -> dict[str, Stamp]:
        from pyarrow import fs

        cut = len(self._root) + 1
        return {
            entry.path[cut:]: (entry.size, entry.mtime_ns)
            for entry in entries
            if entry.type == fs.FileType.File
        }

    def write(self, path: str, data: bytes, *, durable: bool = False) -> None:
        """Upload one object, or write in two steps where there are renames."""
        del durable  # it always is
        target = self._path(path)
        if not self._renames:
            self._fill(target, data)
            return
        folder, _, _ = target.rpartition("/")
        unfinished = f"{folder}/.{uuid.uuid4().hex}.tmp"
        self._filesystem.create_dir(folder, recursive=True)
        try:
            self._fill(unfinished, data)
            self._filesystem.move(unfinished, target)
        except BaseException:
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(unfinished)
            raise

    def create(self, path: str, data: bytes) -> None:
        """Return None: pyarrow offers no conditional write."""
        del path, data

    def _fill(self, target: str, data: bytes) -> None:
        with self._filesystem.open_output_stream(target) as stream:
            stream.write(data)

    def list(self, folder: str) -> list[str]:
        """Return all objects below a folder; one listing."""
        from pyarrow import fs

        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        cut = len(self._root) + 1
        return sorted(
            info.path[cut:]
            for info in self._filesystem.get_file_info(selector)
            if info.type == fs.FileType.File and not temporary(info.base_name)
        )

    def delete(self, path: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(path))


def _patient(uri: str, region: str) -> Any:
    """Return the S3 filesystem of a URI that pyarrow has taken, with retries.

    Small objects go up in one request, which pyarrow's URIs cannot ask for, nor for retries.
    """
    from pyarrow import fs

    parts = urlsplit(uri)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    flags = ("allow_bucket_creation", "allow_bucket_deletion")
    chosen: dict[str, Any] = {
        name: options[name].lower() in ("1", "true") for name in flags if name in options
    }
    texts = ("scheme", "endpoint_override", "tls_ca_file_path")
    chosen |= {name: options[name] for name in texts if name in options}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in chosen:
        chosen["scheme"], _, chosen["endpoint_override"] = endpoint.rstrip("/").partition("://")
    if parts.username:
        chosen["access_key"] = unquote(parts.username)
        chosen["secret_key"] = unquote(parts.password or "")
    return fs.S3FileSystem(
        region=region,
        allow_delayed_open=True,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=ANSWER_SECONDS,
        **chosen,
    )
