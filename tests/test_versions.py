"""Sources and results are pinned under their versions; each way to hide a change is planted."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from raysweep.testing import attacks as contract_of_attacks
from raysweep.testing import toy
from tests import results, versions
from tests.contracts import test_attacks, test_defenses
from tests.versions import Pins, Source

CONFUSION = "defenses/confusion_training"


@functools.cache
def now() -> Source:
    return versions.current()


def planted(
    *changed: str, new: Mapping[str, list[int]] | None = None, line: str = "X = 1"
) -> Source:
    """Return the package with a line more in some modules, and other versions of some names."""
    code = versions.texts()
    code |= {module: f"{code[module]}\n{line}\n" for module in changed}
    begin = versions.starts()
    begin |= {name: (version, begin[name][1]) for name, version in (new or {}).items()}
    return versions.source(code, begin)


def pinned() -> Pins:
    return Pins(modules=dict(now().digests), versions=dict(now().versions))


def text(pins: Pins) -> str:
    return versions.lines(vars(pins))


def other_lines(one: str, other: str) -> list[str]:
    return sorted(set(other.splitlines()) - set(one.splitlines()))


def test_sources_are_pinned() -> None:
    left = versions.faults(versions.read(), now())
    assert left == [], "\n".join(left)


@pytest.mark.parametrize("name", results.names())
def test_results_are_pinned(name: str) -> None:
    if why := results.of_later_torch(name):
        pytest.skip(why)
    left = results.faults(name, results.read().get(name, {}), now().versions[name])
    assert left == [], "\n".join(left)


def test_closures_hold_what_results_depend_on() -> None:
    closures = now().closures
    assert all({"methods/context", "rng"} <= modules for modules in closures.values())
    assert {"defenses/_confusion", "training/loop", "training/streams"} <= closures[CONFUSION]
    assert "training/ensemble" in closures["defenses/datamodels"], "imported inside a function"
    assert "models" not in closures["attacks/badnets"], "imported for types alone"
    assert "training/loop" in closures["stages/train"]
    assert not {"errors", "paths", "store/store"} & set(now().digests)
    assert "attacks/badnets" in closures["attacks/badnets_clean_label"], "a method of another"


def test_imports_are_read_from_code() -> None:
    known = ["rng", "training", "training/loop", "models", "methods/context"]
    code = """
from typing import TYPE_CHECKING
from raysweep.training import loop
if TYPE_CHECKING:
    from raysweep.models import Model
else:
    import raysweep.rng
def run():
    from raysweep.methods.context import Context
