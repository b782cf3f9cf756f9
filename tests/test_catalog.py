"""The catalog of methods: every file is understood, and the README shows what the files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep import methods
from raysweep.sweep import catalog

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- raysweep list --markdown -->\n", "\n<!-- end of the list -->"
ALL = [(role, name) for role in methods.ROLES for name in methods.available(role)]


@pytest.mark.parametrize(("role", "name"), ALL, ids=str)
def test_every_file_says_what_it_is(role: methods.Role, name: str) -> None:
    one = catalog.entry(role, name)
    assert one.idea.endswith(".") and one.differs
    if role != "datasets" and one.kind != "control":
        assert one.year and one.paper, "authors: title, venue year"
        assert one.venue or one.arxiv
        assert one.kind or role == "models"


def test_a_citation_is_taken_apart() -> None:
    blend = catalog.entry("attacks", "blend")
    assert (blend.kind, blend.venue, blend.year) == ("changes labels", "", "2017")
    assert blend.arxiv == "1712.05526" and blend.paper.startswith("Targeted Backdoor Attacks on")
    wanet = catalog.entry("attacks", "wanet")
    assert (wanet.venue, wanet.year) == ("ICLR", "2021")
    assert wanet.paper == "WaNet, Imperceptible Warping-based Backdoor Attack"
    assert catalog.entry("attacks", "sig").kind == "clean label"
    assert catalog.entry("defenses", "strip").kind == "detector"


def test_the_readme_shows_what_the_files_say() -> None:
    shown = README.read_text().partition(START)[2].partition(END)[0]
    now = "\n\n".join(catalog.markdown(role) for role in methods.ROLES)
    assert shown == now, "run `raysweep list --markdown` and paste what it prints between the marks"
