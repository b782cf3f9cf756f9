"""YAML as people write it: values, the likely slip in every message, and texts written back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raysweep.attacks.badnets import BadNets
from raysweep.errors import PlanError, SpecError
from raysweep.jobs.launch import launch
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.plan.fits import check_fits
from raysweep.plan.planner import Planner
from raysweep.run.preview import preview
from raysweep.store import Store
from raysweep.sweep.editing import edited, rewritten
from raysweep.sweep.loading import from_text, load_sweep, read_sweep
from raysweep.sweep.scalars import dump
from raysweep.sweep.yaml import parse

GOOD = """name: x
dataset: {digits: {size: 300}}
model: tiny_cnn
recipe: {epochs: 1}
attacks:
  - badnets: {rate: 0.05}
  - blend: {rate: 0.1}
defenses: [none, strip]
seeds: 3
"""


def with_text(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def fault(text: str) -> str:
    with pytest.raises(SpecError) as refused:
        from_text(parse("f.yaml", text))
    return str(refused.value)


@pytest.mark.parametrize(
    ("word", "value"),
    [("1e-3", 0.001), ("5E+2", 500.0), ("+.5", 0.5), ("5.", 5.0), ("0o10", 8), ("0x1F", 31),
     ("-12", -12), ("0", 0), ("true", True), ("FALSE", False), ("yes", "yes"), ("on", "on"),
     ("~", None), ("", None), ("2001-01-01", "2001-01-01"), ("'1e-3'", "1e-3"), ("=", "="),
     ("1.2.3", "1.2.3"), ("!!str 5", "5"), ("!!float 5", None)],
)  # fmt: skip
def test_words_have_the_values_of_the_core_schema_of_yaml_1_2(word: str, value: Any) -> None:
    if word == "!!float 5":
        with pytest.raises(SpecError, match="cannot be read as float"):
            parse("f.yaml", f"a: {word}")
        return
    found = parse("f.yaml", f"a: {word}").values["a"]
    assert type(found) is type(value) and found == value


@pytest.mark.parametrize(
    ("word", "said"),
    [("010", "octal, YAML 1.2 as decimal; write 10"), ("08", "write 8"), ("-007", "write -7"),
     ("1_000", "underscores, which numbers of YAML 1.2 have not; write 1000"),
     ("1:30", "counts in sixties"), ("0b11", "write it in decimal"), ("-0x1F", "in decimal"),
     (".inf", "must be a finite number, got .inf"), ("-.INF", "finite"), (".nan", "finite"),
     ("1e999", "must be a finite number, got 1e999"), ("9" * 500, "500 characters"),
     ("!!binary x", "tag 'tag:yaml.org,2002:binary' is not allowed")],
)  # fmt: skip
def test_a_number_that_readers_disagree_on_is_refused(word: str, said: str) -> None:
    message = fault(with_text("0.05", word))
    assert message.startswith("f.yaml:6: attacks.0.badnets.rate: ") and said in message


def test_merge_keys_take_the_fields_of_mappings() -> None:
    text = GOOD.replace("{rate: 0.05}", "&b {rate: 0.05, size: 2}").replace(
        "- blend: {rate: 0.1}", "- badnets: {<<: *b, size: 4}\n  - badnets: {<<: [{size: 5}, *b]}"
    )
    first, second, third = from_text(parse("f.yaml", text)).attacks
    assert [first.size, second.size, third.size] == [2, 4, 5]  # type: ignore[attr-defined]
    assert second.rate == third.rate == 0.05
    wrong = text.replace("size: 4", "siz: 4")
    assert fault(wrong).startswith("f.yaml:7: attacks.1.badnets.siz: unknown field")
    assert "takes the fields of a mapping" in fault(with_text("{rate: 0.1}", "{<<: 3}"))
    assert "contains itself" in fault(with_text("{rate: 0.1}", "&a {<<: *a}"))
    assert "duplicate key '<<'" in fault(with_text("{rate: 0.1}", "{<<: {}, <<: {}}"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0.05", "5%", "f.yaml:6: attacks.0.badnets.rate: must be a valid number: a fraction"),
        ("0.05", "5%", "percentage, 0.05, got '5%'"),
        ("0.05", "'0.05'", "0.05 without quotes"),
        ("300", "'1,000'", "must be a valid integer: thousands without a comma, 1000, got"),
        ("0.05", "1e-400", "f.yaml:6: attacks.0.badnets.rate: 1e-400 is smaller than any number"),
        ("  - badnets", "\u00a0 - badnets", "line 6 begins with U+00A0; YAML knows"),
        ("  - blend", "  \u2003- blend", "line 7 begins with U+2003; YAML knows"),
        ("300", "'300'", "f.yaml:2: dataset.digits.size: must be a valid integer: 300 without"),
        ("0.05", "'0,05'", "a decimal point, 0.05"),
        ("0.05", "0,05", "f.yaml:6: '05' begins with a zero"),
        ("0.05", "0,05", "a decimal number has a point, not a comma"),
        ("0.05", "0,5", "keys are words, got 5; a decimal number has a point"),
        ("0.05", "", "give a value after the colon"),
        ("0.05", "{values: [0.1]}", "a range that is searched stands under tune.parameters"),
        ("0.05", "{min: 0.1, max: 0.2}", "a list is an axis, rate: [1, 2]"),
        ("epochs: 1", "epochs: 1, nesterov: yes", "YAML 1.2 writes true"),
        ("epochs: 1", "epochs: 1, nesterov: 'no'", "YAML 1.2 writes false"),
        ("epochs: 1", "epochs: 1, nesterov: 'true'", "true, without quotes"),
        ("{rate: 0.1}", "{rate:0.1}", "a colon is followed by a space"),
        ("{rate: 0.1}", "5", "f.yaml:7: attacks.1.blend: parameters must be a mapping, got 5"),
        ("[none, strip]", "[none strip]", "a comma after it in brackets"),
        ("[none, strip]", "\n  none\n  strip", "each entry of a list has a dash"),
        ("[none, strip]", "\n  -none\n  -strip", "has a dash and a space"),
        ("- badnets: {rate: 0.05}", "- badnets:\n    rate: 0.05", "f.yaml:6: attacks.0: must be"),
        ("- badnets: {rate: 0.05}", "- badnets:\n    rate: 0.05", "than the name: badnets: {rate"),
        ("{digits: {size: 300}}", "\n  digits:\n  size: 300", "deeper than the name: digits"),
        ("  - badnets: {rate: 0.05}\n  -", "  badnets: {rate: 0.05}\n ", "each entry has a dash"),
        ("attacks:\n  - badnets: {rate: 0.05}\n  -", "attack:\n  none: {}\n ", "has a dash"),
        ("- badnets: {rate: 0.05}", "- badnets:\n  rate: 0.05", "f.yaml:7: is not valid YAML"),
        ("- badnets: {rate: 0.05}", "- badnets:\n  rate: 0.05", "a parameter stands deeper"),
        ("  - blend", "  blend", "an entry of a list begins with a dash"),
        ("  - blend", "\t- blend", "f.yaml:7: is not valid YAML"),
        ("  - blend", "\t- blend", "a tab stands there, and YAML is indented with spaces"),
        ("attacks:", "attacks", "line 5, 'attacks', lacks a colon (attacks:)"),
        ("seeds: 3", "seeds 3", "line 9, 'seeds 3', lacks a colon"),
        ("seeds: 3", "seeds:3", "a colon is followed by a space: line 9 is 'seeds:3'"),
        ("name: x", "name:x", "a colon is followed by a space: line 1 is 'name:x'"),
        ("{epochs: 1}", "fast\n  epochs: 3", "line 5 stands deeper than line 4"),
        ("{rate: 0.1}", "{rate: 0.1 alpha: 2}", "a comma is missing"),
        ("{rate: 0.1}", "{rate: 0.1", "the bracket that line 7 opens is not closed"),
        ("seeds: 3", "question: why: so", "a colon and a space is put in quotes"),
        ("seeds: 3", "question: 'it's'", "within quotes, a quote is written twice"),
        ("seeds: 3", "question: 'it", "the quote that line 9 opens is not closed"),
        ("seeds: 3", "question: %x", "text that begins with '%' is put in quotes"),
        ("seeds: 3", "question: *x", "text that begins with '*' is put in quotes"),
        ("seeds: 3", 'question: "C:\\data"', "a backslash begins an escape"),
        ("seeds: 3", 'question: "\\ud83d\\ude00"', "a backslash begins an escape"),
        ("seeds: 3", "---\nseeds: 3", "a sweep file is one document"),
        ("seeds: 3", " seeds: 3", "fields of one mapping begin in one column"),
        ("seeds: 3", "seeds: [1, 1]", "f.yaml:9: seeds: duplicate in seeds: 1"),
        ("seeds: 3", "seeds: '3'", "without quotes, got '3'"),
        ("seeds: 3", "seeds: [18446744073709551616]", "seeds.0: must be less than"),
        ("seeds: 3", "exclude: [{attack: [badnets, blend]}]", "f.yaml:9: exclude: sweep x: ex"),
        ("seeds: 3", "resources: {gpu: {memory: 1e30}}", "must be from 0 to 9223372036854775807"),
        ("seeds: 3", "resources: {gpu: {cpu: 1e30}}", "must be at most 100000"),
        ("seeds: 3", "resources: {limits: {train: 1e30}}", "at most ten years"),
        ("seeds: 3", "track: {project: 'a/b:c'}", "f.yaml:9: track.project: must have no /"),
        ("seeds: 3", f"track: {{project: {'p' * 129}}}", "must be 1 to 128 characters"),
        ("seeds: 3", "track: {entity: ' '}", "track.entity: must be 1 to 128 characters"),
        ("seeds: 3", "tune: {parameters: {strip: {foo: {}}}}", "f.yaml:9: tune.parameters.strip"),
        ("seeds: 3", "tune: {parameters: {strip: {fpt: {}}}}", "did you mean 'fpr'?"),
        ("seeds: 3", "tune: {parameters: {strp: {fpr: {}}}}", "did you mean 'strip'?"),
        ("seeds: 3", "tune: {parameters: {strip: {on: {}}}}", "suggests no range"),
        ("seeds: 3", "tune: {parameters: {strip: {fpr: {min: 0.1, max: 3}}}}", "must be less than"),
        ("seeds: 3", "tune: {parameters: {strip: {fpr: {values: []}}}}", "at least one value"),
        ("seeds: 3", "tune: {parameters: {strip: {fpr: {values: 0.1}}}}", "a list, such as [0.1]"),
        ("seeds: 3", "tune: {parameters: {strip: {overlays: {min: 1, max: 1e30}}}}", "a number fr"),
        ("seeds: 3", "tune: {constraints: fpr <= 1e999}", "must be like 'fpr <= 0.05'"),
        ("model:", "\u00a0model: x\nmodel:", "a space that YAML does not skip"),
    ],
)  # fmt: skip
def test_a_message_names_the_likely_slip(old: str, new: str, said: str) -> None:
    message = fault(with_text(old, new))
    assert said in message, message
    assert all(line.startswith("f.yaml:") for line in message.splitlines())


@pytest.mark.parametrize("excluded", ["5", "[{where: }]", "[{where: 5}]", "[strip]"])
def test_what_is_excluded_is_a_list_of_mappings(excluded: str) -> None:
    said = "exclude: must be a list of mappings, such as [{attack: badnets}]"
    assert said in fault(GOOD + f"exclude: {excluded}\n")


def test_a_message_is_one_line_whatever_signs_a_name_has() -> None:
    for old, new in (("dataset: {digits: {size: 300}}", 'dataset: {"a\\x1eb": , c: }'),
                     ("recipe: {epochs: 1}", 'recipe: {epochs: 1, "a\\x1eb": }'),
                     ("seeds: 3", 'seeds: 3\n"a\\x1eb": 1')):  # fmt: skip
        told = fault(with_text(old, new))
        assert len(told.splitlines()) == 1 and "a\\x1eb" in told


def test_a_file_that_is_no_mapping_is_shown() -> None:
    assert "got 'seeds = 3'" in fault("seeds = 3") and "got a list" in fault("- a")


def test_whole_numbers_may_be_written_as_in_json() -> None:
    text = with_text("300", "3e2").replace("seeds: 3", "seeds: [1e1, 2]")
    sweep = from_text(parse("f.yaml", text))
    assert sweep.datasets[0].size == 300 and sweep.seeds == (10, 2)
    assert "got 0.3" in fault(with_text("300", "3e-1"))


@pytest.mark.parametrize("word", ["08", "1e-3", "1_0", "on", "2001-01-01", "<<", "0o7", ".inf", ""])
def test_text_that_looks_like_a_number_is_written_in_quotes(word: str) -> None:
    assert parse("f.yaml", dump({"a": word})).values == {"a": word}


ODD = [
    "\x00",
    "\x07",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x7f",
    "\x85",
    "\u2028",
    "\u2029",
    "\ufffe",
    "\udcff",
]


@pytest.mark.parametrize("sign", [*ODD, "\ufeff"])
@pytest.mark.parametrize("text", ["# é\n\nb: x{}y", "# é\r\n\r\n# c{}b: 2", "# é\r\rb: '{}'"])
def test_signs_that_are_no_text_or_end_a_line_for_some_are_refused(sign: str, text: str) -> None:
    with pytest.raises(SpecError, match=rf"^f\.yaml:3: holds U\+{ord(sign):04X}, .* remove it"):
        parse("f.yaml", text.format(sign))


@pytest.mark.parametrize("sign", [one for one in ODD if one != "\udcff"] + ["\ufeff", "\r", "\t"])
@pytest.mark.parametrize(
    "text", ["{}", "{}a", "a{}", "a\n{}b", "a b{} c: d", "# {}", "x" * 90 + " {} y"]
)
def test_any_text_is_written_so_that_it_is_read_again(sign: str, text: str) -> None:
    for values in ({"a": text.format(sign)}, {"a": [{"b" + sign + "c": None}]}):
        for flow in (True, False):
            assert parse("f.yaml", dump(values, flow=flow)).values == values


def test_a_byte_order_mark_may_begin_a_file() -> None:
    assert from_text(parse("f.yaml", "\ufeff" + GOOD)) == from_text(parse("f.yaml", GOOD))


def test_a_fault_of_the_plan_in_resources_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(GOOD + "resources:\n  limits:\n    trian: 2h\n")
    loaded = read_sweep(tmp_path / "f.yaml")
    with pytest.raises(SpecError) as caught, loaded.with_lines():
        preview(loaded.sweep, Store(str(tmp_path / "store")))
    assert "f.yaml:12: resources.limits.trian: must be a stage kind" in str(caught.value)


def refused(text: str, folder: Path, data: str = "") -> str:
    (folder / "f.yaml").write_text(text)
    loaded = read_sweep(folder / "f.yaml")
    with pytest.raises(PlanError) as caught, loaded.with_lines():
        preview(loaded.sweep, Store(str(folder / "store")))
    return str(caught.value).removeprefix(str(folder / "f.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rate: 0.05", "rate: 0.05, size: 40", ":6: attacks.0: dataset digits(size=300): attack"),
        ("rate: 0.05", "rate: 0.05, size: 40", "size + margin must fit the image, got 40 + 0 on"),
        ("rate: 0.05", "rate: 0.05, target: 12", ":6: attacks.0: "),
        ("rate: 0.05", "rate: 0.001", ":6: attacks.0: dataset digits(size=300): attack badnets"),
        ("size: 300", "clean_size: 3", ":8: defenses.1: dataset digits(clean_size=3): defense str"),
        ("size: 300", "clean_size: 3", "needs at least 4 reserved clean images, got 3; raise"),
        ("size: 300", "clean_size: 500", ":2: dataset: dataset digits: clean_size must leave"),
        ("tiny_cnn", "vgg16_bn", ":3: model: dataset digits(size=300): model vgg16_bn: images mus"),
        ("tiny_cnn", "ember_mlp", ":3: model: model ember_mlp works on features"),
    ],
)  # fmt: skip
def test_a_plan_refuses_what_a_launch_would_fail_with(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    assert said in refused(with_text(old, new), tmp_path)


@pytest.mark.parametrize(
    ("defense", "size", "said"),
    [
        ("confusion_training", 1, "needs at least 2 reserved clean images, got 1; raise"),
        ("nad", 1, "needs at least 2 reserved clean images, got 1; raise"),
        ("lid: {on: training_set}", 30, "at least 9 reserved clean images of every class, got "),
        ("activation_sequence: {neighbors: 1}", 9, "at least 1 reserved clean images of every"),
        ("lid: {on: inputs}", 30, ""),
    ],
)  # fmt: skip
def test_a_plan_counts_the_clean_images_that_a_defense_needs(
    defense: str, size: int, said: str, tmp_path: Path
) -> None:
    text = with_text("size: 300", f"clean_size: {size}").replace("[none, strip]", f"[{defense}]")
    if said:
        assert said in refused(text, tmp_path)
    else:
        check_fits(Planner(from_text(parse("f.yaml", text))))


def test_a_rule_of_a_method_is_told_with_its_kind_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, *given: object, **more: object) -> None:
        raise ValueError("not on a Friday")

    for kind, method, told in (
        (TinyCNN, "check", "model tiny_cnn: not on a Friday"),
        (BadNets, "stamp", "attack badnets: not on a Friday"),
    ):
        with monkeypatch.context() as patch, pytest.raises(PlanError, match=told):
            patch.setattr(kind, method, refuse)
            check_fits(Planner(from_text(parse("f.yaml", GOOD))))


def test_a_launch_refuses_what_its_plan_refuses(tmp_path: Path) -> None:
    text = with_text("rate: 0.05", "rate: 0.05, size: 40")
    with pytest.raises(PlanError, match="must fit the image, got 40"):
        launch(from_text(parse("f.yaml", text)), text, str(tmp_path / "store"), inline=True)
    assert Store(str(tmp_path / "store")).done() == set()


def test_a_plan_says_that_gpus_are_asked_for_where_none_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for gpu, said in ((0.25, 1), (0, 0)):
        text = GOOD + f"resources: {{gpu: {{gpu: {gpu}}}}}\n"
        found = preview(from_text(parse("f.yaml", text)), Store(str(tmp_path / "store")))
        told = [one for one in found.forecasts if one.startswith("resources.gpu.gpu: a stage asks")]
        assert len(told) == said


TUNABLE = """# what I study
name: x   # the name
question: "why?"
dataset: {digits: {size: 300}}
model: tiny_cnn

