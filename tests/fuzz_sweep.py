"""Sweep files and --set: random words, values, texts, ranges and overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from raysweep.errors import RaysweepError, SpecError
from raysweep.sweep.editing import edited
from raysweep.sweep.loading import from_text, read_sweep
from raysweep.sweep.scalars import dump
from raysweep.sweep.spec import to_yaml
from raysweep.sweep.tuning import Range
from raysweep.sweep.yaml import parse
from raysweep.tuning.space import distribution

TEXT = """# a comment
name: x
question: "does it hold?"   # quoted
dataset: {digits: {size: 300, side: 16}}
model: tiny_cnn
recipe: {epochs: 1, learning_rate: 1e-2, augment: [crop]}
attacks:
  - none
  - badnets: &patch {rate: [0.01, 5e-2], size: 3}
  - blend:
      rate: 0.05
      alpha: 0.1
  - badnets: {<<: *patch, margin: 1}
defenses: [none, {strip: {fpr: 0.1}}, spectral_signatures]
seeds: 2
exclude:
  - {attack: blend, defense: strip}
resources: {gpu: {gpu: 0.25, memory: 4GiB}, limits: {train: 2h}}
track: {wandb: disabled, project: p}
tune:
  trials: 3
  constraints: [fpr <= 0.1]
  parameters: {strip: {fpr: {min: 1e-3, max: 0.5, distribution: log_uniform_values}}}
