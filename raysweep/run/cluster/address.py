"""The address of a cluster: read, found and tried at once, since Ray itself would try for minutes.

A driver runs on a node of its cluster and is given `auto`, or `HOST:PORT` of the head. From any
other machine a sweep is submitted, to the jobs server at `http://HEAD:8265`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from raysweep.errors import PlanError

HEAD_PORT, JOBS_PORT, CLIENT_PORT = 6379, 8265, 10001  # where Ray listens by default
SECONDS = 5.0  # what each step may take: a name, a connection, an answer
STARTING_SECONDS = 30.0  # and a head that has just been started, until it knows a node
LOOK_SECONDS = 0.3
# What a client of HTTP/2 says first, as every client of gRPC does, and an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
SETTINGS = 4
_HOST = r"(\[[0-9a-fA-F:.%\w]+\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]*))"
_FORMS = (
    "give `auto` on a node of the cluster, or HOST:PORT of its head there, such as "
    f"10.0.0.5:{HEAD_PORT}; from another machine, `raysweep submit FILE --address "
    f"http://HEAD:{JOBS_PORT}`"
)
T = TypeVar("T")


def head(address: str, given: str = "--address") -> str:
    """Return `auto`, or HOST:PORT of the head, that an address of a driver names; asks nobody.

    Args:
        address: as a user writes it.
        given: where it was written, for the message.

    Raises:
        PlanError: if a driver cannot use an address of this form; names the remedy.
    """
    told, (scheme, divided, rest) = f"{given} {address!r}", address.partition("://")
    if address == "auto":
        return address
    if divided and scheme in ("http", "https"):
        raise PlanError(
            f"{told} is a jobs server, which takes a whole sweep: "
            f"`raysweep submit FILE --address {address}`; launch and tune run on a node of the "
            f"cluster, with --address auto"
        )
    if divided and scheme == "ray":
        name = urlsplit(f"//{rest}").hostname or "HEAD"
        raise PlanError(
            f"{told} is a Ray Client, over which Ray Tune cannot be driven; "
            f"`raysweep submit FILE --address http://{name}:{JOBS_PORT}` from here, or launch on a "
            f"node of the cluster with --address auto"
        )
    if address == "local":
        raise PlanError(f"{told}: without --address, Ray is started on this machine; leave it out")
    if divided:
        raise PlanError(f"{told}: no cluster of raysweep is reached by {scheme}://; {_FORMS}")
    if re.fullmatch(_HOST, address) and not address.startswith("session_"):
        raise PlanError(
            f"{told} has no port; give {address}:{HEAD_PORT}, where the head of a cluster listens "
            f"unless it was started with another --port"
        )
    found = re.fullmatch(rf"{_HOST}:(\d+)", address)
    if found is None and address.count(":") > 1:
        raise PlanError(f"{told}: an IPv6 address stands in brackets, such as [::1]:{HEAD_PORT}")
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise PlanError(f"{told} is no address of a cluster; {_FORMS}")
    return address


def jobs_server(address: str) -> str:
    """Return the URL of a cluster's jobs server, without a slash at its end; asks nobody.

    Raises:
        PlanError: if the address is of another form; names the remedy.
    """
    here = f"http://127.0.0.1:{JOBS_PORT}"
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
        name = parts.hostname if "://" in address else urlsplit(f"//{address}").hostname
    except ValueError:  # a port that is no number, brackets that do not close
        good, name = None, None
    name = name if name and name not in ("auto", "local") else None
    remedy = f"http://{name}:{JOBS_PORT}" if name else f"http://HEAD:{JOBS_PORT}"
    if not good:
        raise PlanError(
            f"--address {address!r}: a sweep is submitted to the jobs server of a cluster, which "
            f"listens beside the dashboard: give {remedy}; on the head itself, or through an ssh "
            f"tunnel (ssh -L {JOBS_PORT}:127.0.0.1:{JOBS_PORT} HEAD), {here}"
        )
    if parts.username or parts.password:
        raise PlanError(
            f"--address of {parts.scheme}://…@{parts.hostname}: no name and no password stand in "
            f"the address of a jobs server; Ray's token does that (RAY_AUTH_MODE=token)"
        )
    return address.rstrip("/")


def found(address: str) -> str:
    """Return HOST:PORT of the head of the cluster at an address, which answers now.

    Raises:
        PlanError: if none answers there within seconds, or this machine is no node of it.
    """
    given, place = "--address", head(address)
    if place == "auto":
        named = os.environ.get("RAY_ADDRESS", "")
        if named and named != "auto":
            given, place = "RAY_ADDRESS (for --address auto)", head(named, "RAY_ADDRESS")
        else:
            place = _on_this_machine()
    _knock(given, place)
    _ask(given, place)
    return place


def answers(place: str) -> bool:
    """Return whether something at HOST:PORT speaks as the head of a cluster does, now."""
    try:
        _knock("--address", place)
    except PlanError:
        return False
    return True


def listens(place: str) -> bool:
    """Return whether a process holds HOST:PORT, of this machine, although it may not answer."""
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
    except ConnectionRefusedError:
        return False
    except OSError:  # too busy to take it
        return True
    return True


def nodes_alive(place: str) -> dict[str, bool]:
    """Return of each node that the head at HOST:PORT knows, by id, whether it is alive.

    Raises:
        Exception: of many kinds, if it does not answer.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    known = GcsClient(address=place).get_all_node_info(timeout=SECONDS)
    return {node.hex(): info.state == GcsNodeInfo.ALIVE for node, info in known.items()}


