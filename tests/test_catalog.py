"""The catalog of methods: every file is understood, and tables show what the files say."""

from __future__ import annotations

import pytest

from raysweep import methods
from raysweep.sweep import catalog

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


@pytest.mark.parametrize("role", methods.ROLES)
def test_a_table_has_a_line_for_each_method(role: methods.Role) -> None:
    """The documentation's page of methods is made of it, see test_docs.py."""
    head, rule, *lines = catalog.markdown(role).splitlines()
    names = [line.split(" | ")[0] for line in lines]
    assert names == [f"| `{name}`" for name in methods.available(role)]
    assert {line.count(" |") for line in (head, *lines)} == {rule.count("|") - 1}
