"""The source files that a network of one's own is made of: its module and what that imports.

Followed are the imports of the module's own package, and of files that no installer brought; those
of installed packages, such as torch, are not. Nothing is imported for it.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.abc import InspectLoader
from pathlib import Path
from types import CodeType, ModuleType

from raysweep.errors import PlanError
from raysweep.identity import Stamp, digest, files_digest, stamp


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a module and of all modules that it is made of.

    Attributes:
        files: name of each module → its file, in order of names.
        digest: of the names and the bytes of the files.
    """

    files: dict[str, Path]
    digest: str


_KNOWN: dict[str, tuple[Source, list[Stamp]]] = {}


def source(module: str) -> Source:
    """Return the source of a module, read again once a file has another size or time of change.

    Raises:
        PlanError: if there is no such module, or it has no source; the message says the remedy.
    """
    if module not in _KNOWN or _stamps(_KNOWN[module][0].files) != _KNOWN[module][1]:
        files = _read(module)
        text = "\n".join([*files, files_digest(list(files.values()))])
        _KNOWN[module] = (Source(files=files, digest=digest(text)), _stamps(files))
    return _KNOWN[module][0]


def is_stale(files: dict[str, Path]) -> bool:
    """Return whether this process has imported one of the modules as it was before a change.

    A notebook that imported a network keeps it, whatever its file says later.
    """
    return any(
        name in sys.modules and _differs(sys.modules[name], file) for name, file in files.items()
    )


def _differs(loaded: ModuleType, file: Path) -> bool:
    """Return whether a function of a module is not among those of the same name in its file."""
    try:
        compiled = InspectLoader.source_to_code(file.read_bytes(), str(file))  # to compare, not run
        codes = list(_codes(compiled))
    except (SyntaxError, ValueError):
        return True
    owners = [loaded, *(v for v in vars(loaded).values() if inspect.isclass(v))]
    functions = [
        value
        for owner in owners
        for value in vars(owner).values()
        if inspect.isfunction(value) and value.__module__ == loaded.__name__
    ]
    for function in functions:
        same = [code for code in codes if code.co_qualname == function.__code__.co_qualname]
        if same and function.__code__ not in same:
            return True
    return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield all code inside code: functions, and methods of classes."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


def _stamps(found: dict[str, Path]) -> list[Stamp]:
    """Return the stamp of each file; nothing if one is gone."""
    try:
        return [stamp(file) for file in found.values()]
    except OSError:
        return []


def _read(module: str) -> dict[str, Path]:
    first = _file(module)
    if first is None:
        raise PlanError(
            f"no module {module!r} can be imported here; install the package that holds it, or "
            f"name the folder that holds it in PYTHONPATH, on every host (for a file in this "
            f"folder: PYTHONPATH=. raysweep ...)"
        )
    found, ahead = {module: first}, [module]
    while ahead:
        name = ahead.pop()
        for other in _imported(name, found[name]):
            file = None if other in found else _followed(other, module)
            if file is not None:
                found[other] = file
                ahead.append(other)
    return dict(sorted(found.items()))


def _followed(name: str, start: str) -> Path | None:
    """Return the file of a module that belongs to the source of another, or None."""
    top = name.partition(".")[0]
    if top != start.partition(".")[0] and (top == "raysweep" or _installed(top)):
        return None
    return _file(name)


def _imported(name: str, file: Path) -> Iterator[str]:
    """Yield the modules that a module's text imports, at the top or inside functions."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # importing it says so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if _file(inner) is not None else base


def _installed(top: str) -> bool:
    """Return whether a top-level module is Python's own or was brought by an installer."""
    places = _places(top)
    named = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [Path(sysconfig.get_path(one)) for one in named] + [Path(site.getusersitepackages())]
    return not places or any(
        "site-packages" in place.parts or "dist-packages" in place.parts or folder in place.parents
        for place in places
        for folder in folders
    )


def _places(top: str) -> tuple[Path, ...]:
    """Return the file of a top-level module, or the folders of a package; none if there is none."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations is not None:
        return tuple(map(Path, spec.submodule_search_locations))
    return (Path(spec.origin),) if spec.origin and spec.has_location else ()


def _file(name: str) -> Path | None:
    """Return the source file of a module; None where there is none, such as in built-in modules."""
    top, *inner = name.split(".")
    for place in _places(top):
        if place.suffix:
            if not inner and place.suffix == ".py":
                return place
            continue
        stem = place.joinpath(*inner)
        for file in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
            if file.is_file() and (inner or file.name == "__init__.py"):
                return file
    return None
