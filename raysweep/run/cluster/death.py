"""The death of a worker process, told by its cause: what it said itself, Ray's error, its output.

Ray says that a process has died, and of what only where Ray itself ended it, or lost its host. The
process tells the rest while it lives (`raysweep.run.cluster.watch`): which stage it performs, what
that has written, and why it ends itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import state
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from raysweep.run.cluster import output
from raysweep.run.cluster.output import file_of, left_by
from raysweep.run.cluster.watch import taken_news

_CRASHES = (
    re.compile(r"^Fatal Python error: (.+)", re.MULTILINE),
    re.compile(r"^\*\*\* (SIG\w+) received", re.MULTILINE),  # Ray's own words
)
UNKNOWN = (
    "its worker process was killed (SIGKILL, which is how a system ends what takes too much "
    "memory), or ended itself outside of Python"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """The death of a worker process.

    Attributes:
        reason: the cause, for the user.
        key: of the stage at work; empty if that is not known.
        lasting: whether the stage ended its own process, or had to be ended.
        counts: whether it counts against the stages; the loss of a preempted host does not.
        of_memory: whether its host ran out of memory.
        output: the end of what the stage at work wrote.
        unfit: id of the host on which it could not even start; empty if it could.
    """

    reason: str
    key: str = ""
    lasting: bool = False
    counts: bool = True
    of_memory: bool = False
    output: str = ""
    unfit: str = ""

    @property
    def log(self) -> str:
        """The text for the log of the stage at work."""
        return output.with_output(self.reason, self.output)


def death_of(
    prefix: str, trial_id: str, ticket: str, keys: Iterable[str], error: BaseException | None
) -> Death:
    """Return the death of the worker process that had a batch.

    Args:
        prefix: of the run, in Ray's key-value store.
        trial_id: Tune's trial that the batch was.
        ticket: of the batch.
        keys: of its stages.
        error: by which Tune heard of it; none if that is not known.
    """
    told = taken_news(f"{prefix}death/{trial_id}")
    here = left_by(file_of(ticket))
    if here is None:
        there = [taken_news(f"{prefix}output/{key}") for key in keys]
        here = next(((news.key, news.text) for news in there if news), ("", ""))
    key, text = here
    if told:
        counts = not getattr(error, "preempted", False)
        return Death(
            reason=told.text, key=told.key or key, lasting=told.lasting, counts=counts, output=text
        )
    return _from_ray(error, key, text)


def _from_ray(error: BaseException | None, key: str, text: str) -> Death:
    if isinstance(error, OutOfMemoryError):
        return Death(reason=_memory(str(error)), key=key, of_memory=True, output=text)
    if isinstance(error, RayTaskError):
        cause = getattr(error, "cause", error)
        reason = f"its worker process failed: {type(cause).__name__}: {cause}"
        return Death(reason=reason[:2000], key=key, output=f"{text}\n{error}")
    if isinstance(error, ActorDiedError):
        if error.actor_init_failed:
            return _failed_start(error)
        if error.preempted:
            reason = "its host was preempted, and nothing counts against the stage"
            return Death(reason=reason, key=key, counts=False, output=text)
        if host := _lost_host(error):
            return Death(reason=f"its host was lost ({host})", key=key, output=text)
    crashes = [found[1] for crash in _CRASHES if (found := crash.search(text))]
    if crashes:
        return Death(reason=f"its worker process crashed: {crashes[0]}", key=key, output=text)
    known = error is None or isinstance(error, RayError)
    return Death(reason=UNKNOWN if known else f"{UNKNOWN} ({error})", key=key, output=text)


def _memory(message: str) -> str:
    """Return the part of Ray's message that says how much memory there was."""
    used = re.search(r"was ([\d.]+\w+) used / ([\d.]+\w+) limit", message)
    amount = f" ({used[1]} of {used[2]} were in use)" if used else ""
    return f"its host ran out of memory{amount}, and Ray ended the worker process"


def _failed_start(error: ActorDiedError) -> Death:
    """Return the death of a worker that could not start: Ray, or what it needs, fails there."""
    cause = str(error).rstrip().rpartition("\n")[2].strip()[:500]
    node_id = _node_of(error)
    names = [n["NodeManagerHostname"] for n in ray.nodes() if n["NodeID"] == node_id]
    if not names:
        return Death(reason=f"its worker process could not start: {cause}")
    reason = (
        f"host {names[0]} is given no work: no worker can start there ({cause}); repair what is "
        f"installed on it, restart Ray there, and launch again"
    )
    return Death(reason=reason, unfit=node_id)


def _node_of(error: ActorDiedError) -> str:
    """Return the id of the host that a dead worker ran on; empty if Ray does not know it."""
    actor: dict[str, Any] = state.actors(error.actor_id) or {}
    return str(actor.get("Address", {}).get("NodeID", ""))


def _lost_host(error: ActorDiedError) -> str:
    """Return why the host of a dead worker was lost; empty if it is up."""
    node_id = _node_of(error)
    for node in ray.nodes():
        if node["NodeID"] == node_id and not node["Alive"]:
            why = node.get("DeathReasonMessage") or "it does not answer"
            return f"{node['NodeManagerHostname']}: {why}"
    return ""
