"""A sweep handed to a cluster from outside, by Ray's jobs server, and followed from there.

The driver runs on the head, as `launch --address auto` does there, with the code, the sweep file
and the methods of this machine. The id of a submission is made of what is submitted, so that
submitting the same again while it runs is to come back to it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from raysweep import environment
from raysweep.errors import HostError, PlanError
from raysweep.identity import canonical, digest
from raysweep.methods import ROLES, paths_of
from raysweep.run.address import SECONDS, jobs_server
from raysweep.run.runtime_env import runtime_env
from raysweep.sweep.loading import LoadedSweep
from raysweep.sweep.spec import Sweep, foreign_modules

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOP_SECONDS = 120  # that records and page may take after a job was told to stop
OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # in Ray, before any address that is given
SETTINGS = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
EXTRA = 'pip install "raysweep[submit]"'


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A sweep on its way through a jobs server.

    Attributes:
        id: of the job.
        name: of the sweep.
        address: URL of the jobs server.
        fresh: whether this call began it; else it was under way.
    """

    id: str
    name: str
    address: str
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
    server = jobs_server(address)
    check_storage(storage)
    check_paths(loaded.sweep, loaded.text)
    client = _client(server)
    named = f"sweep{'.py' if file.suffix == '.py' else '.yaml'}"
    words = [verb, named, *options, "--address", "auto", "--storage", storage]
    base = f"raysweep-{loaded.sweep.name}-{digest(canonical([loaded.text, *words]))[:12]}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / named).write_text(loaded.text)
        with runtime_env(foreign_modules(loaded.sweep)) as code, _asking(server):
            for module in [path for path in code["py_modules"] if path.endswith(".py")]:
                shutil.copy(module, folder)  # a jobs client takes folders alone
                code["py_modules"].remove(module)
            code["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] = str(STOP_SECONDS)
            code["working_dir"] = folder
            found, running = _place(client, base)
            if not running:
                client.submit_job(
                    entrypoint=_entrypoint(words), submission_id=found, runtime_env=code,
                    entrypoint_num_cpus=0, metadata={"sweep": loaded.sweep.name},
                )  # fmt: skip
    return Submission(id=found, name=loaded.sweep.name, address=server, fresh=not running)


def follow(submission: Submission, show: Callable[[str], object]) -> int:
    """Show what a submitted driver prints until it ends; return its exit code."""
    client = _client(submission.address)

    async def tail() -> None:
        async for lines in client.tail_job_logs(submission.id):
            show(lines)

    with _asking(submission.address):
        asyncio.run(tail())
        ended = client.get_job_info(submission.id)
    if ended.driver_exit_code is not None:
        return int(ended.driver_exit_code)
    if ended.status != "SUCCEEDED":
        show(f"{ended.status}: {ended.message}\n")
    return 0 if ended.status == "SUCCEEDED" else 1


def check_storage(storage: str) -> None:
    """Refuse a storage that means nothing on the head of a cluster, or tells a secret.

    Raises:
        PlanError: names the storage, without its secret, and the remedy.
    """
    scheme, divided, rest = storage.partition("://")
    if divided and urlsplit(storage).netloc.rpartition("@")[1]:
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
        f"{name}=${{{name}:-{shlex.quote(given[name])}}}"
        for name in SETTINGS
        if name in given and "@" not in given[name]
    ]
    return " ".join([*settings, "python", "-m", "raysweep", shlex.join(words)])


def _place(client: JobSubmissionClient, base: str) -> tuple[str, bool]:
    """Return the id of a submission, and whether it is under way already.

    A job that has ended keeps its id: the next one has a number behind it.
    """
    states: Mapping[str | None, str] = {job.submission_id: job.status for job in client.list_jobs()}
    number = 1
    while states.get(_numbered(base, number)) in ENDED:
        number += 1
    found = _numbered(base, number)
    return found, found in states


def _numbered(base: str, number: int) -> str:
    return base if number == 1 else f"{base}-{number}"


def _client(server: str) -> JobSubmissionClient:
    """Return the client of a jobs server that answers.

    Raises:
        HostError: if none does.
        PlanError: if it refuses, or this machine lacks what a client needs.
    """
    try:
        import aiohttp  # noqa: F401  the jobs client follows logs with it
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise PlanError(f"submit needs Ray's jobs client ({error}): {EXTRA}") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    for module in ("dashboard_sdk", "job.sdk"):  # each has set a level of its own
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)
    parts = urlsplit(server)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=SECONDS).close()
    except OSError as error:
        raise HostError(
            f"nothing answers at --address {server} ({error}); the jobs server is a part of Ray's "
            f"dashboard: the head needs {EXTRA}, and listens on its loopback, so that from another "
            f"machine it is reached by a tunnel: ssh -L {port}:127.0.0.1:{port} HEAD, then "
            f"--address http://127.0.0.1:{port}"
        ) from None
    with _asking(server), _without(OVERRIDING):
        return JobSubmissionClient(server)


@contextmanager
def _asking(server: str) -> Iterator[None]:
    """Turn what goes wrong with a jobs server into one message with the remedy."""
    try:
        yield
    except (RuntimeError, ConnectionError, OSError, ValueError) as error:
        mode = os.environ.get("RAY_AUTH_MODE", "unset")
        raise PlanError(
            f"the jobs server at --address {server} does not take the request "
            f"({' '.join(str(error).split())[:500]}); check that a dashboard of Ray listens there, "
            f"and that the head has {EXTRA}; a cluster with token authentication asks for "
            f"RAY_AUTH_MODE=token and the cluster's token in ~/.ray/auth_token or at "
            f"RAY_AUTH_TOKEN_PATH (RAY_AUTH_MODE is {mode})"
        ) from None


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Let some variables of the environment be unset for a while."""
    before: dict[str, Any] = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