# how
recipe: {learning_rate: 1e-2, epochs: 1}
attacks:
- badnets: {rate: 0.05}   # five in a hundred
defenses:
- none
- strip:
    fpr: 0.1  # a budget
- spectral_signatures
- strip: {overlays: [8, 16]}
tune: {trials: 3}
"""


def test_a_sweep_is_written_back_with_its_comments_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(TUNABLE)
    loaded = read_sweep(tmp_path / "f.yaml")
    none, strip, signatures, first, second = loaded.sweep.defenses
    better = loaded.sweep.model_copy(
        update={
            "name": "x-tuned", "tune": None,
            "defenses": (
                none, strip.model_copy(update={"fpr": 0.25}), signatures, first,
                second.model_copy(update={"fpr": 1e-05}),
            ),
        }
    )  # fmt: skip
    found = rewritten(loaded, better, tmp_path)
    assert from_text(parse("f.yaml", found)) == better
    for kept in ("# what I study\n", "name: x-tuned   # the name\n" , 'question: "why?"\n',
                 "# how\n", "1e-2", "- badnets: {rate: 0.05}   # five in a hundred\n",
                 "fpr: 0.25  # a budget\n", "- spectral_signatures\n"):  # fmt: skip
        assert " ".join(kept.split()) in " ".join(found.split()), found
    assert "\ntune" not in found and "overlays: [8, 16]" not in found


def test_where_a_text_cannot_be_edited_all_values_are_written_anew(tmp_path: Path) -> None:
    (tmp_path / "images" / "train" / "a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    text = TUNABLE.replace("{digits: {size: 300}}", "{imagefolder: {path: images}}")
    (tmp_path / "f.yaml").write_text(text)
    loaded = read_sweep(tmp_path / "f.yaml")
    better = loaded.sweep.model_copy(update={"name": "y", "tune": None})
    assert rewritten(loaded, better, tmp_path).startswith("# what I study")
    file = tmp_path / "elsewhere" / "f.yaml"
    file.write_text(rewritten(loaded, better, tmp_path / "elsewhere"))
    assert not file.read_text().startswith("#") and load_sweep(file) == better
    shared = {"a": {"x": 1}, "b": {"x": 2}}
    with_alias = "a: &a {x: 1}\nb: *a\n"
    with pytest.raises(ValueError, match="cannot be edited to hold"):
        edited(with_alias, shared)


@pytest.mark.further
@pytest.mark.slow
def test_sweep_files_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "u.yaml").write_text(f'question: "Gift überall – 毒?"\n{GOOD}', encoding="utf-8")
    (tmp_path / "u.py").write_text(
        "# Gift überall – 毒\nfrom pathlib import Path\n"
        "from raysweep.sweep.loading import load_sweep\nsweep = load_sweep(Path('u.yaml'))\n",
        encoding="utf-8",
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "raysweep", "plan", "u.py", "--storage", "store"],
        capture_output=True, cwd=tmp_path, env={**os.environ, **plain}, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and b"x: 12 trials" in done.stdout, done.stderr
