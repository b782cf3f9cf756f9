"""A sweep handed to a cluster from outside, by Ray's jobs server, and followed from there.

The driver runs on the head, as `launch --address auto` does there, with the code, the sweep file
and the methods of this machine. The id of a submission is made of what is submitted, so that
submitting the same again while it runs is to come back to it.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from raysweep import environment
from raysweep.errors import PlanError
from raysweep.identity import canonical, digest
from raysweep.methods import ROLES, paths_of
from raysweep.run.cluster.jobs_server import JobsServer
from raysweep.run.cluster.runtime_env import runtime_env
from raysweep.sweep.loading import LoadedSweep
from raysweep.sweep.spec import Sweep, foreign_modules

STOP_SECONDS = 120  # that records and page may take after a job was told to stop
SETTINGS = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A sweep on its way through a jobs server.

    Attributes:
        job: id of the job.
        name: of the sweep.
        server: the jobs server that has it.
        fresh: whether this call began it; else it was under way.
    """

    job: str
    name: str
    server: JobsServer
    fresh: bool


def submit(
    loaded: LoadedSweep,
    file: Path,
    storage: str,
    *,
    address: str,
    verb: Literal["launch", "tune"] = "launch",
    options: Sequence[str] = (),
) -> Submission:
    """Hand a sweep to the jobs server of a cluster, or find it there under way.

    Args:
        loaded: the sweep, and the text that travels, with the values that were set.
        file: its file, whose ending says what it is.
        storage: a URI, or a folder from the root that all nodes share.
        address: URL of the jobs server.
        verb: what the head does with it.
        options: of that command, beside address and storage.

    Raises:
        PlanError: if address or storage are of no use to a head, or the jobs server refuses.
        HostError: if nothing answers at the address.
    """
    check_storage(storage)
    check_paths(loaded.sweep, loaded.text)
    server = JobsServer(address)
    named = f"sweep{'.py' if file.suffix == '.py' else '.yaml'}"
    words = [verb, named, *options, "--address", "auto", "--storage", storage]
    base = f"raysweep-{loaded.sweep.name}-{digest(canonical([loaded.text, *words]))[:12]}"
    job, running = server.job_of(base)
    if not running:
        with (
            tempfile.TemporaryDirectory() as folder,
            runtime_env(foreign_modules(loaded.sweep)) as env,
        ):
            (Path(folder) / named).write_text(loaded.text, encoding="utf-8")
            for module in [path for path in env["py_modules"] if path.endswith(".py")]:
                shutil.copy(module, folder)  # a jobs server takes folders alone
                env["py_modules"].remove(module)
            env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] = str(STOP_SECONDS)
            env["working_dir"] = folder
            server.start(job, _entrypoint(words), env)
    return Submission(job=job, name=loaded.sweep.name, server=server, fresh=not running)


def check_storage(storage: str) -> None:
    """Refuse a storage that means nothing on the head of a cluster, or tells a secret.

    Raises:
        PlanError: names the storage, without its secret, and the remedy.
    """
    scheme, divided, rest = storage.partition("://")
    if divided and urlsplit(storage).password is not None:
        raise PlanError(
            f"--storage {scheme}://…@{rest.rpartition('@')[2]}: holds a key, and Ray's dashboard "
            f"shows the commands of jobs; leave it out, and give each host its own access (a role, "
            f"or its own ~/.aws)"
        )
    if not divided and not storage.startswith("/"):
        raise PlanError(
            f"--storage {storage!r} is a folder of this machine, and the driver will run on the "
            f"head of the cluster; give s3://bucket/path, gs://…, or the path from the root of a "
            f"folder that all nodes share"
        )


def check_paths(sweep: Sweep, text: str) -> None:
    """Refuse paths that start at the sweep file's folder: on the head it is another one.

    Raises:
        PlanError: names the method, the field and the remedy.
    """
    for role in ROLES:
        for method in getattr(sweep, role):
            for field, path in paths_of(method):
                if str(path) not in text:
                    raise PlanError(
                        f"{role[:-1]} {method.name}: {field} must be a path from the root that all "
                        f"nodes have, since the sweep file travels alone; got one that leads to "
                        f"{str(path)!r} here"
                    )


def _entrypoint(words: Sequence[str]) -> str:
    """Return the command of a job; a setting of the head's own stands before this machine's."""
    given = environment.gathered(local=False).values
    settings = [
        f"{name}=${{{name}:-{shlex.quote(given[name])}}}" for name in SETTINGS if name in given
    ]
    return " ".join([*settings, "python", "-m", "raysweep", shlex.join(words)])
