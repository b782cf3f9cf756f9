"""The commands on a storage as a whole: store ls, store verify, store prune."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.options import Storage, open_console
from raysweep.cli.output import AsJson, print_json
from raysweep.errors import SpecError, StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from raysweep.store import Store
    from raysweep.store.upkeep import Artifact

app = typer.Typer(help="Look after a storage: what it holds, damage, what may go.")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@dataclass(frozen=True, kw_only=True)
class Holding:
    """The artifacts of a stage kind or of a sweep; `unknown` says why a sweep's are not known."""

    name: str
    stages: int
    size_bytes: int
    newest: float | None
    unknown: str = ""


@app.command(name="ls")
def list_artifacts(storage: Storage = None, as_json: AsJson = False) -> None:
    """List the artifacts of a storage by stage kind and by sweep: how many, how large, how new."""
    from raysweep.identity import kind_of
    from raysweep.results.needs import needs
    from raysweep.store.sweepfolder import names
    from raysweep.store.upkeep import survey

    store = _opened(storage)
    found = survey(store).artifacts
    kinds = sorted({kind_of(key) for key in found})
    by_kind = [
        _holding(kind, (one for key, one in found.items() if kind_of(key) == kind))
        for kind in kinds
    ]
    by_sweep = []
    for name in names(store):
        try:
            keys = needs(store, name)
        except StoreError as error:
            by_sweep.append(
                Holding(name=name, stages=0, size_bytes=0, newest=None, unknown=str(error))
            )
        else:
            by_sweep.append(_holding(name, (found[key] for key in keys & found.keys())))
    if as_json:
        print_json({"kinds": by_kind, "sweeps": by_sweep})
    else:
        _print(open_console(), by_kind, by_sweep, store.where())


@app.command()
def verify(storage: Storage = None, as_json: AsJson = False) -> None:
    """Read everything that is stored, compare checksums, and name what is damaged.

    The exit code is 1 if anything is. The next launch that reads a damaged artifact makes it anew.
    """
    from raysweep.store import upkeep

    store = _opened(storage)
    keys = sorted(store.done())
    damaged = upkeep.verify(store, keys)
    if as_json:
        print_json({"artifacts": len(keys), "damaged": damaged})
    else:
        console = open_console()
        for key, wrong in damaged.items():
            console.print(f"{key}: {wrong}")
        console.print(f"{len(keys)} artifacts, {len(damaged)} damaged")
    if damaged:
        raise typer.Exit(1)


@app.command()
def prune(
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="What only this sweep needs; its records stay; repeatable."
        ),
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="What is at least so old: 30d, 12h.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The oldest first, until no more is left: 100GB."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, count it.")] = False,
    storage: Storage = None,
) -> None:
    """Remove litter of killed writers, and artifacts that no kept sweep needs.

    Every sweep that the storage has records of is kept, but for those named by --sweep. Without an
    option only litter goes. Conditions add up. Nothing is removed without --yes, or while a driver
    works on the storage.
    """
    from raysweep.results.needs import needs
    from raysweep.store.sweepfolder import names
    from raysweep.store.upkeep import living, select, survey

    older = None if older_than is None else _amount(older_than, _SECONDS, "--older-than", "30d")
    size = None if to is None else _amount(to, _BYTES, "--to", "100GB")
    store = _opened(storage)
    among = None if sweep is None else set().union(*(needs(store, name) for name in sweep))
    wanted = not (among is None and older is None and size is None)
    others = [name for name in names(store) if name not in (sweep or ())] if wanted else []
    kept = set().union(*(needs(store, name) for name in others))
    now = store.check()
    found = survey(store)
    chosen = select(found, kept, now, among=among, older_seconds=older, to_bytes=size)
    console = open_console()
    going, litter = sum(one.size for one in chosen.artifacts), sum(chosen.litter.values())
    console.print(
        f"{store.where()}: {len(chosen.artifacts)} of {len(found.artifacts)} artifacts, "
        f"{_shown(going)}; {len(chosen.litter)} files of litter, {_shown(litter)}"
    )
    left = sum(one.size for one in found.artifacts.values()) - going
    if size is not None and left > size:
        console.print(f"{_shown(left)} are left: the rest is needed by sweeps that are kept")
    if not chosen.artifacts and not chosen.litter:
        return
    if not yes:
        console.print("nothing was removed; --yes removes it")
        return
    if alive := living(store):
        told = ", ".join(f"{beat.folder} on {beat.host} (run {beat.run})" for beat in alive)
        raise StoreError(f"drivers work on this storage: {told}; wait for them, or stop them first")
    chosen.remove(store)
    console.print("removed")


def _opened(storage: str | None) -> Store:
    from raysweep.results.records import storage_uri
    from raysweep.store import Store

    return Store(storage_uri(storage))


def _holding(name: str, artifacts: Iterable[Artifact]) -> Holding:
    held = list(artifacts)
    return Holding(
        name=name, stages=len(held), size_bytes=sum(one.size for one in held),
        newest=max((one.stored for one in held), default=0) / 1e9 or None,
    )  # fmt: skip


def _amount(text: str, units: dict[str, float], option: str, example: str) -> float:
    """Return a number with its unit in seconds or bytes.

    Raises:
        SpecError: if the text is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
    if found is None or found[2] not in units:
        raise SpecError(
            f"{option} must be a number and one of {', '.join(units)}, such as {example}, got "
            f"{text!r}"
        )
    return float(found[1]) * units[found[2]]


def _print(
    console: Console, kinds: Sequence[Holding], sweeps: Sequence[Holding], where: str
) -> None:
    """Print the artifacts of a storage; a stage that several sweeps need stands in each of them."""
    from rich.table import Table

    from raysweep.cli.terminal import DATE

    if not kinds and not sweeps:
        console.print(f"nothing is stored in {where}; another place is named with --storage")
        return
    for head, holdings in (("stage kind", kinds), ("needed by sweep", sweeps)):
        table = Table(box=None, pad_edge=False)
        for column in (head, "stages", "size", "newest"):
            table.add_column(column, justify="right" if column in ("stages", "size") else "left")
        for one in holdings:
            when = "–" if one.newest is None else time.strftime(DATE, time.localtime(one.newest))
            counts = ("?", "?") if one.unknown else (str(one.stages), _shown(one.size_bytes))
            table.add_row(one.name, *counts, when)
        console.print(table)
    for one in sweeps:
        if one.unknown:
            console.print(one.unknown)


def _shown(size: float) -> str:
    """Return bytes in words: `812 B`, `4.1 kB`, `12 GB`."""
    units = [*_BYTES]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" or size >= 10 else f"{size:.1f} {units[0]}"
