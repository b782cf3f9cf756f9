"""A W&B server on loopback for tests: what the installed wandb asks for, and faults to order.

It takes any key, keeps everything in memory and answers the requests that logging, uploading a
table, `wandb sync` and asking what arrived make. `server.state` is what arrived.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

ENTITY = "somebody"
PROJECT = {"id": "P1", "internalId": "P1", "name": "p", "entity": {"name": ENTITY}}
END = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")
STREAM = re.compile(r"/files/[^/]+/[^/]+/([^/]+)/file_stream")
NO_RUNS = {"edges": [], "pageInfo": END}
# A status; no answer at all; a proxy's page with status 200; JSON of nothing; a list of no runs.
What = int | Literal["hang", "html", "empty", "no runs"]


@dataclass
class Arrived:
    """One run, as the server has it."""

    name: str = ""
    group: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[int, Any] = field(default_factory=dict)  # By offset: sent twice is kept once.
    state: str = "running"


@dataclass
class Fault:
    """What happens, how often and after how many, to requests whose label holds `part`."""

    part: str
    what: What
    times: int = 1_000_000
    after: int = 0


class State:
    """Everything that arrived: runs, artifacts, uploads; and the faults that are ordered."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.released = threading.Event()
        self.url = ""
        self.clear()

    def clear(self) -> None:
        """Forget everything and let whoever hangs go."""
        self.released.set()
        self.released = threading.Event()
        self.runs: dict[str, Arrived] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.uploads: set[str] = set()
        self.requests: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.numbers = itertools.count(1)

    def order(self, part: str, what: What, **more: Any) -> None:
        """Order a fault; a label is `graphql NAME`, `file_stream RUN` or `upload`."""
        self.faults.append(Fault(part, what, **more))

    def due(self, label: str) -> What | None:
        """Count a request and return the fault that is due for it."""
        with self.lock:
            self.requests[label] += 1
            for fault in self.faults:
                if fault.part in label:
                    if fault.after > 0:
                        fault.after -= 1
                    elif fault.times > 0:
                        fault.times -= 1
                        return fault.what
        return None

    def stream(self, run: str, told: dict[str, Any]) -> None:
        """Take lines of history, a summary and the end of a run."""
        with self.lock:
            kept = self.runs.setdefault(run, Arrived())
            files = told.get("files") or {}
            if lines := files.get("wandb-history.jsonl"):
                for offset, line in enumerate(lines["content"], lines.get("offset", 0)):
                    kept.history[offset] = json.loads(line)
            if summary := files.get("wandb-summary.json"):
                kept.summary |= json.loads(summary["content"][-1])
            if told.get("complete"):
                kept.state = "finished" if told.get("exitcode", 0) == 0 else "failed"


def _bucket(run: str, kept: Arrived) -> dict[str, Any]:
    """Return a run as wandb-core and the public API read it."""
    return {
        "id": f"B-{run}", "name": run, "displayName": kept.name, "description": "", "notes": "",
        "config": json.dumps({k: {"value": v} for k, v in kept.config.items()}),
        "summaryMetrics": json.dumps(kept.summary), "historyLineCount": len(kept.history),
        "eventsLineCount": 0, "logLineCount": 0, "historyTail": "[]", "eventsTail": "[]",
        "tags": [], "wandbConfig": "{}", "sweepName": None, "group": kept.group, "jobType": "",
        "project": PROJECT | {"name": kept.project}, "state": kept.state, "commit": None,
        "createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": "2026-01-01T00:00:00Z",
        "systemMetrics": "{}", "readOnly": False, "historyKeys": None, "projectId": 1,
        "user": {"name": ENTITY, "username": ENTITY},
    }  # fmt: skip


def _artifact(number: str, kept: dict[str, Any]) -> dict[str, Any]:
    """Return an artifact as the public API reads it."""
    sequence = {"__typename": "ArtifactSequence", "project": PROJECT}
    return {
        "__typename": "Artifact", "id": number, "versionIndex": 0, "state": kept["state"],
        "artifactSequence": sequence | {"name": kept["name"]},
        "artifactType": {"name": "run_table"}, "description": None, "metadata": None,
        "ttlDurationSeconds": -1, "ttlIsInherited": False, "tags": [], "historyStep": None,
        "size": 1, "digest": kept["digest"], "commitHash": None, "fileCount": 1,
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None, "aliases": [],
    }  # fmt: skip


