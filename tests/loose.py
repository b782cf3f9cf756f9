"""Counts signatures of the pipeline that say `Any` or pass bare containers; the list only shrinks.

`python -m tests.loose` writes the list anew.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent / "raysweep"
PACKAGES = ("plan", "stages", "run", "results", "tuning")
LIST = Path(__file__).with_name("loose.txt")
BARE = re.compile(r"\b(?:dict|list|tuple|set|Mapping|Sequence|Iterable|object)\b(?!\[)|\bAny\b")


def aliases(trees: dict[str, ast.Module]) -> set[str]:
    """Return names of type aliases that stand for something loose, e.g. `Row = dict[str, Any]`."""
    loose: set[str] = set()
    assigned = [
        (node.targets[0].id, ast.unparse(node.value))
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(node.value, ast.Subscript | ast.BinOp | ast.Name)
    ]
    for _ in range(3):  # an alias of an alias
        loose |= {name for name, value in assigned if is_loose(value, loose)}
    return loose


def is_loose(annotation: str, loose: set[str]) -> bool:
    """Return whether an annotation leaves open what it holds; an array of any numbers does not."""
    plain = re.sub(r"\b(?:NDArray|np\.\w+|Callable)\[Any\]", "Array", annotation)
    words = set(re.findall(r"[A-Za-z_]+", plain))
    return bool(BARE.search(plain)) or bool(words & loose)


def loose_signatures() -> list[str]:
    """Return `package/file: function` of every function whose signature is loose, sorted."""
    trees = {
        str(file.relative_to(ROOT).with_suffix("")): ast.parse(file.read_text())
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
    }
    names = aliases(trees)
    found = []
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given = [a.annotation for a in every] + [node.returns]
            if any(a is not None and is_loose(ast.unparse(a), names) for a in given):
                found.append(f"{file}: {node.name}")
    return sorted(found)


if __name__ == "__main__":
    LIST.write_text("".join(f"{line}\n" for line in loose_signatures()))
