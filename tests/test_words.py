"""Names come from the glossary, and a docstring's first noun names the thing returned."""

from __future__ import annotations

import pytest

from tests import words

REFUSED = ("Desk", "merit", "Gift", "conclude_search", "insides", "InstanceTable", "told")


def test_every_name_is_made_of_words_of_the_glossary_or_plain_ones() -> None:
    allowed = words.left()
    new = {
        package: fresh
        for package, found in words.unknown_words().items()
        if (fresh := sorted(found - allowed.get(package, (0, set()))[1]))
    }
    assert new == {}, "take a word of docs/words.md or tests/words.txt; see `python -m tests.words`"


def test_docstrings_name_the_thing_returned() -> None:
    allowed = words.left()
    more = {
        package: lines
        for package, lines in words.all_openings().items()
        if len(lines) > allowed.get(package, (0, set()))[0]
    }
    assert more == {}, "begin with the noun"


def test_what_is_left_only_shrinks() -> None:
    assert words.LEFT.read_text() == words.shrunk(), "run `python -m tests.words`"


def test_words_stand_once() -> None:
    plain = words.PLAIN.read_text().split()
    glossary = words.GLOSSARY.read_text()
    assert plain == sorted(set(plain))
    assert not set(plain) & words.columns(glossary, "word")
    assert not words.refused() & words.known()


@pytest.mark.parametrize("name", REFUSED)
def test_planted_words_are_seen(name: str) -> None:
    assert words.unknown(name, words.known(), words.refused())


def test_inflections_and_both_cases_are_known() -> None:
    for name in ("stopped", "TriggeredImages", "queries_of", "read_manifest", "AUROC", "stage2"):
        assert words.unknown(name, words.known() | {"query"}, set()) == []
    assert words.split("DefenseInputs_of_CIFAR10") == ["defense", "inputs", "of", "cifar"]
    code = "class A:\n    def b(self): ...\n    def _c(self): ...\nasync def d(): ..."
    assert list(words.names(code)) == ["A", "b", "d"]


def test_openings_without_a_noun_are_seen() -> None:
    for first in ("Return what is left.", "Yield those of all.", "What is.", "Return how many."):
        assert words.openings(f'"""{first}"""') == [first]
        assert words.openings(f'def f():\n    """{first}\n\n    More.\n    """') == [first]
    for first in ("Return whether it is.", "Return the words that are left.", "Whether it is."):
        assert words.openings(f'"""{first}"""') == []