def _on_this_machine() -> str:
    from ray._private import services

    try:
        return str(services.canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError as error:
        raise PlanError(
            f"--address auto: no one cluster of Ray runs on this machine ({error}); start one with "
            f"`ray start --head`, or {_FORMS}"
        ) from None


def _knock(given: str, place: str) -> None:
    """Make sure that something at a place speaks as the head of a cluster does.

    Raises:
        PlanError: if it does not.
    """
    name, _, port = place.rpartition(":")
    name = name.strip("[]")
    try:
        places = _within_seconds(lambda: socket.getaddrinfo(name, int(port), 0, socket.SOCK_STREAM))
    except OSError as error:
        raise PlanError(
            f"{given} {place!r}: the name {name!r} is not known here ({error}); give the address "
            f"of the head as the nodes see it, such as 10.0.0.5:{port}"
        ) from None
    try:
        answer = _answer(str(places[0][4][0]), int(port))
    except OSError as error:
        raise PlanError(
            f"no Ray cluster answers at {given} {place!r} ({error}); check that it runs "
            f"(ray status), and that this machine reaches it"
        ) from None
    if answer.startswith(b"HTTP/1"):
        raise PlanError(
            f"{given} {place!r} is a web server, perhaps the dashboard of the cluster: "
            f"`raysweep submit FILE --address http://{place}`; for launch, {_FORMS}"
        )
    if "RAY_USE_TLS" not in os.environ and answer[3:4] != bytes([SETTINGS]):
        raise PlanError(f"at {given} {place!r} something listens that is no head of Ray; {_FORMS}")


def _answer(host: str, port: int) -> bytes:
    """Return the first bytes that a server answers to a client of gRPC; none if it is silent."""
    with socket.create_connection((host, port), timeout=SECONDS) as connected:
        connected.sendall(PREFACE)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            return connected.recv(64)
    return b""


def _ask(given: str, place: str) -> None:
    """Make sure that the head of a cluster knows a node on this machine.

    Raises:
        PlanError: if it does not, or asks for a token.
    """
    from ray._private import services
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled

    try:
        ensure_token_if_auth_enabled({}, create_token_if_missing=False)  # else Ray's core aborts
        began = time.monotonic()
        while True:
            known = _within_seconds(lambda: nodes_alive(place)).keys()
            here = not known.isdisjoint(services.find_node_ids())
            # A head that has just begun knows no node yet, not even its own.
            if here or time.monotonic() > began + (SECONDS if known else STARTING_SECONDS):
                break
            time.sleep(LOOK_SECONDS)
    except Exception as error:  # noqa: BLE001  Ray has no one class for what may go wrong
        mode = os.environ.get("RAY_AUTH_MODE", "unset")
        raise PlanError(
            f"no Ray cluster answers at {given} {place!r} ({' '.join(str(error).split())}); check "
            f"that it is the port of the head, not that of a Ray Client ({CLIENT_PORT}), and if "
            f"the cluster uses token authentication, which new clusters do by default, set "
            f"RAY_AUTH_MODE=token here and give this host the cluster's token in "
            f"~/.ray/auth_token or RAY_AUTH_TOKEN_PATH (RAY_AUTH_MODE is {mode})"
        ) from None
    if not here:
        raise PlanError(
            f"{given} {place!r}: this machine is no node of that cluster, and a driver must run on "
            f"one: launch there with --address auto, or from here `raysweep submit FILE --address "
            f"http://HEAD:{JOBS_PORT}`"
        )


def _within_seconds(call: Callable[[], T]) -> T:
    """Return the value of a call that may hang, or what it raises; TimeoutError after a while."""
    ended: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except BaseException as error:  # noqa: BLE001  raised where the answer is waited for
            ended.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = ended.get(timeout=2 * SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {2 * SECONDS:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
