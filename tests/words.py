"""Holds names and docstrings to the glossary.

A word of a module, public class or public function stands in docs/words.md, in tests/words.txt (the
plain words of programming), or, while a package still has it, in tests/words_left.txt. There the
number of each package is that of docstrings without a noun. `python -m tests.words` takes from this
file what is mended, and prints all that is not.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "raysweep"
GLOSSARY = ROOT / "docs" / "words.md"
PLAIN = Path(__file__).with_name("words.txt")
LEFT = Path(__file__).with_name("words_left.txt")
# Method files take their words from the papers that they cite.
ROLES = ("attacks", "defenses", "datasets", "models")
ENDINGS = (("ies", "y"), ("es", ""), ("s", ""), ("ed", ""), ("ed", "e"), ("ing", ""), ("ing", "e"))
ENDINGS += (("er", ""), ("er", "e"), ("able", ""), ("able", "e"), ("ly", ""))
NO_NOUN = re.compile(
    r"(?:(?:Return|Yield|Print|Show)s? (?:about |just )?)?"
    r"(?:what|those|who|whom|whose|whatever|so|that|which|how|where|when|it|they)\b",
    re.IGNORECASE,
)


def split(name: str) -> list[str]:
    """Return the words of a name in snake or camel case, in small letters; digits are none."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def names(text: str) -> Iterator[str]:
    """Yield the names of public classes, functions and methods; a test's name is a sentence."""

    def visit(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith(("_", "test_")):
                yield node.name
                yield from visit(node.body) if isinstance(node, ast.ClassDef) else ()

    yield from visit(ast.parse(text).body)


def package_names() -> Iterator[tuple[str, str]]:
    """Yield (package, name) of every module, and of every public class and function."""
    for file in sorted(PACKAGE.rglob("*.py")):
        inside = file.relative_to(PACKAGE).with_suffix("").parts
        if inside[0] in ROLES and inside[-1] != "__init__":
            continue
        found = [part for part in inside if not part.startswith("__")]
        yield from ((inside[0], name) for name in (*found, *names(file.read_text())))


def bases(word: str) -> set[str]:
    """Return the word, and what it may be an inflection of."""
    found = {word}
    for ending, instead in ENDINGS:
        if word.endswith(ending) and len(word) > len(ending) + 2:
            stem = word.removesuffix(ending)
            found |= {stem + instead} | ({stem[:-1]} if stem[-1] == stem[-2] else set())
    return found


def columns(text: str, head: str) -> set[str]:
    """Return the words in the first column of every table whose first head is `head`."""
    words: set[str] = set()
    inside = False
    for line in text.splitlines():
        cell = line.split("|")[1].strip() if line.startswith("|") else ""
        inside = bool(cell) and (inside or cell == head)
        if inside and cell != head:
            words |= {word.lower() for word in re.findall(r"[A-Za-z]+", cell)}
    return words


def known() -> set[str]:
    """Return the words of the glossary and the plain words of programming."""
    return columns(GLOSSARY.read_text(), "word") | set(PLAIN.read_text().split())


def refused() -> set[str]:
    """Return the words that the glossary puts others in the place of."""
    return columns(GLOSSARY.read_text(), "not")


def unknown(name: str, words: set[str], refused: set[str]) -> list[str]:
    """Return the words of a name that are refused, or no inflections of known words."""
    return [word for word in split(name) if word in refused or not bases(word) & words]


def unknown_words() -> dict[str, set[str]]:
    """Return package → its unknown words."""
    words, no = known(), refused()
    found: dict[str, set[str]] = {}
    for package, name in package_names():
        if new := unknown(name, words, no):
            found.setdefault(package, set()).update(new)
    return found


def left() -> dict[str, tuple[int, set[str]]]:
    """Return package → number of openings and unknown words that it may still have."""
    lines = [line.partition(":") for line in LEFT.read_text().splitlines()]
    return {head.split()[0]: (int(head.split()[1]), set(words.split())) for head, _, words in lines}


def openings(text: str) -> list[str]:
    """Return the first lines of docstrings whose first noun is missing."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            found += [first] if NO_NOUN.match(first) else []
    return found


def all_openings() -> dict[str, list[str]]:
    """Return package → first lines without a noun, with the file of each."""
    found: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        inside = file.relative_to(PACKAGE)
        for line in openings(file.read_text()):
            found.setdefault(inside.with_suffix("").parts[0], []).append(f"{inside}: {line}")
    return found


def report() -> Iterator[str]:
    """Yield a line for each unknown word that is not left over, and for each opening."""
    allowed = left()
    for package, words in sorted(unknown_words().items()):
        for word in sorted(words - allowed.get(package, (0, set()))[1]):
            using = {n for p, n in package_names() if p == package and word in split(n)}
            yield f"{package}: {word} (in {', '.join(sorted(using))})"
    for lines in all_openings().values():
        yield from lines


def shrunk() -> str:
    """Return the text of `LEFT` without what is mended by now."""
    words, lines = unknown_words(), all_openings()
    now = {
        package: (min(count, len(lines.get(package, ()))), old & words.get(package, set()))
        for package, (count, old) in left().items()
    }
    return "".join(
        f"{package} {count}: {' '.join(sorted(old))}".rstrip() + "\n"
        for package, (count, old) in now.items()
        if count or old
    )


if __name__ == "__main__":
    LEFT.write_text(shrunk())
    sys.stdout.writelines(f"{line}\n" for line in report())
