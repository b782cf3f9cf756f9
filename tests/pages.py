"""The pages of the documentation as tests read them: blocks of code, sweep files, command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<run><!-- run -->\n)?```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
INDENTED = re.compile(r"^    (raysweep .*)$", re.MULTILINE)
IN_PROSE = re.compile(r"`(raysweep [^`]+)`")
# What a page must not say of a sweep by itself; a snippet is loaded together with these.
REST = {
    "dataset": "digits", "model": "tiny_cnn", "attack": "badnets", "defense": "none",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: the file, from the root of the repository.
        language: such as `yaml`.
        title: the name of the file that a reader makes of it, or "".
        run: whether its commands end in seconds, and are run.
        text: what stands in it.
    """

    page: str
    language: str
    title: str
    run: bool
    text: str

    @property
    def lines(self) -> list[str]:
        """The commands of a console block."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]

    @property
    def is_sweep(self) -> bool:
        """Whether it is a whole sweep file, not a part of one."""
        return self.language == "yaml" and re.search(r"^name:", self.text, re.MULTILINE) is not None

    def as_sweep(self) -> str:
        """Return the text of a whole sweep file, whose first lines are those of the page."""
        if self.is_sweep:
            return self.text
        rest = [f"{name}: {value}\n" for name, value in REST.items()
                if not re.search(rf"^{name}s?:", self.text, re.MULTILINE)]  # fmt: skip
        return self.text + "name: part_of_a_page\n" + "".join(rest)


def blocks() -> list[Block]:
    """Return the fenced blocks of all pages, in their order."""
    return [
        Block(
            page=str(page.relative_to(ROOT)), language=found["language"],
            title=found["title"] or "", run=bool(found["run"]), text=found["text"],
        )
        for page in PAGES
        for found in FENCE.finditer(page.read_text())
    ]  # fmt: skip


def commands() -> list[tuple[str, str]]:
    """Return page and text of every command line of ours, in blocks, results and prose."""
    found = []
    for page in PAGES:
        text, name = page.read_text(), str(page.relative_to(ROOT))
        prose = FENCE.sub("", text)
        found += [(name, line) for line in [*INDENTED.findall(prose), *IN_PROSE.findall(prose)]]
    found += [(one.page, line) for one in blocks() for line in one.lines]
    found += [("docs/comparison.md", f"raysweep {words}") for words in _column()]
    return [(page, ours) for page, line in found for ours in _ours(line)]


def _ours(line: str) -> Iterator[str]:
    """Yield what a line gives to `raysweep`: by itself, after a pipe, or in another's argument."""
    for part in line.split(" | "):
        words = shlex.split(part.partition(" > ")[0])
        if words[0] == "raysweep":
            yield " ".join(words[1:])
        for word in words:
            if " raysweep " in word:
                yield word.partition(" raysweep ")[2]


def _column() -> list[str]:
    """Return the commands of ours in the table that sets them beside those of others."""
    text = (ROOT / "docs" / "comparison.md").read_text().partition("## Commands side by side")[2]
    cells = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| ")]
    return [code for cell in cells for code in re.findall(r"`([a-z-][^`]*)`", cell)
            if not code.startswith("ray ")]  # fmt: skip


def parsed(group: Any, line: str) -> None:
    """Parse a command line with the real commands, and run nothing.

    Raises:
        Exception: what the command line itself raises for a wrong option or argument.
    """
    words = [word.strip("[]") for word in shlex.split(line) if word != "--help"]
    if len(words) == 1 and words[0] in group.commands:
        return  # the command itself is meant
    if words[0].startswith("-"):
        known = {name for one in group.params for name in one.opts}
        known |= {*group.make_context("raysweep", [], resilient_parsing=True).help_option_names}
        assert words[0] in known, f"no option {words[0]}"
        return
    group.commands[words[0]].make_context(words[0], words[1:])
