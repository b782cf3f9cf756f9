"""Values of a sweep file that the command line sets, and sweep files from standard input."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from raysweep.errors import SpecError
from raysweep.sweep.loading import from_text, load_sweep, read_sweep
from raysweep.sweep.overrides import as_yaml, with_overrides
from raysweep.sweep.spec import Sweep, to_plain
from raysweep.sweep.yaml import parse

TEXT = """
name: set
dataset: digits
model: {tiny_cnn: {width: 8}}
recipe: fast
attacks:
  - badnets: {rate: 0.05}
  - blend
defenses: [none, strip]
exclude: [{attack: blend, defense: strip}]
"""


def loaded(*overrides: str) -> Sweep:
    return from_text(with_overrides(parse("s.yaml", TEXT), overrides))


@pytest.mark.parametrize(
    ("override", "old", "new"),
    [
        ("seeds=3", "exclude:", "seeds: 3\nexclude:"),
        ("seeds=[4, 5]", "exclude:", "seeds: [4, 5]\nexclude:"),
        ("name=other", "name: set", "name: other"),
        ("question=Does it?", "name: set", "name: set\nquestion: Does it?"),
        ("dataset.digits.size=300", "dataset: digits", "dataset: {digits: {size: 300}}"),
        ("datasets.digits.size=300", "dataset: digits", "dataset: {digits: {size: 300}}"),
        ("model.tiny_cnn.width=16", "width: 8", "width: 16"),
        ("recipe.epochs=2", "recipe: fast", "recipe: {base: fast, epochs: 2}"),
        ("recipes.epochs=[1, 2]", "recipe: fast", "recipe: {base: fast, epochs: [1, 2]}"),
        ("attacks.0.badnets.rate=0.1", "rate: 0.05", "rate: 0.1"),
        ("attack.1.blend.alpha=0.3", "- blend", "- blend: {alpha: 0.3}"),
        ("attacks.0=wanet", "- badnets: {rate: 0.05}", "- wanet"),
        ("attacks=[blend]", "  - badnets: {rate: 0.05}\n", ""),
        ("defenses.1.strip.on=training_set", "strip]", "strip: {on: training_set}]"),
        ("resources.gpu.gpu=0.5", "exclude:", "resources: {gpu: {gpu: 0.5}}\nexclude:"),
        ("tune.constraints=[]", "exclude:", "tune: {constraints: []}\nexclude:"),
        ("exclude=[]", "exclude: [{attack: blend, defense: strip}]", ""),
        ("exclude.0.attack=badnets", "{attack: blend", "{attack: badnets"),
    ],
)  # fmt: skip
def test_an_override_is_the_same_as_the_value_in_the_file(
    override: str, old: str, new: str
) -> None:
    assert old in TEXT
    assert loaded(override) == from_text(parse("s.yaml", TEXT.replace(old, new)))


def test_the_last_override_of_a_value_counts() -> None:
    assert loaded("recipe.epochs=2", "recipe={epochs: 5}", "recipe.epochs=3").recipes[0].epochs == 3
    assert loaded("recipe.epochs=2", "recipe={batch_size: 5}").recipes[0].epochs == 10


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seeds", ["--set seeds:", "must be KEY=VALUE", "--set seeds=3"]),
        ("=3", ["--set =3:", "must be KEY=VALUE"]),
        ("recipe..epochs=3", ["must be KEY=VALUE"]),
        ("sedes=3", ["--set sedes=3: sedes: unknown field", "did you mean 'seeds'"]),
        ("seeds=0", ["--set seeds=0: seeds: must be", "got 0"]),
        ("seeds=[1", ["--set 'seeds=[1'", "is not valid YAML"]),
        ("seeds=!!python/name:os.system 1", ["is not allowed"]),
        ("name=no spaces", ["--set 'name=no spaces': name: must be 1 to 64 letters"]),
        ("recipe.epochs=-1", ["--set recipe.epochs=-1: recipe.epochs: must be at least 0, got -1"]),
        ("recipe.epoch=1", ["--set recipe.epoch=1: recipe.epoch: unknown field", "'epochs'"]),
        ("attacks.0.badnets.rate=2", ["--set attacks.0.badnets.rate=2: attacks.0.badnets.rate:",
                                      "must be at most 1, got 2"]),
        ("attacks.7.badnets.rate=1", ["attacks is a list of 2", "by number, got '7'",
                                      "attacks.0 is badnets, attacks.1 is 'blend'"]),
        ("attacks.badnets.rate=1", ["by number, got 'badnets'", "attacks.0 is badnets"]),
        ("attacks.0.rate=1", ["attacks.0 is badnets", "got 'rate'",
                              "--set attacks.0.badnets.rate=VALUE"]),
        ("attacks.1.wanet.rate=1", ["attacks.1 is blend", "--set attacks.1=NAME"]),
        ("name.first=x", ["name is 'set', which holds no 'first'", "--set name=VALUE"]),
        ("seeds.0=1", ["seeds is None, which holds no '0'", "--set seeds=VALUE"]),
        ("resources.gpu.gpu=1.5", ["--set resources.gpu.gpu=1.5: resources.gpu.gpu: must be a"]),
    ],
)  # fmt: skip
def test_an_error_names_option_path_value_rule_and_remedy(override: str, words: list[str]) -> None:
    with pytest.raises(SpecError) as refused:
        loaded(override)
    for word in words:
        assert word in str(refused.value), str(refused.value)


def test_a_fault_of_the_file_itself_is_named_by_its_line() -> None:
    text = with_overrides(parse("s.yaml", TEXT.replace("strip]", "stripp]")), ["seeds=0"])
    with pytest.raises(SpecError) as refused:
        from_text(text)
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("s.yaml:9: defenses.1: unknown defense 'stripp'")
    assert lines[1].startswith("--set seeds=0: seeds:")


@pytest.mark.parametrize("value", ["on", "'3'", "1e-3", "é: 'a # b'", "[null, 2001-01-01, 0x1F]"])
def test_the_text_that_is_kept_loads_to_what_was_run(value: str) -> None:
    overrides = [f"question={value}", "recipe.epochs=2", "defenses.1.strip.on=training_set"]
    changed = with_overrides(parse("s.yaml", TEXT), overrides)
    kept = as_yaml(changed, overrides)
    assert kept.startswith("# s.yaml, with --set ") and "--set recipe.epochs=2" in kept
    assert parse("again.yaml", kept).values == changed.values


def test_read_sweep_gives_the_text_as_written_or_with_its_overrides(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(TEXT)
    assert read_sweep(file).text == TEXT and read_sweep(file).sweep == load_sweep(file)
    changed = read_sweep(file, ["seeds=2", "name=two"])
    file.write_text(changed.text)
    assert load_sweep(file) == changed.sweep and changed.sweep.name == "two"


def test_a_python_sweep_file_refuses_overrides_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "s.py"
    file.write_text("raise RuntimeError('not run')\n")
    with pytest.raises(SpecError, match="is a Python sweep file, a program") as refused:
        read_sweep(file, ["seeds=2"])
    assert str(refused.value).startswith("--set seeds=2:") and "os.environ" in str(refused.value)


class Piped:
    """Standard input that holds some bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_a_dash_reads_standard_input_and_paths_start_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = TEXT.replace("dataset: digits", "dataset: {imagefolder: {path: images}}")
    monkeypatch.setattr(sys, "stdin", Piped(text.encode()))
    found = read_sweep(Path("-"))
    assert found.text == text
    assert str(tmp_path / "images") in str(to_plain(found.sweep)["datasets"])
    for data, said in ((b"name: [", "standard input:1: is not valid YAML"),
                       (b"\xff", "standard input:1: is not UTF-8"),
                       (b"#" * (1 << 20) + b"#", "standard input: is larger than"),
                       (b"", "standard input:1: a sweep file is a mapping")):  # fmt: skip
        monkeypatch.setattr(sys, "stdin", Piped(data))
        with pytest.raises(SpecError, match=said):
            read_sweep(Path("-"))
