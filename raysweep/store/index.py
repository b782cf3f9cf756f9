"""An index of manifests: what drivers have read of them, in a few files, `index/<unique>.parquet`.

It is a cache and may be lost: a manifest that it lacks is read. An entry counts where size and
modification time are those of the listing. Clocks have a grain, so that a manifest which is
replaced just after it was read may keep its time: entries are written only of manifests that were
older than the grain, by the clock of the storage, when they were read.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.errors import DamagedArtifact
from raysweep.store.files import Stamp
from raysweep.store.manifest import Manifest, is_sealed, unseal
from raysweep.store.root import Root

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "index"
GRAIN = 2_000_000_000  # nanoseconds: the coarsest clock of a file system, and of S3 with margin
FEWEST = 16  # manifests that are written down: fewer are read again
WORTH = 100_000  # bytes of index that are read rather than one manifest
SEGMENTS = 4  # files, before small ones are joined
ROWS = 10_000  # of a group that is compressed together
_COLUMNS = {"key": "string", "size": "int64", "mtime_ns": "int64", "manifest": "large_binary"}


class Manifests(Mapping[str, Manifest]):
    """Manifests by key. Those from an index are opened when they are looked at, and not kept."""

    def __init__(
        self,
        keys: Sequence[str],
        opened: Mapping[str, Manifest],
        indexed: Mapping[str, Callable[[], bytes]],
        read: Callable[[str], Manifest | None],
    ) -> None:
        """Take manifests, and functions that return the bytes of others.

        Args:
            keys: of all, in their order.
            opened: manifests that were read.
            indexed: functions that return the bytes of the others, whose checksums are right.
            read: reads a manifest whose bytes are none, although their checksum is right.
        """
        self._keys = [key for key in keys if key in opened or key in indexed]
        self._opened = opened
        self._indexed = indexed
        self._read = read

    def __getitem__(self, key: str) -> Manifest:
        if key in self._opened:
            return self._opened[key]
        try:
            return unseal(key, self._indexed[key]())
        except DamagedArtifact:
            found = self._read(key)
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key: object) -> bool:
        return key in self._opened or key in self._indexed

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class Index:
    """The index of a store, against the last listing of its manifests."""

    def __init__(self, root: Root) -> None:
        """Name the store; nothing is read yet."""
        self._root = root
        self._clock = 0
        self._listed: dict[str, Stamp] = {}
        self._files: dict[str, Stamp] | None = None
        self._segments: dict[str, pa.Table] = {}
        self._bytes: dict[str, _Bytes] = {}
        self._rows: dict[str, tuple[str, int]] = {}
        self._outdated: dict[str, tuple[str, int]] = {}
        self._read: dict[str, tuple[Stamp, bytes, bool]] = {}
        self._given: set[str] = set()
        self.replaced: dict[str, bytes] = {}

    def begin(self, listed: dict[str, Stamp], clock: int) -> None:
        """Take a new listing: whatever is asked from now on is as it was then.

        Args:
            listed: key → size and modification time of its manifest.
            clock: a time before the listing by the storage's own clock; 0 if none is known.
        """
        self._listed, self._clock = listed, clock
        for key, (stamp, raw, _) in list(self._read.items()):
            if listed.get(key) != stamp:
                del self._read[key]
                if key in listed and stamp[1] < listed[key][1]:
                    self.replaced[key] = raw
        self._given.clear()
        self._match(self._segments)

    def stamp(self, key: str) -> Stamp:
        """Return size and modification time of a manifest that is listed."""
        return self._listed[key]

    def take(self, keys: Collection[str]) -> dict[str, Callable[[], bytes]]:
        """Return functions that return manifests' bytes, for those keys that the index holds.

        Each key is given once a listing: whoever asks again wants to know what is stored by now.
        """
        listed = [key for key in keys if key in self._listed and key not in self._given]
        if sum(key not in self._read for key in listed) >= FEWEST:
            self._load(len(listed))
        found: dict[str, Callable[[], bytes]] = {}
        for key in listed:
            self._given.add(key)
            if key in self._read:
                found[key] = _Kept(self._read[key][1])
            elif key in self._rows:
                row = self._row(*self._rows[key])
                if is_sealed(key, row()):
                    found[key] = row
            elif key in self._outdated:
                self.replaced[key] = self._row(*self._outdated[key])()
        return found

    def _row(self, path: str, number: int) -> _Row:
        if path not in self._bytes:
            self._bytes[path] = _Bytes(self._segments[path]["manifest"])
        return _Row(self._bytes[path], number)

    def learn(self, key: str, raw: bytes) -> None:
        """Take in the bytes of a sound manifest that was read since the last listing."""
        if (stamp := self._listed.get(key)) is not None:
            self._read[key] = stamp, raw, stamp[1] + GRAIN <= self._clock

    def forget(self, keys: Iterable[str]) -> bool:
        """Take in that stages were stored anew; return whether one had been stored before."""
        before = False
        for key in keys:
            before |= key in self._listed
            if key in self._read:
                self.replaced[key] = self._read.pop(key)[1]
            elif key in self._rows:
                self._outdated[key] = self._rows.pop(key)
        return before

    def unwritten(self, keys: Iterable[str]) -> int:
        """Return the number of stages whose manifests are not in the files of the index."""
        return sum(key not in self._rows for key in keys)

    def lacks(self, keys: Iterable[str]) -> list[str]:
        """Return the keys of stages whose manifests must be read before they are written down."""
        return [
            key
            for key in keys
            if key not in self._rows and not (key in self._read and self._read[key][2])
        ]

    def save(self, keys: Iterable[str]) -> None:
        """Write down the manifests of stages that were read, and join small files; best effort."""
        new = {
            key: self._read[key]
            for key in keys
            if key not in self._rows and key in self._read and self._read[key][2]
        }
        if len(new) < FEWEST:
            return
        rows = [(key, *stamp, raw) for key, (stamp, raw, _) in sorted(new.items())]
        data = _packed(rows)
        joined = self._joined(len(data))
        for path in joined:
            rows += self._sound_rows(path)
        data = _packed(sorted(rows)) if joined else data
        if self._root.try_write(f"{FOLDER}/{uuid.uuid4().hex}.parquet", data):
            for path in joined:
                self._root.delete(path)

    # Files

    def _load(self, asked: int) -> None:
        """Read the files, unless they are larger than what is asked for is worth."""
        if self._files is None:
            self._files = self._root.stamps(FOLDER)
        if sum(size for size, _ in self._files.values()) > WORTH * asked:
            return
        lacking = {path: self._table(path) for path in self._files if path not in self._segments}
        self._segments |= lacking
        self._match(lacking)

    def _table(self, path: str) -> pa.Table:
        """Return the table of a file; one without rows if it is gone, damaged or another's."""
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _COLUMNS.items()])
        raw = self._root.read(path)
        try:
            table = parquet.read_table(io.BytesIO(raw or b""), page_checksum_verification=True)
            sound = table.schema.equals(schema) and not any(c.null_count for c in table.columns)
        except Exception:  # noqa: BLE001  whatever Parquet's reader thinks of damaged bytes
            sound = False
        return table.combine_chunks() if sound else schema.empty_table()

    def _match(self, segments: Mapping[str, pa.Table]) -> None:
        """Find the rows that agree with the listing, and those that something has replaced."""
        if segments is self._segments:
            self._rows.clear()
            self._outdated.clear()
        for path, table in segments.items():
            written = (self._files or {}).get(path, (0, 0))[1]
            columns = [table[name].to_pylist() for name in ("key", "size", "mtime_ns")]
            for number, (key, size, mtime) in enumerate(zip(*columns, strict=True)):
                stamp = self._listed.get(key)
                if stamp == (size, mtime) and mtime + GRAIN <= written:
                    self._rows[key] = path, number
                elif stamp is not None and mtime < stamp[1]:
                    self._outdated[key] = path, number

    def _joined(self, size: int) -> list[str]:
        """Return the files that are written anew together with new rows of so many bytes.

        A file is joined to what is at least half as large: each row is written a few times only.
        """
        if self._files is None:
            self._files = self._root.stamps(FOLDER)
        if len(self._files) < SEGMENTS:
            return []
        joined = []
        for path, (bytes_of_file, _) in sorted(self._files.items(), key=lambda item: item[1]):
            if bytes_of_file > 2 * size:
                break
            joined.append(path)
            size += bytes_of_file
        return joined

    def _sound_rows(self, path: str) -> list[tuple[Any, ...]]:
        """Return the rows of a file that agree with the listing."""
        if path not in self._segments:
            self._segments[path] = self._table(path)
            self._match({path: self._segments[path]})
        import pyarrow as pa

        kept = pa.array([row for at, row in self._rows.values() if at == path], pa.int64())
        return [tuple(one.values()) for one in self._segments[path].take(kept).to_pylist()]