"""
PLAIN = {name: value for name, value in parse("", TEXT).values.items() if name != "attacks"}
PIECES = [
    ": ", ":", "- ", "\n", "\n  ", "\n    ", "\t", "{", "}", "[", "]", ",", "#", " #", "&a ", "*a",
    "<<: *patch", "!!int ", "|", ">", "'", '"', "%", "5%", "1e-3", "1_000", "010", "0o7", "1:30",
    ".inf", ".nan", "1e999", "9" * 30, "-1", "0", "null", "~", "yes", "true", "é", "\u00a0",
    "\u2028", "\ufeff", "---\n", "badnets", "strip", "rate", "fpr", "values", "min", "where",
]  # fmt: skip

words = st.text("0123456789.+-eExob_:infaINF", min_size=1, max_size=9)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(),
    st.floats(0, 1), st.integers(0, 20), st.sampled_from(PIECES), words, st.text(max_size=8),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=6,
)
_finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), _finite, words, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
paths = st.lists(
    st.sampled_from(
        ["name", "dataset", "digits", "size", "recipe", "epochs", "attacks", "0", "1", "2", "blend",
         "badnets", "rate", "defenses", "strip", "fpr", "seeds", "exclude", "resources", "gpu",
         "memory", "cpu", "limits", "track", "project", "tune", "trials", "parameters", "where"]
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def packed(value: Any) -> str:
    """Return text that tells 1 from 1.0 and from true."""
    return json.dumps(value, sort_keys=True)


def told(error: RaysweepError, *names: object) -> None:
    """Make sure that an error says where: a file, or an option."""
    lines = str(error).splitlines()
    assert lines, "an error says something"
    assert all(any(str(name) in line for name in names) for line in lines), str(error)


def python_value(word: str) -> Any:
    """Return the number that a word is in Python, which knows no others than YAML 1.2; else it."""
    if set(word.lower()) <= set("0123456789+-.e"):
        for kind in (int, float):
            try:
                return kind(word)
            except ValueError:
                continue
    if word[:2] in ("0x", "0o") and "_" not in word:
        try:
            return int(word, 0)
        except ValueError:
            pass
    return word


def check_word(word: str, folder: Path) -> None:
    """A word that is taken is the number that it looks like, or text."""
    try:
        found = parse("f.yaml", f"a: {word}\n").values["a"]
    except SpecError as error:
        told(error, "f.yaml:1")
        return
    expected = python_value(word)
    assert type(found) is type(expected) and found == expected, (found, expected)


def check_json(value: Any, folder: Path) -> None:
    """JSON is YAML, and means what it means as JSON."""
    text = json.dumps({"a": value})
    try:
        found = parse("f.yaml", text).values
    except SpecError as error:
        told(error, "f.yaml:")
        # Keys that begin or end with spaces, and values that are no text, are refused.
        assert "key " in str(error) or "duplicate" in str(error) or "valid YAML" in str(error)
        return
    assert packed(found) == packed(json.loads(text))
    assert packed(parse("f.yaml", dump(found)).values) == packed(found)


def check_written(text: str, file: Path) -> None:
    """A sweep file loads to what can be written and loaded again, or is refused with its name."""
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        loaded = read_sweep(file)
    except RaysweepError as error:
        told(error, file)
        return
    assert from_text(parse("f.yaml", to_yaml(loaded.sweep))) == loaded.sweep


def check_text(edits: list[tuple[int, int, str]], folder: Path) -> None:
    """A damaged sweep file loads to what its own YAML says, or is refused with its line."""
    text = TEXT
    for at, cut, piece in edits:
        at %= len(text) + 1
        text = text[:at] + piece + text[at + cut :]
    check_written(text, folder / "sweep.yaml")


def check_values(given: tuple[list[str], Any], folder: Path) -> None:
    """A sweep file with a random value somewhere."""
    names, value = given
    content: Any = json.loads(json.dumps(parse("", TEXT).values))
    here = content
    for name in names[:-1]:
        if isinstance(here, list) and name.isdecimal() and int(name) < len(here):
            here = here[int(name)]
        elif isinstance(here, dict):
            here = here.setdefault(name, {})
    if isinstance(here, dict):
        here[names[-1]] = value
    elif isinstance(here, list):
        here.append(value)
    try:
        text = dump(content)
    except ValueError:  # a lone surrogate
        return
    check_written(text, folder / "sweep.yaml")


def check_override(given: tuple[list[str], str, str], folder: Path) -> None:
    """--set works, and the text that is kept loads to the same, or the option is named."""
    names, sign, value = given
    override = f"{'.'.join(names)}{sign}{value}"
    file = folder / "sweep.yaml"
    file.write_text(TEXT)
    try:
        loaded = read_sweep(file, [override])
    except RaysweepError as error:
        told(error, "--set", file)
        return
    assert from_text(parse("f.yaml", loaded.text)) == loaded.sweep


def check_range(given: dict[str, Any], folder: Path) -> None:
    """A range that is taken is one that Optuna searches; it loads with and without its text."""
    content = {**PLAIN, "attacks": ["none", {"blend": {"rate": 0.1}}]}
    content["tune"] = {"parameters": {"strip": {"fpr": given}}}
    try:
        sweep = from_text(parse("f.yaml", dump(content)))
    except ValueError:
        return
    except SpecError as error:
        told(error, "f.yaml:")
        return
    assert sweep.tune is not None
    found = sweep.tune.parameters["strip"]["fpr"]
    if not found.suggested:
        distribution(found)
    assert Range.model_validate(found.pack()) == found


def check_edit(given: tuple[list[str], Any], folder: Path) -> None:
    """A text that is edited holds the new values and keeps its comments."""
    names, value = given
    after: Any = json.loads(json.dumps(PLAIN))
    here = after
    for name in names[:-1]:
        here = here.get(name) if isinstance(here, dict) else None
    if isinstance(here, dict):
        here[names[-1]] = value
    text = "".join(
        line for line in TEXT.splitlines(keepends=True)
        if not line.startswith(("attacks", "  - none", "  - b", "      ", "  - w"))
    )  # fmt: skip
    assert packed(parse("", text).values) == packed(PLAIN)
    try:
        found = edited(text, after)
    except ValueError:
        return  # All is then written anew: see `rewritten`.
    assert packed(parse("f.yaml", found).values) == packed(after)
    assert found.startswith("# a comment")


_pieces = st.one_of(st.sampled_from(PIECES), st.text(max_size=3), st.just(""))
_edits = st.lists(
    st.tuples(st.integers(0, len(TEXT)), st.sampled_from([0, 0, 1, 2, 5, 20]), _pieces),
    min_size=1, max_size=4,
)  # fmt: skip
_numbers = st.one_of(
    st.integers(), st.floats(), st.floats(0.001, 0.9), st.integers(-2, 9), st.none(), words
)
_ranges = st.dictionaries(
    st.sampled_from(["min", "max", "values", "distribution", "q", "value", "step"]),
    st.one_of(
        _numbers, st.lists(_numbers, max_size=3),
        st.sampled_from(["uniform", "log_uniform_values", "log_uniform", "normal"]),
    ),
    max_size=4,
)  # fmt: skip
_bounds = st.fixed_dictionaries(
    {"min": _numbers, "max": _numbers},
    optional={"distribution": st.sampled_from(["uniform", "log_uniform_values"])},
)

TARGETS = {
    "words": (words, check_word),
    "json": (json_values, check_json),
    "text": (_edits, check_text),
    "values": (st.tuples(paths, values), check_values),
    "override": (
        st.tuples(
            paths, st.sampled_from(["=", "=", "=", "", "=="]),
            st.one_of(values.map(lambda v: json.dumps(v, default=str)), _pieces, words),
        ),
        check_override,
    ),
    "range": (st.one_of(_ranges, _bounds), check_range),
    "edit": (st.tuples(paths, json_values), check_edit),
}  # fmt: skip
