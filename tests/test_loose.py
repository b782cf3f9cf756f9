"""What crosses a boundary of the pipeline has a type: the list of exceptions only shrinks."""

from __future__ import annotations

from tests.loose import LIST, is_loose, loose_signatures


def test_no_signature_is_looser_than_the_list_allows() -> None:
    assert loose_signatures() == LIST.read_text().splitlines(), "`python -m tests.loose`, if fewer"


def test_loose_annotations_are_told_from_typed_ones() -> None:
    for loose in ("Any", "dict[str, Any]", "dict", "Mapping[str, Row]", "list[Any] | None"):
        assert is_loose(loose, {"Row"}), loose
    for typed in ("dict[str, float]", "NDArray[Any]", "Mapping[str, Array]", "tuple[int, ...]"):
        assert not is_loose(typed, {"Row"}), typed
