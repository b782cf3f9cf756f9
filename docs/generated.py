"""Fills in what pages take from the package: tables of methods, recipes, commands and columns.

MkDocs calls `on_page_markdown` for every page; a line `<!-- methods: attacks -->` is replaced
by what the code says at that moment, so that no such table goes stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from raysweep.attacks import Attack
from raysweep.datasets import Dataset
from raysweep.methods import load
from raysweep.methods.recipe import RECIPES, Recipe
from raysweep.results.schema import COLUMNS, FAMILIES
from raysweep.sweep import catalog

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from raysweep.methods import Role

MARK = re.compile(r"^<!-- (\w+)(?:: (\w+)(?: (\w+))?)? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with every mark replaced."""
    return MARK.sub(lambda mark: MAKERS[mark[1]](*filter(None, mark.groups()[1:])), markdown)


def methods(role: Role) -> str:
    """Return the table of a role's methods, and where each differs from its source."""
    differs = (f"- `{one.name}`: {one.differs}" for one in catalog.entries(role))
    folded = "\n".join(f"    {line}" for line in differs)
    return f'{catalog.markdown(role)}\n\n??? note "Where we differ from the sources"\n\n{folded}'


def parameters(role: Role, name: str | None = None) -> str:
    """Return the table of a method's parameters, or of those that all methods of a role have."""
    method = load(role, name) if name else {"attacks": Attack, "datasets": Dataset}[role]
    return _fields(method.model_fields)


def recipes() -> str:
    """Return the table of named recipes: what each changes of the defaults."""
    plain = Recipe()
    lines = ["| recipe | differs from the defaults in |", "|---|---|"]
    for name, recipe in RECIPES.items():
        changed = (
            f"`{field}: {_shown(getattr(recipe, field))}`"
            for field in Recipe.model_fields
            if getattr(recipe, field) != getattr(plain, field)
        )
        lines.append(f"| `{name}` | {', '.join(changed)} |")
    return "\n".join(lines)


def recipe() -> str:
    """Return the table of a recipe's fields."""
    return _fields(Recipe.model_fields)


def _fields(fields: Mapping[str, FieldInfo]) -> str:
    lines = ["| field | default | |", "|---|---|---|"]
    for name, info in fields.items():
        default = "required" if info.is_required() else f"`{_shown(info.default)}`"
        lines.append(f"| `{name}` | {default} | {info.description} |")
    return "\n".join(lines)


def commands() -> str:
    """Return a section for every command, with its arguments and options."""
    from raysweep.cli.app import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, one) for name, one in _named(group.commands))


def _named(commands: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every command with its name, those of a group as `group command`."""
    for name, one in commands.items():
        inside = getattr(one, "commands", None)
        yield from ((f"{name} {of}", it) for of, it in _named(inside)) if inside else [(name, one)]


def _command(name: str, command: Any) -> str:
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    arguments = " ".join(_argument(one) for one in shown if one.param_type_name == "argument")
    lines = [f"## raysweep {name}", "", command.help or "", "", f"    raysweep {name} {arguments}"]
    if not shown:
        return "\n".join(lines)
    lines += ["", "| argument, option | |", "|---|---|"]
    lines += [f"| {_names(one)} | {_help(one)} |" for one in shown]
    return "\n".join(lines)


def _argument(one: Any) -> str:
    name = (one.name or "").upper()
    return name if one.required else f"[{name}]"


def _names(one: Any) -> str:
    if one.param_type_name == "argument":
        return f"`{_argument(one)}`"
    value = "" if getattr(one, "is_flag", False) else f" {(one.name or '').upper()}"
    return ", ".join(f"`{name}{value}`" for name in one.opts)


def _help(one: Any) -> str:
    return str(getattr(one, "help", None) or "").replace("|", "\\|")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def columns() -> str:
    """Return the table of the columns of the records."""
    lines = ["| column | type | unit, range | meaning | missing |", "|---|---|---|---|---|"]
    for one in (*COLUMNS, *FAMILIES):
        cells = (
            f"`{one.name}`", one.dtype or "by its values",
            ", ".join(filter(None, (one.unit, one.bounds))), one.meaning, one.missing or "never",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


MAKERS: dict[str, Callable[..., str]] = {
    "run": lambda: "",  # for the tests: the commands that follow end in seconds, and are run
    "methods": methods,
    "parameters": parameters,
    "recipe": recipe,
    "recipes": recipes,
    "commands": commands,
    "columns": columns,
}
