"""A W&B server on loopback for tests: what the installed wandb asks for, and faults to order.

It takes any key, keeps everything in memory and answers the requests that logging, resuming,
artifacts, `wandb sync`, reports and asking what arrived make; what `serving` gives is what arrived.
`python -m tests.wandb_server 8123` serves until it is ended.

The summary of a file stream takes the place of the one before: wandb-core sends it whole. Lines of
history have offsets, so that a line that is sent twice is one.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

import pytest

ENTITY = "somebody"
PROJECT = {"id": "P1", "internalId": "P1", "name": "p", "entity": {"name": ENTITY}}
END = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")
STREAM = re.compile(r"/files/[^/]+/[^/]+/([^/]+)/file_stream")
NO_RUNS = {"edges": [], "pageInfo": END}
NOW = "2026-01-01T00:00:00Z"
# A status; no answer at all; a connection that breaks; a proxy's page with status 200; JSON of
# nothing; a list of no runs.
What = int | Literal["hang", "drop", "html", "empty", "no runs"]


@dataclass
class Arrived:
    """One run, as the server has it."""

    name: str = ""
    group: str = ""
    project: str = ""
    job: str = ""
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[int, Any] = field(default_factory=dict)  # By offset: sent twice is kept once.
    state: str = "running"
    completed: int = 0  # How often its end was told.


@dataclass
class Fault:
    """What happens, how often and after how many, to requests whose label holds `part`."""

    part: str
    what: What
    times: int = 1_000_000
    after: int = 0
    reset: int = 1  # With 429: seconds until the limit is reset.


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
        self.views: dict[str, dict[str, Any]] = {}
        self.uploads: set[str] = set()
        self.unknown: set[str] = set()  # Operations that were answered by nothing.
        self.requests: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.numbers = itertools.count(1)

    def order(self, part: str, what: What, **more: Any) -> None:
        """Order a fault; a label is `graphql NAME`, `file_stream RUN` or `upload`."""
        self.faults.append(Fault(part, what, **more))

    def due(self, label: str) -> Fault | None:
        """Count a request and return the fault that is due for it."""
        with self.lock:
            self.requests[label] += 1
            for fault in self.faults:
                if fault.part in label:
                    if fault.after > 0:
                        fault.after -= 1
                    elif fault.times > 0:
                        fault.times -= 1
                        return fault
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
                kept.summary = json.loads(summary["content"][-1])
            if told.get("complete"):
                kept.completed += 1
                kept.state = "finished" if told.get("exitcode", 0) == 0 else "failed"


def _bucket(run: str, kept: Arrived) -> dict[str, Any]:
    """Return a run as wandb-core and the public API read it."""
    return {
        "id": f"B-{run}", "name": run, "displayName": kept.name, "description": "",
        "config": json.dumps({k: {"value": v} for k, v in kept.config.items()}),
        "notes": kept.notes, "summaryMetrics": json.dumps(kept.summary),
        "historyLineCount": len(kept.history), "eventsLineCount": 0, "logLineCount": 0,
        "historyTail": "[]", "eventsTail": "[]",
        "tags": kept.tags, "wandbConfig": "{}", "sweepName": None, "group": kept.group,
        "jobType": kept.job,
        "project": PROJECT | {"name": kept.project}, "state": kept.state, "commit": None,
        "createdAt": NOW, "heartbeatAt": NOW, "systemMetrics": "{}", "readOnly": False,
        "historyKeys": None, "projectId": 1,
        "user": {"name": ENTITY, "username": ENTITY},
    }  # fmt: skip


def _artifact(number: str, kept: dict[str, Any]) -> dict[str, Any]:
    """Return an artifact as the public API reads it."""
    return {
        "__typename": "Artifact", "id": number, "versionIndex": kept["version"],
        "state": kept["state"], "artifactSequence": _collection(kept),
        "artifactType": {"name": kept["type"]}, "description": None,
        "metadata": json.dumps(kept["metadata"]),
        "ttlDurationSeconds": -1, "ttlIsInherited": False, "tags": [], "historyStep": None,
        "size": 1, "digest": kept["digest"], "digestAlgorithm": "MANIFEST_MD5", "commitHash": None,
        "fileCount": 1, "createdAt": NOW, "updatedAt": None, "aliases": [],
    }  # fmt: skip


def _collection(kept: dict[str, Any]) -> dict[str, Any]:
    project = PROJECT | {"name": kept["project"]}
    return {"__typename": "ArtifactSequence", "name": kept["name"], "project": project}


def _project(name: str) -> dict[str, Any]:
    """Return a project as the public API reads it."""
    return {"__typename": "Project", "id": f"P-{name}", "name": name, "entityName": ENTITY,
            "internalId": base64.b64encode(f"ProjectInternalId:{name}".encode()).decode(),
            "createdAt": NOW, "isBenchmark": False, "user": None}  # fmt: skip


def _view(kept: dict[str, Any]) -> dict[str, Any]:
    """Return a report or a saved view as the public API and wandb-workspaces read it."""
    user = {"username": ENTITY, "photoUrl": None, "email": "s@s"}
    return {"type": "runs", "name": "v", "displayName": "", "description": "", "spec": "{}",
            "createdAt": NOW, "updatedAt": NOW, "viewCount": 0, "previewUrl": None, "user": user,
            "project": _project(kept.get("projectName") or "p"), **kept}  # fmt: skip


class Answers:
    """Answers to GraphQL operations: one method each, named like the operation."""

    def __init__(self, state: State) -> None:
        self.state = state

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables.get("input")
        known = getattr(self, f"on_{operation.lower()}", None)
        with self.state.lock:
            if known is None:
                self.state.unknown.add(operation)
                return {}
            return dict(known(given if isinstance(given, dict) else variables))

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
        kept.job = v.get("jobType") or kept.job
        kept.notes = v.get("notes") or kept.notes
        kept.tags = v.get("tags") or kept.tags
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
        """Make a version of a collection, unless it holds one with the same content."""
        name = (v.get("artifactCollectionNames") or [v.get("artifactCollectionName")])[0]
        project = v.get("projectName") or PROJECT["name"]
        versions = {number: kept for number, kept in self.state.artifacts.items()
                    if (kept["project"], kept["name"]) == (project, name)}  # fmt: skip
        same = [number for number, kept in versions.items()
                if kept["digest"] == v["digest"] and kept["state"] == "COMMITTED"]  # fmt: skip
        number = same[0] if same else f"A{next(self.state.numbers)}"
        kept = self.state.artifacts.setdefault(number, {
            "name": name, "project": project, "digest": v["digest"], "state": "PENDING",
            "type": v.get("artifactTypeName") or "run_table", "version": len(versions),
            "metadata": json.loads(v.get("metadata") or "{}"), "made by": set(), "used by": set(),
        })  # fmt: skip
        kept["made by"].add(v.get("runName"))
        sequence = {"id": "S1", "latestArtifact": {"id": [*versions][-1]} if versions else None}
        made = {"id": number, "state": kept["state"], "artifactSequence": sequence}
        return {"createArtifact": {"artifact": made}}

    def on_artifactmembershipbyname(self, v: dict[str, Any]) -> dict[str, Any]:
        """Find `name:vN`, or `name:latest`: the newest version that was committed."""
        name, _, alias = v["name"].partition(":")
        found = [(number, kept) for number, kept in self.state.artifacts.items()
                 if (kept["project"], kept["name"]) == (v["project"], name)
                 and kept["state"] == "COMMITTED"
                 and alias in ("", "latest", f"v{kept['version']}")]  # fmt: skip
        if not found:
            return {"project": {"artifactCollectionMembership": None}}
        number, kept = found[-1]
        member = {"__typename": "ArtifactCollectionMembership", "id": f"M-{number}",
                  "versionIndex": kept["version"], "createdAt": NOW, "aliases": [],
                  "artifactCollection": _collection(kept),
                  "artifact": _artifact(number, kept)}  # fmt: skip
        return {"project": {"artifactCollectionMembership": member}}

    def on_useartifact(self, v: dict[str, Any]) -> dict[str, Any]:
        kept = self.state.artifacts[v["artifactID"]]
        kept["used by"].add(v["runName"])
        return {"useArtifact": {"artifact": _artifact(v["artifactID"], kept)}}

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
        """Answer what `wandb.Api().runs` asks, of a group, or of `{"name": {"$in": [...]}}`."""
        filters = json.loads(v.get("filters") or "{}")
        names, group = filters.get("name"), filters.get("group")
        found = [(run, kept) for run, kept in sorted(self.state.runs.items())
                 if kept.project == v["project"]
                 and (names is None or run in names["$in"])
                 and group in (None, kept.group)]  # fmt: skip
        page = [one for one in found if one[0] > (v.get("cursor") or "")][: v["perPage"]]
        edges = [{"node": _bucket(run, kept), "cursor": run} for run, kept in page]
        end = END | {"endCursor": page[-1][0] if page else None,
                     "hasNextPage": bool(page) and page[-1] is not found[-1]}  # fmt: skip
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False,
                            "runs": {"edges": edges, "pageInfo": end}}}  # fmt: skip

    def on_runoutputartifacts(self, v: dict[str, Any]) -> dict[str, Any]:
        return self._artifacts(v["run"], "made by")

    def on_runinputartifacts(self, v: dict[str, Any]) -> dict[str, Any]:
        return self._artifacts(v["run"], "used by")

    def _artifacts(self, run: str, role: str) -> dict[str, Any]:
        edges = [{"node": _artifact(number, kept)} for number, kept in self.state.artifacts.items()
                 if run in kept[role] and kept["state"] == "COMMITTED"]  # fmt: skip
        page = {"totalCount": len(edges), "pageInfo": END, "edges": edges}
        return {"project": {"run": {"artifacts": page}}}

    # Reports and saved views

    def on_getprojects(self, _: dict[str, Any]) -> dict[str, Any]:
        names = sorted({kept.project for kept in self.state.runs.values()})
        edges = [{"node": _project(name), "cursor": name} for name in names]
        return {"models": {"edges": edges, "pageInfo": END}}

    def on_getproject(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"project": _project(v["name"])}

    def on_createproject(self, v: dict[str, Any]) -> dict[str, Any]:
        project = _project(v["name"])
        return {"result": {"project": project, "model": project, "inserted": True}}

    def on_projectinternalid(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"project": _project(v["projectName"])}

    def on_upsertview(self, v: dict[str, Any]) -> dict[str, Any]:
        fresh = base64.b64encode(f"View:{next(self.state.numbers)}".encode()).decode()
        number = v.get("id") or fresh
        kept = self.state.views.setdefault(number, {"id": number, "saved": 0})
        names = ("type", "name", "displayName", "description", "entityName", "projectName", "spec")
        kept |= {name: v[name] for name in names if v.get(name) is not None}
        kept["saved"] += 1
        return {"upsertView": {"view": _view(kept), "inserted": kept["saved"] == 1}}

    on_upsertview2 = on_upsertview

    def on_specificreport(self, v: dict[str, Any]) -> dict[str, Any]:
        kept = self.state.views.get(v["reportId"])
        return {"view": _view(kept) if kept else None}

    def on_view(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = [{"node": _view(kept)} for kept in self.state.views.values()
                 if kept.get("name") == v["viewName"]]  # fmt: skip
        return {"project": {"allViews": {"edges": edges}}}

    def on_projectviews(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = [{"node": _view(kept), "cursor": number}
                 for number, kept in self.state.views.items()
                 if kept.get("projectName") == v["project"]]  # fmt: skip
        return {"project": {"allViews": {"edges": edges, "pageInfo": END}}}

    def _upload(self, path: str) -> str:
        return f"{self.state.url}/upload/{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _send(
        self, body: bytes, status: int = 200, kind: str = "application/json", reset: int = 0
    ) -> None:
        self.send_response(status)
        if status == 429:
            self.send_header("RateLimit-Remaining", "0")
            self.send_header("RateLimit-Reset", str(reset))
            self.send_header("Retry-After", str(reset))
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, fault: Fault) -> None:
        what = fault.what
        if what == "html":
            self._send(b"<html>Log in to the network</html>", kind="text/html")
        elif what == "empty":
            self._send(b'{"data": {}}')
        elif isinstance(what, int):
            text = json.dumps({"error": f"ordered {what}"}).encode()
            self._send(text, what, reset=fault.reset)
        elif what == "no runs":
            project = {"internalId": "1", "runCount": 0, "readOnly": False, "runs": NO_RUNS}
            self._send(json.dumps({"data": {"project": project}}).encode())
        else:
            if what == "hang":
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
        fault = self.state.due(label)
        if fault is not None:
            self._fail(fault)
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


def send_to(world: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty a server, and have wandb send to it, here and in processes that are started."""
    world.clear()
    monkeypatch.setenv("WANDB_BASE_URL", world.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


@contextlib.contextmanager
def serving(port: int = 0) -> Iterator[State]:
    """Serve on a port of loopback, by default a free one; give what arrives."""
    state = State()
    server = _Server(("127.0.0.1", port), type("Bound", (_Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        state.clear()
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with serving(int(sys.argv[1])) as served:
        sys.stdout.write(f"{served.url}\n")
        sys.stdout.flush()
        threading.Event().wait()