class _Kept:
    """Bytes that are at hand."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __call__(self) -> bytes:
        return self._raw


class _Bytes:
    """A column of byte strings; Arrow's own access to one value takes many times as long."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.chunk(0)  # the only one
        _, ends, values = array.buffers()
        first = array.offset
        self._ends = np.frombuffer(ends, np.int64)[first : first + len(array) + 1]
        self._values = memoryview(values or b"")

    def __getitem__(self, number: int) -> bytes:
        return bytes(self._values[self._ends[number] : self._ends[number + 1]])


class _Row:
    """One value of a column; few bytes of memory beside it."""

    __slots__ = ("_column", "_number")

    def __init__(self, column: _Bytes, number: int) -> None:
        self._column = column
        self._number = number

    def __call__(self) -> bytes:
        return self._column[self._number]


def _packed(rows: Sequence[tuple[Any, ...]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    columns = list(zip(*rows, strict=True))
    arrays = [
        pa.array(column, getattr(pa, kind)())
        for column, kind in zip(columns, _COLUMNS.values(), strict=True)
    ]
    out = io.BytesIO()
    parquet.write_table(
        pa.table(dict(zip(_COLUMNS, arrays, strict=True))), out,
        compression="zstd", row_group_size=ROWS, write_page_checksum=True,
    )  # fmt: skip
    return out.getvalue()
