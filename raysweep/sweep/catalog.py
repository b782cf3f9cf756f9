"""The catalog of methods, with idea and source, read from the docstrings of their files."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from raysweep import methods
from raysweep.attacks import Attack
from raysweep.defenses import Defense
from raysweep.methods.recipe import RECIPES

ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
# ", NDSS 2018", or ", 2017" where there is no venue; the venue starts with a capital.
PUBLISHED = re.compile(r",\s+(?:(?P<venue>[A-Z][\w&.'’ -]*?)\s+)?(?P<year>(?:19|20)\d\d)\b")

RECIPE_IDEAS = {
    "fast": "Fast: a small network in one cycle of the learning rate.",
    "ct": "CT: victims of Confusion Training on CIFAR-10, Qi et al., USENIX Security 2023.",
    "ct_gtsrb": "CT on GTSRB: victims of Confusion Training there, Qi et al., as ct.",
    "abl": "ABL: victims of Anti-Backdoor Learning, Li et al., NeurIPS 2021.",
    "red": "RED: victims of RED's released script, Xiang et al., Computers & Security 2021.",
    "datamodel": "Datamodels: many fast trainings, Ilyas et al., ICML 2022, arXiv:2202.00622.",
}
ListedRole = methods.Role | Literal["recipes"]
LISTED: tuple[ListedRole, ...] = (*methods.ROLES, "recipes")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method or recipe: its name, its idea, its first citation, and where ours differs.

    `paper`, `venue` and `year` are empty for an unpublished method, such as one's own files.
    """

    role: ListedRole
    name: str
    kind: str
    idea: str
    paper: str
    venue: str
    year: str
    arxiv: str
    differs: str

    @property
    def short(self) -> str:
        """The idea without the name that it begins with, and without its full stop."""
        return (self.idea.partition(": ")[2] or self.idea).rstrip(".")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def docstring(method: type[methods.Method]) -> str:
    """Return the text that heads a method's file: idea, citation, where ours differs."""
    return (sys.modules[method.__module__].__doc__ or "").strip()


def entry(role: methods.Role, name: str) -> Entry:
    """Return the catalog entry of a method, from the docstring of its file."""
    method = methods.load(role, name)
    idea, *rest = docstring(method).split("\n\n")
    cited = _one_line(rest[0]) if rest and not rest[0].startswith("Where we differ") else ""
    published = PUBLISHED.search(cited)
    title = cited[: published.start()].partition(": ")[2] if published else ""
    number = ARXIV.search(cited)
    differs = next((p for p in rest if p.startswith("Where we differ")), "")
    return Entry(
        role=role,
        name=name,
        kind=_kind(method),
        idea=_one_line(idea),
        paper=title,
        venue=(published["venue"] or "") if published else "",
        year=published["year"] if published else "",
        arxiv=number[1] if number else "",
        differs=_one_line(differs.partition(":")[2]),
    )


def _kind(method: type[methods.Method]) -> str:
    if issubclass(method, Defense):
        try:
            return method.model_validate(dict(method.TOY)).kind
        except ValidationError:
            return ""  # it has parameters without a default: what it is hangs on them
    if not issubclass(method, Attack):
        return ""
    if method.EVADES:
        return "evasion"
    if method.model_fields["rate"].default == 0:
        return "control"
    if method.TRAINS:
        return "trains the victim"
    return "clean label" if method.CLEAN_LABEL else "changes labels"


def recipe(name: str) -> Entry:
    """Return the catalog entry of a named recipe."""
    return Entry(
        role="recipes", name=name, kind="", idea=RECIPE_IDEAS[name], paper="", venue="", year="",
        arxiv="", differs="",
    )  # fmt: skip


def entries(role: ListedRole) -> list[Entry]:
    """Return the methods of a role, in the order of their names; or the named recipes."""
    if role == "recipes":
        return [recipe(name) for name in RECIPES]
    return [entry(role, name) for name in methods.usable(role)]


def markdown(role: ListedRole) -> str:
    """Return a table of a role's methods in Markdown, as the documentation shows it."""
    lines = [f"| {role} | kind | idea | paper |", "|---|---|---|---|"]
    for one in entries(role):
        where = " ".join(part for part in (one.venue, one.year) if part)
        paper = f"[{where or 'arXiv'}](https://arxiv.org/abs/{one.arxiv})" if one.arxiv else where
        lines.append(f"| `{one.name}` | {one.kind} | {one.short} | {paper} |")
    if not any(one.kind for one in entries(role)):
        lines = [re.sub(r"^(\| [^|]+ \|)[^|]*\|", r"\1", line) for line in lines]
        lines[1] = "|---|---|---|"
    return "\n".join(lines)
