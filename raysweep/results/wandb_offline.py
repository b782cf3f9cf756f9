"""Offline runs of W&B that hold numbers alone, written without its client.

An offline run is a folder with a log of records, which `wandb sync` and `wandb beta leet` read. The
log has the format of LevelDB's. Thousands of trials are written so in seconds: for each run W&B's
client takes about ten times as long.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.results.entries import Entry
from raysweep.results.wandb_settings import EXIT_CODES, MARK
from raysweep.sweep.spec import Track

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record

BLOCK_BYTES = 32 * 1024
START = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
CHUNK = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
LEAST_SERVER = "0.70.0"  # that reads such records, as W&B's client says


def is_plain(entry: Entry) -> bool:
    """Return whether an entry holds numbers alone: no tables, charts, pictures or artifacts."""
    return not (entry.tables or entry.media or entry.writes) and entry.state != "running"


def write(entry: Entry, track: Track, group: str, folder: Path) -> Path:
    """Write the folder of a run, named as W&B names it, and return it.

    Args:
        entry: what the run says: numbers alone.
        track: project and entity.
        group: of the run, if its entry names none.
        folder: below whose `wandb` offline runs are kept.

    Raises:
        OSError: if it cannot be written.
    """
    now = time.time()
    stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(now))
    run = first = folder / "wandb" / f"offline-run-{stamp}-{entry.run}"
    again = 0
    while run.exists():  # It was told before in this second.
        again += 1
        run = first.with_name(f"{first.name}-{again}")
    (run / "files").mkdir(parents=True)
    records = _records(entry, track, group, now)
    (run / f"run-{entry.run}.wandb").write_bytes(log(one.SerializeToString() for one in records))
    return run


def _records(entry: Entry, track: Track, group: str, now: float) -> Iterator[Record]:
    """Yield the records of a run in their order: its beginning, its steps, its end."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    head = Record(num=1)
    head.header.version_info.producer = wandb.__version__
    head.header.version_info.min_consumer = LEAST_SERVER
    yield head
    begun = Record(num=2)
    run = begun.run
    run.run_id, run.display_name, run.notes = entry.run, entry.name, entry.notes
    run.project, run.entity = track.project, track.entity or ""
    run.run_group, run.job_type = entry.group or group, entry.job
    run.tags.extend(entry.tags)
    run.start_time.FromNanoseconds(int(1e9 * now))
    for name, cell in entry.config.items():
        run.config.update.add(key=name, value_json=json.dumps(cell))
    yield begun
    steps = [*entry.history, entry.summary]
    for step, numbers in enumerate(steps):
        told = Record(num=3 + step)
        told.history.step.num = step
        for name, number in {**numbers, "_step": step, "_timestamp": now, "_runtime": 0}.items():
            told.history.item.add(nested_key=[name], value_json=json.dumps(number))
        yield told
    # The client keeps the latest number of each name.
    latest = {name: number for numbers in steps for name, number in numbers.items()}
    summary = Record(num=3 + len(steps))
    for name, said in {**latest, MARK: entry.mark}.items():
        summary.summary.update.add(nested_key=[name], value_json=json.dumps(said))
    yield summary
    end = Record(num=4 + len(steps))
    end.exit.exit_code = EXIT_CODES[entry.state]
    yield end


def log(records: Iterable[bytes]) -> bytes:
    """Return a log of records: chunks with a checksum each, which cross no border of a block."""
    out = bytearray(START)
    for record in records:
        left, begun = record, False
        while left or not begun:
            room = BLOCK_BYTES - len(out) % BLOCK_BYTES - CHUNK.size
            if room < 0:
                out += bytes(room + CHUNK.size)
                continue
            part, left = left[:room], left[room:]
            kind = (LAST if begun else FULL) if not left else (MIDDLE if begun else FIRST)
            out += CHUNK.pack(zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            begun = True
    return bytes(out)