class Answers:
    """Answers to GraphQL operations: one method each, named like the operation."""

    def __init__(self, state: State) -> None:
        self.state = state

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables.get("input")
        known = getattr(self, f"on_{operation.lower()}", None)
        with self.state.lock:
            told = known(given if isinstance(given, dict) else variables) if known else {}
        return dict(told)

    def on_viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"id": "T1", "name": ENTITY}}]}
        return {"viewer": {"id": "U1", "entity": ENTITY, "username": ENTITY, "email": "s@s",
                           "flags": "{}", "teams": teams, "admin": False}}  # fmt: skip

    def on_getdefaultentity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "U1", "entity": ENTITY, "username": ENTITY}}

    def on_serverfeaturesquery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_upsertbucket(self, v: dict[str, Any]) -> dict[str, Any]:
        fresh = v["name"] not in self.state.runs
        kept = self.state.runs.setdefault(v["name"], Arrived())
        kept.project = v.get("project") or kept.project
        kept.name = v.get("displayName") or kept.name
        kept.group = v.get("groupName") or kept.group
        told = json.loads(v.get("config") or "{}")
        kept.config |= {k: c.get("value") if isinstance(c, dict) else c for k, c in told.items()}
        return {"upsertBucket": {"bucket": _bucket(v["name"], kept), "inserted": fresh}}

    def on_runresumestatus(self, v: dict[str, Any]) -> dict[str, Any]:
        kept = self.state.runs.get(v["name"])
        return {"model": PROJECT | {"bucket": _bucket(v["name"], kept) if kept else None}}

    def on_createrunfiles(self, v: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": n, "uploadUrl": self._upload(f"{v['run']}/{n}")} for n in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def on_artifacttype(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def on_createartifact(self, v: dict[str, Any]) -> dict[str, Any]:
        number = f"A{next(self.state.numbers)}"
        names = v.get("artifactCollectionNames") or [v.get("artifactCollectionName")]
        self.state.artifacts[number] = {
            "run": v.get("runName"), "name": names[0], "digest": v["digest"], "state": "PENDING",
        }  # fmt: skip
        sequence = {"id": "S1", "latestArtifact": None}
        made = {"id": number, "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": made}}

    def on_createartifactmanifest(self, v: dict[str, Any]) -> dict[str, Any]:
        url = self._upload(f"{v['artifactID']}/manifest.json")
        file = {"id": "F1", "name": "wandb_manifest.json", "displayName": "m", "uploadUrl": url,
                "uploadHeaders": []}  # fmt: skip
        return {"createArtifactManifest": {"artifactManifest": {"id": "M1", "file": file}}}

    def on_createartifactfiles(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = [
            {"node": {"id": f"F{n}", "name": one["name"], "displayName": one["name"],
                      "uploadUrl": self._upload(f"{one['artifactID']}/{one['name']}"),
                      "uploadHeaders": [], "storagePath": one["name"], "uploadMultipartUrls": None,
                      "artifact": {"id": one["artifactID"]}}}
            for n, one in enumerate(v.get("files") or v.get("artifactFiles") or [])
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_commitartifact(self, v: dict[str, Any]) -> dict[str, Any]:
        self.state.artifacts[v["artifactID"]]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": ""}}}

    def on_runs(self, v: dict[str, Any]) -> dict[str, Any]:
        """Answer what `wandb.Api().runs` asks; of filters, only `{"name": {"$in": [...]}}`."""
        wanted = json.loads(v["filters"])["name"]["$in"]
        found = [(run, kept) for run, kept in self.state.runs.items()
                 if run in wanted and kept.project == v["project"]]  # fmt: skip
        edges = [{"node": _bucket(run, kept), "cursor": run} for run, kept in found]
        runs = {"edges": edges[: v["perPage"]], "pageInfo": END}
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False,
                            "runs": runs}}  # fmt: skip

    def on_runoutputartifacts(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = [{"node": _artifact(number, kept)} for number, kept in self.state.artifacts.items()
                 if kept["run"] == v["run"] and kept["state"] == "COMMITTED"]  # fmt: skip
        page = {"totalCount": len(edges), "pageInfo": END, "edges": edges}
        return {"project": {"run": {"artifacts": page}}}

    def _upload(self, path: str) -> str:
        return f"{self.state.url}/upload/{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _send(self, body: bytes, status: int = 200, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, what: What) -> None:
        if what == "html":
            self._send(b"<html>Log in to the network</html>", kind="text/html")
        elif what == "empty":
            self._send(b'{"data": {}}')
        elif isinstance(what, int):
            self._send(json.dumps({"error": f"ordered {what}"}).encode(), what)
        elif what == "no runs":
            project = {"internalId": "1", "runCount": 0, "readOnly": False, "runs": NO_RUNS}
            self._send(json.dumps({"data": {"project": project}}).encode())
        else:
            self.state.released.wait(600)
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        stream, sent, label = STREAM.fullmatch(self.path), {}, "other"
        if self.path == "/graphql":
            sent = json.loads(body)
            found = OPERATION.search(sent["query"])
            label = f"graphql {sent.get('operationName') or (found[1] if found else '')}"
        elif stream:
            label = f"file_stream {stream[1]}"
        elif self.path.startswith("/upload/"):
            label = "upload"
        what = self.state.due(label)
        if what is not None:
            self._fail(what)
            return
        told: dict[str, Any] = {}
        if self.path == "/graphql":
            answers = Answers(self.state)
            told = {"data": answers.answer(label.split()[1], sent.get("variables") or {})}
        elif stream:
            self.state.stream(unquote(stream[1]), json.loads(body))
        elif label == "upload":
            self.state.uploads.add(self.path.removeprefix("/upload/"))
        self._send(json.dumps(told).encode())

    do_GET = do_POST = do_PUT = _serve


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Print nothing when a client hangs up."""


@contextlib.contextmanager
def serving() -> Iterator[State]:
    """Serve on a free port of loopback; give what arrives."""
    state = State()
    server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        state.clear()
        server.shutdown()
        server.server_close()
