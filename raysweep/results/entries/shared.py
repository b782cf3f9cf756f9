"""Runs of the stages that trials share: datasets, poisoned sets and victims, each told once.

They make the artifacts that the runs of trials use, and a victim's run shows its training.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from raysweep.results.columns import PARAMETERS, Cell
from raysweep.results.entries.artifacts import artifact, newest, stage_keys
from raysweep.results.entries.entry import Entry, defined, marked, numbers, run_id
from raysweep.store import Manifest, Store
from raysweep.sweep.spec import Track

DATASET = ("dataset",)
POISONED = (*DATASET, "attack", "attack_name", "rate", "target", "seed")
TRAINED = (*POISONED, "model")
# Role → its job type, the columns that say which one it is, and the parts of its parameters.
SHARED: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "data": ("data", DATASET, ("dataset",)),
    "poison": ("poison", POISONED, ("dataset", "attack")),
    "victim": ("train", TRAINED, ("dataset", "attack", "model", "recipe")),
}


def shared(
    row: Mapping[str, Cell], sweep: str, track: Track, store: Store, *, lineage: bool,
    told: Container[str] = (),
) -> Iterator[Entry]:  # fmt: skip
    """Yield the runs of the stages that a trial shares with others, in the order of work.

    Args:
        row: of the trial.
        sweep: its name.
        track: where the runs are to be.
        store: where the stages' artifacts are; a stage that is gone has no run.
        lineage: whether artifacts are logged; without them the victim alone has a run.
        told: ids of runs that are left out; many trials share a victim.
    """
    keys = stage_keys(row)
    wanted = [role for role in (SHARED if lineage else ("victim",)) if role in keys]
    roles = [role for role in wanted if run_id(sweep, keys[role]) not in told]
    stored = store.manifests(keys[role] for role in roles)[0]
    for role in roles:
        if keys[role] in stored:
            source = keys["poison" if role == "victim" and "poison" in keys else "data"]
            reads = (newest(source),) if lineage and role != "data" else ()
            yield marked(_told(role, row, sweep, stored[keys[role]], reads, lineage), track)


def _told(
    role: str, row: Mapping[str, Cell], sweep: str, stored: Manifest, reads: tuple[str, ...],
    lineage: bool,
) -> Entry:  # fmt: skip
    job, columns, parts = SHARED[role]
    names = [*columns, *(c for p in parts for c in PARAMETERS[p].within(row).values())]
    config = {name: cell for name in names if (cell := defined(row.get(name))) is not None}
    summary = {**numbers(stored.outcome), **numbers({"seconds": stored.info.get("seconds")})}
    what = [str(row["dataset"])]
    if role != "data":
        what = [str(row["attack"]), f"{100 * float(row['rate'] or 0):g} %", f"seed {row['seed']}"]
    tags = [row.get(tag) for tag in ("dataset", "model", "attack_name") if tag in columns]
    return Entry(
        run=run_id(sweep, stored.key),
        name=" · ".join([job, *what]),
        job=job,
        tags=tuple(str(tag) for tag in tags if tag),
        config={"sweep_name": sweep, **config, "stage": stored.key},
        summary=summary,
        history=_epochs(stored),
        reads=reads,
        writes=(artifact(role, stored),) if lineage else (),
    )


def _epochs(stored: Manifest) -> list[dict[str, float]]:
    """Return loss and training accuracy of each epoch, as far as a stage has stored them."""
    told = {"loss": stored.outcome.get("losses", ()), "accuracy": stored.info.get("accuracies", ())}
    epochs = range(max(map(len, told.values())))
    return [
        {
            "epoch": float(n + 1),
            **numbers({name: own[n] for name, own in told.items() if n < len(own)}),
        }
        for n in epochs
    ]