"""
    assert versions.imported(code, known) == {"training/loop", "rng", "methods/context"}
    assert versions.imported("from raysweep.training import fit, loop", known) == {
        "training", "training/loop",
    }  # fmt: skip


def test_comments_docstrings_and_layout_are_no_change() -> None:
    code = versions.texts()["attacks/badnets"]
    assert versions.source_digest(code + "# a comment\n") == versions.source_digest(code)
    faulty = code.replace("odd = (row", "odd = 1 - (row")
    assert faulty != code and versions.source_digest(faulty) != versions.source_digest(code)


def test_raising_one_kind_hides_no_other_change() -> None:
    changed = ("training/loop", "defenses/_confusion", "datasets/_decode")
    version = [now().versions["stages/evaluate"][0] + 1]
    source = planted(*changed, new={"stages/evaluate": version})
    pins = pinned()
    for _ in range(2):
        stale = versions.stale(pins, source)
        assert sorted(stale) == sorted(changed)
        assert "stages/evaluate" not in stale["training/loop"]
        assert {"stages/train", CONFUSION} <= set(stale["training/loop"])
        if "stages/evaluate" in versions.raised(pins, source):
            versions.pin_raised(pins, source, "stages/evaluate")


def test_an_honestly_raised_version_is_all_that_a_private_helper_asks_for() -> None:
    version = [now().versions[CONFUSION][0] + 1]
    source, pins = planted("defenses/_confusion", new={CONFUSION: version}), pinned()
    before = text(pins)
    pins.reasons["defenses/_confusion"] = "that of an earlier change"
    assert versions.stale(pins, source) == {}
    versions.pin_raised(pins, source, CONFUSION)
    assert versions.faults(pins, source) == [] and pins.ahead == pins.reasons == {}
    assert [line.split(":")[0].strip() for line in other_lines(before, text(pins))] == [
        '"defenses/_confusion"', f'"{CONFUSION}"',
    ]  # fmt: skip


def test_pinning_one_name_takes_along_no_other() -> None:
    source, pins = planted("attacks/wanet", "defenses/strip"), pinned()
    versions.pin_same(pins, source, "attacks/wanet", "a line that nothing reads")
    assert versions.stale(pins, source) == {"defenses/strip": ["defenses/strip"]}
    assert pins.reasons == {"attacks/wanet": "a line that nothing reads"}
    source = planted("attacks/wanet", "rng", new={"attacks/wanet": [9], "attacks/sig": [9]})
    pins = pinned()
    versions.pin_raised(pins, source, "attacks/wanet")
    assert versions.raised(pins, source) == ["attacks/sig"]
    assert len(versions.stale(pins, source)["rng"]) == len(now().closures) - 2


def test_a_change_of_the_context_is_reported_for_every_name() -> None:
    for module in ("methods/context", "rng"):
        stale = versions.stale(pinned(), planted(module))
        assert stale == {module: sorted(now().closures)}


def test_a_shared_module_is_one_line_and_a_reason() -> None:
    source, pins = planted("training/loop"), pinned()
    pins.reasons["training/step"] = "an earlier one"
    before = text(pins)
    versions.pin_same(pins, source, "training/loop", "a name was changed")
    assert versions.faults(pins, source) == []
    assert set(other_lines(before, text(pins))) == {
        '  "training/loop": "a name was changed",',
        f'  "training/loop": "{source.digests["training/loop"]}",',
    }


def test_a_name_raised_alone_is_pinned_ahead_of_the_others() -> None:
    version = {CONFUSION: [now().versions[CONFUSION][0] + 1]}
    source, pins = planted("training/loop", new=version), pinned()
    with pytest.raises(ValueError, match=f"first `python -m tests.versions {CONFUSION} --raised`"):
        versions.pin_same(pins, source, "training/loop", "the others train as before")
    versions.pin_raised(pins, source, CONFUSION)
    assert pins.ahead == {CONFUSION: {"training/loop": source.digests["training/loop"]}}
    stale = versions.stale(pins, source)["training/loop"]
    assert CONFUSION not in stale and "stages/train" in stale
    again = planted("training/loop", new=version, line="X = 2")
    assert CONFUSION in versions.stale(pins, again)["training/loop"], "a second change is seen"
    second = copy.deepcopy(pins)
    versions.pin_same(second, again, "training/loop", "all train as before")
    assert versions.faults(second, again) == [] and second.ahead == {}
    versions.pin_same(pins, source, "training/loop", "the others train as before")
    assert versions.faults(pins, source) == [] and pins.ahead == {}


def test_what_is_new_is_pinned_and_what_is_gone_forgotten() -> None:
    pins = pinned()
    del pins.versions["attacks/sig"], pins.modules["attacks/sig"]
    pins.versions["attacks/gone"], pins.modules["attacks/gone"] = [1], "0"
    (left,) = versions.faults(pins, now())
    assert left.startswith("attacks/sig has version [1] and is not pinned")
    versions.pin_raised(pins, now(), "attacks/sig")
    assert pins == pinned()


def test_false_claims_are_refused() -> None:
    source, pins = planted("rng", new={"attacks/badnets": [9]}), pinned()
    pins.versions["attacks/sig"] = [9]
    for call, message in (
        (lambda: versions.pin_same(pins, source, "rng", " "), "say why, got no reason"),
        (lambda: versions.pin_same(pins, source, "counts", "why"), "is pinned as it is"),
        (lambda: versions.pin_same(pins, source, "rgn", "why"), "no module 'rgn'; did you mean"),
        (lambda: versions.pin_raised(pins, source, "attacks/blend"), "raise it first"),
        (lambda: versions.pin_raised(pins, source, "attacks/sig"), "pinned .9.: raise it first"),
        (lambda: versions.pin_raised(pins, source, "attacks/badnet"), "mean 'attacks/badnets'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
    assert any("attacks/sig has version [1], below the pinned [9]" in f
               for f in versions.faults(pins, source))  # fmt: skip


def test_the_command_pins_what_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, found = tmp_path / "versions.json", tmp_path / "results.json"
    file.write_text(text(pinned()))
    found.write_text(json.dumps({"attacks/sig": {"version": [1], "results": {}}}))
    source = planted("rng", "attacks/wanet", new={"attacks/wanet": [9]})

    def command(*words: str) -> int:
        return versions.main(words, file, found, source)

    before = file.read_text(), found.read_text()
    assert command() == 1 and (file.read_text(), found.read_text()) == before
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["rng", "attacks/wanet"]
    assert command("rng", "--same-results", "why not") == 2 and file.read_text() == before[0]
    assert command("attacks/wanet", "--raised") == 0
    assert results.read(found)["attacks/wanet"]["version"] == [9]
    assert results.read(found)["attacks/sig"] == {"version": [1], "results": {}}
    assert command("rng", "--same-results", "why not") == 0 and command() == 0
    assert versions.read(file).reasons == {"rng": "why not"}
    assert command("attacks/sig", "--numbers", "another toy") == 0
    assert results.read(found)["attacks/sig"]["why"] == "another toy"
    with pytest.raises(SystemExit):
        command("rng")
    with pytest.raises(SystemExit):
        command("--raised")


def test_other_results_under_an_old_version_are_seen_and_rounding_is_not() -> None:
    strip, case = test_defenses.make("strip"), toy.toy()
    one, other = (
        np.asarray(scorer(case.test.images[:50].float() / 255, np.arange(50)))
        for seed in (5, 6)
        if (scorer := toy.found(strip, case, seed).score_inputs) is not None
    )
    pins = {"version": [1], "results": results.found("defenses/strip")}
    assert results.faults("defenses/strip", pins, [1]) == []
    twice = results.numbers(np.full(10, 0.1) * 3), results.numbers(np.full(10, 0.3))
    assert results.distance(*twice) < 1e-9, "a constant's spread is rounding"
    rounded = one * (1 + 1e-5 * np.random.default_rng(0).standard_normal(50))
    results_of = {name: results.numbers(a) for name, a in (("one", one), ("rounded", rounded))}
    assert 0 < results.distance(results_of["one"], results_of["rounded"]) < results.TOLERANCE / 10
    for wrong in (other, one[::-1], one * 1.01, np.where(np.arange(50) == 7, 0, one), one[:-1]):
        pins["results"] = results.found("defenses/strip") | {"inputs": results.numbers(wrong)}
        (left,) = results.faults("defenses/strip", pins, [1])
        assert "strip gives other results under its unchanged version [1]: inputs moved by" in left
        assert "Raise its VERSION, then `python -m tests.versions defenses/strip --raised`" in left
    (left,) = results.faults("defenses/strip", pins, [2])
    assert "has version [2], its results are of [1]" in left
    assert "no pinned results" in results.faults("defenses/strip", {}, [1])[0]
    pins["results"] = {"scores": [1.0, 1.0]}
    assert (
        "inputs is new; scores is no more; threshold is new"
        in (results.faults("defenses/strip", pins, [1])[0])
    )


def test_a_trigger_that_moves_by_a_pixel_and_a_row_chosen_for_another_are_seen() -> None:
    attack = test_attacks.make("badnets", target=1)
    rows = contract_of_attacks.chosen(attack).poison
    attack = contract_of_attacks.at_work(attack)
    clean = contract_of_attacks.pixels((1, 16, 16))
    stamped = attack.stamp(clean, ids=np.arange(8), part="test", artifact={}, seed=7)
    elsewhere = clean.roll(-1, 3)
    elsewhere = attack.stamp(elsewhere, ids=np.arange(8), part="test", artifact={}, seed=7).roll(
        1, 3
    )
    there = (results.numbers(images.numpy()) for images in (stamped, elsewhere))
    assert results.distance(*there) > results.TOLERANCE
    assert results.exactly(rows) != results.exactly(np.r_[rows[:-1], rows[-1] + 1])


def test_looser_tolerances_are_of_methods_that_are_pinned() -> None:
    pins = results.read()
    assert set(results.LOOSER) | set(results.UNSTEADY) <= set(results.names()) == set(pins)
    assert all(pins[name]["results"] for name in results.UNSTEADY)
