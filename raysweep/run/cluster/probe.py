"""The look that a worker takes at its host before a batch: is the storage there, and the data?

A host that does not see the storage of the run is given no work. One that lacks the files of a
dataset is given none of the stages that decode files, while another host can; what they leave is
read from the storage.
"""

from __future__ import annotations

import errno
import re
import socket

import ray
from ray.experimental import internal_kv

from raysweep.environment import explained
from raysweep.errors import FilesError, PlanError, StageError, StoreError
from raysweep.identity import kind_of
from raysweep.run.cluster import worker
from raysweep.run.cluster.batch import Batch
from raysweep.stages.prepare import Decode
from raysweep.store import Store

# What another attempt does not change; all else, such as an outage, may pass.
LASTING = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR})
DENIED = re.compile(r"ACCESS_DENIED|SIGNATURE|INVALID_ACCESS_KEY|NO_SUCH_BUCKET|credential", re.I)


def look_for_storage(batch: Batch) -> None:
    """End this process before its first batch if its host does not see the storage."""
    if fault := fault_of_storage(batch.store, batch.marker):
        _tell(f"{batch.refusing}{_node()}", fault)
        worker.leave(batch.ticket)


def look_for_files(batch: Batch) -> None:
    """End this process before a batch that another host is to do, since this one lacks files."""
    if _node() in batch.refused:
        worker.leave(batch.ticket)  # it was free when a worker elsewhere was looked for
    if lack := lacking_files(batch):
        name = f"{batch.lacking}{_node()}"
        if not internal_kv._internal_kv_get(name):  # else no other host is left: the stage fails
            _tell(name, lack)
            worker.leave(batch.ticket)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _tell(name: str, reason: str) -> None:
    internal_kv._internal_kv_put(name, reason.encode(), overwrite=True)


def fault_of_storage(uri: str, marker: str) -> str:
    """Return the reason why no stage of a run can be stored from this host; empty if it can.

    Args:
        uri: of the storage.
        marker: path of a file that the driver has written there.
    """
    store, host = Store(uri), socket.gethostname()
    try:
        if store.read(marker) is None:
            return (
                f"host {host} is given no work: storage {store.where()} is another place there, "
                f"without the files of this run; mount the same folder on every node, or use "
                f"s3://bucket/path or gs://… (--storage), and launch again"
            )
        store.check()
    except StoreError as error:
        cause = error.__cause__
        lasting = isinstance(cause, OSError) and cause.errno in LASTING
        if lasting or DENIED.search(str(error)):
            return (
                f"host {host} is given no work: {explained(error)}; give it access to the storage, "
                f"and launch again"
            )
    return ""


def lacking_files(batch: Batch) -> str:
    """Return a line on files that a batch decodes and this host lacks; empty if it has them."""
    for stage in batch.stages:
        if kind_of(stage.key) != Decode.KIND:
            continue
        try:
            work = stage.unpacked()
            files = work.dataset.local_files() if isinstance(work, Decode) else []
            lack = next((f"{file} is not there" for file in files if not file.exists()), "")
        except (PlanError, FilesError, OSError) as error:
            lack = str(error)
        except StageError:
            continue  # other code, which is told where the stage is performed
        if lack:
            return (
                f"{explained(FilesError(lack))}; it decodes no data while another host can: give "
                f"it the files, or leave it so, since what is decoded is read from the storage"
            )
    return ""
