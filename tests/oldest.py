"""Prints pip constraints: of every direct dependency the lowest version that pyproject allows."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

BOUND = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([0-9.]+)")


def constraints(text: str) -> list[str]:
    """Return `name==version` for each `name>=version` in a pyproject file, extras included."""
    project = tomllib.loads(text)["project"]
    extras = project.get("optional-dependencies", {}).values()
    every = [*project["dependencies"], *(one for extra in extras for one in extra)]
    return sorted({f"{found[1]}=={found[2]}" for one in every if (found := BOUND.fullmatch(one))})


if __name__ == "__main__":
    lines = constraints(Path("pyproject.toml").read_text())
    sys.stdout.write("\n".join(lines) + "\n")
