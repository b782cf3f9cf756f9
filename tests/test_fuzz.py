"""A thousand random inputs, the same ones in every run; `make fuzz` tries a hundred thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse
from tests import fuzz

EXAMPLES = 1000
TARGETS = fuzz.targets()
LONGER = ("data.npz", "data.records", "store.description", "store.records")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.further) if name in LONGER else name for name in TARGETS],
)
def test_what_is_read_is_refused_or_means_what_it_says(name: str) -> None:
    strategy, check = TARGETS[name]
    assert fuzz.run(strategy, check, EXAMPLES // len(TARGETS), None) > 0


def test_the_sweep_that_is_damaged_is_whole_before(tmp_path: Path) -> None:
    from tests.fuzz_sweep import TEXT, check_override, check_text

    sweep = from_text(parse("f.yaml", TEXT))
    assert len(sweep.attacks) == 6 and sweep.tune is not None
    check_text([(0, 0, "")], tmp_path)
    check_override((["seeds"], "=", "3"), tmp_path)


def test_a_finding_ends_the_runner_with_1_and_shows_its_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hypothesis import strategies as st

    def check(example: int, folder: object) -> None:
        if example > 99:
            raise KeyError(example)

    monkeypatch.setattr(fuzz, "targets", lambda chosen: {"toy": (st.integers(), check)})
    assert fuzz.main(["--examples", "500", "--seed", "1"]) == 1
    said = capsys.readouterr()
    assert "toy: FINDING" in said.out and "1 findings, seed 1" in said.out
    assert "KeyError: 100" in said.err and "example=100" in said.out + said.err
    monkeypatch.setattr(fuzz, "targets", lambda chosen: {"toy": (st.just(0), check)})
    assert fuzz.main(["--examples", "5"]) == 0
