"""The commands on methods: list all of them, show one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.options import open_console
from raysweep.cli.output import AsJson, print_json, print_text
from raysweep.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from raysweep.sweep.catalog import ListedRole
    from raysweep.sweep.guide import Guide, Parameter

MOST_COLUMNS = 100


def list_methods(
    role: Annotated[
        str, typer.Argument(help="attacks, defenses, datasets, models or recipes.")
    ] = "",
    long: Annotated[
        bool, typer.Option("--long", help="With paper, venue, year and where ours differs.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table of the docs.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the methods and recipes that a sweep file can name: a line each, by kind."""
    from raysweep.methods import ROLES
    from raysweep.sweep import catalog

    if role and role not in catalog.LISTED:
        raise SpecError(f"role must be one of {', '.join(catalog.LISTED)}, got {role!r}")
    if markdown:
        print("\n\n".join(catalog.markdown(r) for r in ROLES if role in ("", r)))
        return
    roles = [r for r in catalog.LISTED if role in ("", r)]
    if as_json:
        print_json([one for r in roles for one in catalog.entries(r)])
    elif long:
        _print_long(open_console(), roles)
    else:
        _print_short(open_console(), roles)


def _print_short(console: Console, roles: list[ListedRole]) -> None:
    """Print name and idea of each method on one line, kind by kind; long ideas are cut."""
    from raysweep.sweep import catalog

    for role in roles:
        entries = catalog.entries(role)
        name_room = max(len(one.name) for one in entries)
        room = min(console.width, MOST_COLUMNS) - name_room - 4
        for kind in dict.fromkeys(one.kind for one in entries):
            console.print(f"{role} · {kind}" if kind else role, style="bold")
            for one in entries:
                if one.kind == kind:
                    console.print(f"  {one.name:<{name_room}}  {_cut(one.short, room)}")
    console.print("one of them, with its parameters and an example: raysweep show NAME")


def _cut(text: str, room: int) -> str:
    """Return text that fits; what does not is cut between words and ends in dots."""
    return text if len(text) <= room else text[: room - 1].rpartition(" ")[0].rstrip(",;") + "…"


def _print_long(console: Console, roles: list[ListedRole]) -> None:
    """Print every method of some roles: its idea, its source, and where ours differs from it."""
    from rich.table import Table

    from raysweep.sweep import catalog

    for role in roles:
        table = Table(box=None, pad_edge=False, title=role, title_justify="left", show_lines=False)
        table.add_column("name", no_wrap=True)
        entries = catalog.entries(role)
        kinds = any(one.kind for one in entries)
        for column in (*(["kind"] if kinds else []), "idea", "paper", "venue", "year"):
            table.add_column(column)
        table.add_column("where we differ", ratio=2)
        for one in entries:
            kind = [one.kind] if kinds else []
            table.add_row(
                one.name, *kind, one.idea, one.paper, one.venue, one.year, one.differs,
                end_section=True,
            )  # fmt: skip
        console.print(table)


def show(
    name: Annotated[str, typer.Argument(help="An attack, defense, dataset, model or recipe.")],
    as_json: AsJson = False,
) -> None:
    """Show one method: its parameters, what it needs and gives, and an example in YAML."""
    from raysweep.sweep.guide import guides

    found = guides(name)
    if as_json:
        print_json(found)
        return
    for guide in found:
        _print_guide(open_console(), guide)


def _print_guide(console: Console, guide: Guide) -> None:
    entry = guide.entry
    kind = f", {entry.kind}" if entry.kind else ""
    console.print(f"{entry.name} ({entry.role[:-1]}{kind})", style="bold")
    console.print(guide.about)
    if guide.parameters:
        console.print()
        console.print(_table(guide.parameters))
    claims = (("needs", guide.needs), ("gives", guide.gives), ("badges", guide.badges))
    said = [f"{word}: {', '.join(values)}" for word, values in claims if values]
    said += [f"with {value}, besides: {', '.join(n)}" for value, n in guide.with_parameters.items()]
    for line in ["", *said] if said else []:
        console.print(line)
    console.print("\nexample, a sweep file:\n")
    print_text(guide.example + "\n")


def _table(parameters: tuple[Parameter, ...]) -> Table:
    """Return the table of parameters; the ones that all methods of a role have stand last."""
    from rich.table import Table

    lines = [
        (
            one.name + ("" if one.role == "run" else f" ({one.role})"),
            "must be given" if one.required else _said(one.default), one.type, one.range,
            _searched(one), one.description,
        )
        for one in sorted(parameters, key=lambda one: not one.own)
    ]  # fmt: skip
    heads = ("parameter", "default", "type", "range", "searched by tuning", "meaning")
    shown = [n for n in range(len(heads)) if any(line[n] for line in lines)]
    table = Table(box=None, pad_edge=False)
    for n in shown:
        table.add_column(heads[n], no_wrap=n == 0, overflow="fold")
    for line in lines:
        table.add_row(*(line[n] for n in shown))
    return table


def _said(value: object) -> str:
    from raysweep.sweep.guide import flow

    return "none" if value is None else flow(value)


def _searched(parameter: Parameter) -> str:
    """Return the range that tuning takes, in words; a parameter that is no decision on request."""
    rule = parameter.search
    if rule is None:
        return ""
    if "values" in rule:
        return ", ".join(map(_said, rule["values"]))  # type: ignore[arg-type]
    log = ", by its logarithm" if "log" in str(rule.get("distribution", "")) else ""
    asked = "" if parameter.role == "decision" else ", if asked"
    return f"{_said(rule['min'])} to {_said(rule['max'])}{log}{asked}"
