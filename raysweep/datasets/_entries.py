"""The entries of a folder of images: files that Pillow reads, other files, and those skipped."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from raysweep.errors import PlanError
from raysweep.paths import placeholder

# Made by file systems, archivers and synchronizers, in lower case; hidden names begin with a dot.
SYSTEM = frozenset({
    "__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r",
    "$recycle.bin", "system volume information", "lost+found", "@eadir", "#recycle", "@recycle",
    "@recently-snapshot", "__pycache__", "cvs",
})  # fmt: skip
# Pillow knows these by name, but reads none of them by itself, or no picture.
UNREAD = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of image files that Pillow reads, in lower case with their dot."""
    from PIL import Image

    Image.init()
    found = Image.registered_extensions().items()
    return frozenset(s for s, kind in found if kind in Image.OPEN and kind not in UNREAD)


def is_image(file: Path) -> bool:
    """Return whether a file's suffix is one that Pillow reads."""
    return file.suffix.lower() in suffixes()


def skipped(name: str) -> bool:
    """Return whether an entry is hidden, of the system, or an editor's copy."""
    copies = name.endswith("~") or name.startswith("~$") or (name[:1] == name[-1:] == "#")
    return name.startswith(".") or copies or name.lower() in SYSTEM


def normal(name: str) -> str:
    """Return a name in Unicode's form NFC: systems and archivers write an é as one sign or two."""
    return unicodedata.normalize("NFC", name)


def entries(folder: Path) -> list[tuple[Path, bool]]:
    """Return (path, whether it is a folder) of the entries that are not skipped, by name.

    Raises:
        PlanError: if the folder cannot be read, or an entry is neither a file nor a folder.
    """
    found = []
    try:
        with os.scandir(folder) as listed:
            names = [entry.name for entry in listed if not skipped(entry.name)]
    except OSError as error:
        raise PlanError(f"{folder}: cannot be read ({error.strerror}); make it readable") from None
    for name in sorted(names, key=lambda name: (normal(name), name)):
        path = folder / name
        inner = path.is_dir()
        if not inner and not path.is_file():
            what = "a broken link" if path.is_symlink() else "neither a file nor a folder"
            raise PlanError(f"{path}: is {what}; remove it, or put the file there")
        found.append((path, inner))
    return found


def files_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder that are not skipped, by the names of their parts.

    Raises:
        PlanError: as `entries`, and if a link leads back to a folder that it lies in.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise PlanError(f"{folder}: is a link to a folder that it lies in; remove it")
    for path, inner in entries(folder):
        if inner:
            yield from files_below(path, above | {real})
        else:
            yield path


def placeholder_of(file: Path) -> str:
    """Return the kind of what lies in place of a file, and the remedy; "" if nothing tells."""
    try:
        with file.open("rb") as stream:
            return placeholder(stream.read(64))
    except OSError as error:
        return f"cannot be read ({error.strerror}); make it readable"


def content(file: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        PlanError: if it cannot be read.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise PlanError(f"{file}: is not there; copy it again, whole") from None
    except OSError as error:
        raise PlanError(f"{file}: cannot be read ({error.strerror}); make it readable") from None
