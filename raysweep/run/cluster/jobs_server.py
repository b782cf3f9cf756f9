"""The jobs server of a cluster: it takes a job from outside, and its driver runs on the head."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from raysweep.errors import HostError, PlanError
from raysweep.run.cluster.address import SECONDS, jobs_server
from raysweep.run.cluster.runtime_env import RuntimeEnv

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # in Ray, before any address that is given
STARTING, STARTING_SECONDS = "No available agent", 30.0  # a head that has just been started
EXTRA = 'pip install "raysweep[submit]"'


class JobsServer:
    """A jobs server that answers.

    Attributes:
        address: its URL.
    """

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            HostError: if nothing answers.
            PlanError: if the address is none of a jobs server, or it refuses.
        """
        self.address = jobs_server(address)
        self._client = _client(self.address)

    def job_of(self, base: str) -> tuple[str, bool]:
        """Return the id of a job, and whether it is under way already.

        A job that has ended keeps its id: the next one has a number behind it.
        """
        with _asking(self.address):
            states = {job.submission_id: job.status for job in self._client.list_jobs()}
        number, found = 1, base
        while states.get(found) in ENDED:
            number += 1
            found = f"{base}-{number}"
        return found, found in states

    def start(self, job: str, command: str, env: RuntimeEnv) -> None:
        """Run a command of the shell on the head, under an id that no job has had.

        Raises:
            PlanError: if it is refused.
        """
        limit = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                with _asking(self.address):
                    self._client.submit_job(
                        entrypoint=command, submission_id=job, runtime_env=env,
                        entrypoint_num_cpus=0,
                    )  # fmt: skip
            except PlanError as error:
                if STARTING not in str(error) or time.monotonic() > limit:
                    raise
                time.sleep(1.0)
            else:
                return

    def stop(self, job: str) -> None:
        """Ask the command of a job to end, with SIGTERM."""
        with _asking(self.address):
            self._client.stop_job(job)

    def follow(self, job: str, show: Callable[[str], None]) -> int:
        """Return the exit code of a job, after all that it prints was shown as it came.

        Raises:
            HostError: if the jobs server is lost before the job has ended.
        """

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(job):
                show(lines)

        try:
            asyncio.run(tail())
        except Exception as error:  # noqa: BLE001  Ray has no one class for what may go wrong
            raise HostError(
                f"the jobs server at --address {self.address} is lost "
                f"({' '.join(str(error).split())[:500]}): the head, or the way to it; what the "
                f"driver has stored is kept"
            ) from None
        with _asking(self.address):
            ended = self._client.get_job_info(job)
        if ended.driver_exit_code is not None:
            return int(ended.driver_exit_code)
        if ended.status != "SUCCEEDED":
            show(f"{ended.status}: {ended.message}\n")
        return 0 if ended.status == "SUCCEEDED" else 1


def _client(address: str) -> JobSubmissionClient:
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
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=SECONDS).close()
    except OSError as error:
        raise HostError(
            f"nothing answers at --address {address} ({error}); the jobs server is a part of Ray's "
            f"dashboard: the head needs {EXTRA}, and listens on its loopback, so that from another "
            f"machine it is reached by a tunnel: ssh -L {port}:127.0.0.1:{port} HEAD, then "
            f"--address http://127.0.0.1:{port}"
        ) from None
    with _asking(address), _without(OVERRIDING):
        return JobSubmissionClient(address)


@contextmanager
def _asking(address: str) -> Iterator[None]:
    """Turn what goes wrong with a jobs server into one message with the remedy."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  Ray has no one class for what may go wrong
        mode = os.environ.get("RAY_AUTH_MODE", "unset")
        raise PlanError(
            f"the jobs server at --address {address} does not take the request "
            f"({' '.join(str(error).split())[:500]}); check that a dashboard of Ray listens there, "
            f"and that the head has {EXTRA}; a cluster with token authentication asks for "
            f"RAY_AUTH_MODE=token and the cluster's token in ~/.ray/auth_token or at "
            f"RAY_AUTH_TOKEN_PATH (RAY_AUTH_MODE is {mode})"
        ) from None


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Let some variables of the environment be unset for a while."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
