"""An S3 server of this process, over loopback, that counts its requests and can be broken.

Between the client's socket and moto stands `Faulty`: it answers 500 and 503, waits, resets the
connection, or reads half of an upload and resets it then.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

Fault = str  # "500", "503", "reset", "torn", or "slow"
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>busy</Message></Error>"


class Faulty:
    """The application of a server, with its requests counted and some of them broken."""

    def __init__(self, inner: Application) -> None:
        self.inner = inner
        self.requests: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self._endless: tuple[Fault, Callable[[str, str], bool]] | None = None
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], answer: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests[environ["REQUEST_METHOD"]] += 1
            fault = self._next(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if fault == "slow":
            time.sleep(0.1)
        elif fault in ("500", "503"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            answer(f"{fault} Broken", [("Content-Type", "application/xml")])
            return [BUSY]
        elif fault in ("reset", "torn"):
            half = int(environ.get("CONTENT_LENGTH") or 0) // 2
            environ["wsgi.input"].read(half if fault == "torn" else 0)
            connection: socket.socket = environ["werkzeug.socket"]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            raise ConnectionResetError("by the test")
        return self.inner(environ, answer)

    def _next(self, method: str, path: str) -> Fault | None:
        if self._endless is not None and self._endless[1](method, path):
            return self._endless[0]
        return self.faults.pop(0) if self.faults else None

    def break_next(self, *faults: Fault) -> None:
        """Break the next requests, one fault each."""
        with self._lock:
            self.faults += faults

    @contextlib.contextmanager
    def broken(
        self, fault: Fault, where: Callable[[str, str], bool] = lambda method, path: True
    ) -> Iterator[None]:
        """Break every request, or those of a method and a path, while the context lasts."""
        self._endless = (fault, where)
        try:
            yield
        finally:
            self._endless = None

    @contextlib.contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Yield a counter that holds the requests of the context at its end, by method."""
        before, found = Counter(self.requests), Counter[str]()
        yield found
        found.update(self.requests - before)


class S3:
    """A server with one bucket; `uri` names a place in it, `faulty` breaks and counts."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"  # one connection for many requests, as S3 has it

            def log(self, *args: Any) -> None:
                del args

            def setup(self) -> None:
                super().setup()
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        self.faulty = Faulty(DomainDispatcherApplication(create_backend_app))
        self._server = make_server(
            "127.0.0.1", 0, self.faulty, threaded=True, request_handler=Quiet
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = f"127.0.0.1:{self._server.server_port}"
        self.make_bucket()

    def make_bucket(self) -> None:
        from pyarrow import fs

        filesystem = fs.S3FileSystem(
            access_key="test", secret_key="password", scheme="http", region="us-east-1",
            endpoint_override=self.endpoint, allow_bucket_creation=True,
        )  # fmt: skip
        filesystem.create_dir("bucket")

    def uri(self, place: str) -> str:
        options = f"endpoint_override={self.endpoint.replace(':', '%3A')}&scheme=http"
        return f"s3://test:password@bucket/{place}?{options}&region=us-east-1"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """A server that all tests of a session share; each takes a place of its own."""
    pytest.importorskip("moto.server", reason="pip install 'moto[s3]' flask flask-cors")
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    server = S3()
    yield server
    server.close()
