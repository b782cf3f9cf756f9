"""Addresses of clusters: every form is taken, or refused at once with the remedy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from raysweep.errors import PlanError
from raysweep.run.cluster import address

TAKEN = ["auto", "10.0.0.5:6379", "head.local:6379", "ip-10-0-0-5:1", "[::1]:65535"]
REFUSED = {
    "": "is no address of a cluster; give `auto` on a node",
    "http://head:8265": "`raysweep submit FILE --address http://head:8265`",
    "https://head": "is a jobs server",
    "ray://head:10001": "`raysweep submit FILE --address http://head:8265` from here",
    "ray://[::1]:10001": "is a Ray Client, over which Ray Tune cannot be driven",
    "local": "Ray is started on this machine; leave it out",
    "anyscale://cluster": "no cluster of raysweep is reached by anyscale://",
    "s3://bucket": "no cluster of raysweep is reached by s3://",
    "head": "has no port; give head:6379",
    "10.0.0.5": "has no port; give 10.0.0.5:6379",
    "[::1]": "has no port; give [::1]:6379",
    "::1": "an IPv6 address stands in brackets, such as [::1]:6379",
    "fe80::1:6379": "an IPv6 address stands in brackets",
    "head:0": "is no address of a cluster",
    "head:65536": "is no address of a cluster",
    "head:port": "is no address of a cluster",
    "head:": "is no address of a cluster",
    ":6379": "is no address of a cluster",
    "a head:6379": "is no address of a cluster",
    "head:6379/path": "is no address of a cluster",
    "session_2026-01-01_00-00-00_1_2": "is no address of a cluster",
    "session_latest": "is no address of a cluster",
}


@pytest.mark.parametrize("given", TAKEN)
def test_an_address_of_a_driver(given: str) -> None:
    assert address.head(given) == given


@pytest.mark.parametrize("given", REFUSED)
def test_an_address_that_no_driver_can_use(given: str) -> None:
    with pytest.raises(PlanError) as refused:
        address.head(given)
    assert repr(given) in str(refused.value) and REFUSED[given] in str(refused.value)


JOBS = {
    "http://head:8265": "http://head:8265",
    "http://head:8265/": "http://head:8265",
    "https://jobs.example.org": "https://jobs.example.org",
    "http://[::1]:8265": "http://[::1]:8265",
}
NO_JOBS = {
    "auto": "give http://HEAD:8265",
    "local": "give http://HEAD:8265",
    "": "give http://HEAD:8265",
    "10.0.0.5:6379": "give http://10.0.0.5:8265",
    "head": "give http://head:8265",
    "ray://head:10001": "give http://head:8265",
    "http://": "give http://HEAD:8265",
    "http://head:port": "give http://HEAD:8265",
    "http://head:99999": "give http://HEAD:8265",
    "http://[::1:8265": "give http://HEAD:8265",
}


@pytest.mark.parametrize("given", JOBS)
def test_an_address_of_a_jobs_server(given: str) -> None:
    assert address.jobs_server(given) == JOBS[given]


@pytest.mark.parametrize("given", NO_JOBS)
def test_an_address_that_is_no_jobs_server(given: str) -> None:
    with pytest.raises(PlanError) as refused:
        address.jobs_server(given)
    assert repr(given) in str(refused.value) and NO_JOBS[given] in str(refused.value)


def test_a_password_in_an_address_is_refused_and_not_told() -> None:
    with pytest.raises(PlanError, match=r"http://…@head: no name and no password") as refused:
        address.jobs_server("http://me:sesame@head:8265")
    assert "sesame" not in str(refused.value)


@pytest.fixture(params=[b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b""])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[int, bytes]]:
    """A server that is no head: its port, and what it answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connected, _ = listening.accept()
            connected.recv(100)
            connected.sendall(request.param)
            connected.close()

        answering = threading.Thread(target=answer)
        answering.start()
        yield listening.getsockname()[1], request.param
        answering.join()


def test_a_server_that_is_no_head_is_told_at_once(server: tuple[int, bytes]) -> None:
    port, answer = server
    with pytest.raises(PlanError) as refused:
        address.found(f"127.0.0.1:{port}")
    if answer.startswith(b"HTTP"):
        assert "is a web server, perhaps the dashboard" in str(refused.value)
        assert f"`raysweep submit FILE --address http://127.0.0.1:{port}`" in str(refused.value)
    else:
        assert "something listens that is no head of Ray" in str(refused.value)


def test_nothing_at_a_port_or_a_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(PlanError, match=f"answers at --address '127.0.0.1:{port}' .*refused"):
        address.found(f"127.0.0.1:{port}")
    with pytest.raises(PlanError, match=r"the name .head\.invalid. is not known here"):
        address.found("head.invalid:6379")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(PlanError, match=r"answers at RAY_ADDRESS \(for --address auto\) '127"):
        address.found("auto")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(PlanError, match="RAY_ADDRESS 'ray://head:10001' is a Ray Client"):
        address.found("auto")


def test_a_call_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "SECONDS", 0.01)
    waiting = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.02 s"):
        address._within_seconds(waiting.wait)
    waiting.set()
    assert address._within_seconds(lambda: 3) == 3


def test_a_head_that_has_just_begun_is_waited_for_until_it_knows_a_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = "ab" * 28
    node = GcsNodeInfo(state=GcsNodeInfo.ALIVE)
    answers = [{}, {}, {}, {bytes.fromhex(here): node}]
    asked: list[str] = []

    class Head:
        def __init__(self, address: str) -> None:
            asked.append(address)

        def get_all_node_info(self, timeout: float) -> dict[bytes, GcsNodeInfo]:
            return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr("ray._raylet.GcsClient", Head)
    monkeypatch.setattr("ray._private.services.find_node_ids", lambda: {here})
    monkeypatch.setattr(address, "LOOK_SECONDS", 0.4)
    monkeypatch.setattr(address, "SECONDS", 0.5)  # less than the looks that find no node take
    address._ask("--address", "10.0.0.5:6379")
    assert len(asked) == 4
    monkeypatch.setattr("ray._private.services.find_node_ids", lambda: {"cd" * 28})
    with pytest.raises(PlanError, match="this machine is no node of that cluster"):
        address._ask("--address", "10.0.0.5:6379")
