"""The values of plain words in YAML: the core schema of YAML 1.2, read and written."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
NULL, BOOLEAN, INTEGER, FLOAT = f"{TAG}null", f"{TAG}bool", f"{TAG}int", f"{TAG}float"
TEXT, MERGE = f"{TAG}str", f"{TAG}merge"
OLD = "!old"  # a number in YAML 1.1 alone
MOST_DIGITS = 400

# https://yaml.org/spec/1.2.2/#103-core-schema, less integers with a leading zero, which YAML 1.1
# reads as octal and YAML 1.2 as decimal.
_CORE = (
    (NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (BOOLEAN, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (INTEGER, r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    (MERGE, r"<<", ["<"]),
)
_OLD_NUMBER = (
    r"[-+]?0b[01_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?[0-9][0-9_]*"
    r"|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"
    r"|[-+]?([0-9][0-9_]*)?\.[0-9_]*[0-9][0-9_]*([eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?"
)
_FIRST = list("-+.0123456789")


# YAML 1.1 ends a line at these too, YAML 1.2 does not: as signs they would be read in two ways.
BREAKS = {"\x85": r"\x85", "\u2028": r"\u2028", "\u2029": r"\u2029"}


class Unreadable(ValueError):
    """A word that has no value: the message gives rule and remedy."""


def _resolving(base: Any, name: str) -> Any:
    """Return a loader of PyYAML that knows the words of the core schema, and no others."""
    made: Any = type(name, (base,), {"yaml_implicit_resolvers": {}})
    for tag, pattern, first in _CORE:
        made.add_implicit_resolver(tag, re.compile(rf"(?:{pattern})\Z"), first)
    made.add_implicit_resolver(OLD, re.compile(rf"(?:{_OLD_NUMBER})\Z"), _FIRST)
    return made


# libyaml's parser is ten times as fast as one in Python, and ends deep nesting at once.
Loader = _resolving(getattr(yaml, "CSafeLoader", yaml.SafeLoader), "Loader")


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes wherever YAML 1.1 or 1.2 would read something else."""

    def represent_str(self, text: str) -> Any:
        """Return the node of a text, in double quotes where a sign has to be escaped."""
        style = '"' if any(sign in text for sign in BREAKS) else None
        return self.represent_scalar(TEXT, text, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
for _tag, _pattern, _first in (*_CORE, (OLD, _OLD_NUMBER, _FIRST)):
    _Dumper.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def dump(values: Any, *, flow: bool = False) -> str:
    """Return YAML of plain values, in their order, which YAML 1.1 and 1.2 read alike.

    Args:
        values: mappings, lists and scalars.
        flow: on one line.
    """
    text: str = yaml.dump(
        values, Dumper=_Dumper, default_flow_style=flow, sort_keys=False, allow_unicode=True,
        width=10_000 if flow else 96,
    )  # fmt: skip
    return text


def value_of(tag: str, word: str) -> str | int | float | bool | None:
    """Return the value of a scalar by its tag.

    Raises:
        Unreadable: if it is no value of its tag, a number that is not finite, or one that YAML 1.1
            alone reads as a number.
    """
    if tag == OLD:
        raise Unreadable(f"{word!r} {_old(word)}; for text, put it in quotes")
    if tag in (TEXT, MERGE):
        return word
    pattern = next((pattern for name, pattern, _ in _CORE if name == tag), None)
    if pattern is None:
        raise Unreadable(f"tag {tag!r} is not allowed; remove it")
    if not re.fullmatch(pattern, word):
        raise Unreadable(f"{word[:60]!r} cannot be read as {tag.removeprefix(TAG)}; remove the tag")
    if tag == NULL:
        return None
    if tag == BOOLEAN:
        return word.lower() == "true"
    if len(word) > MOST_DIGITS:
        raise Unreadable(
            f"a number of {len(word):,} characters is longer than {MOST_DIGITS}; round it"
        )
    if tag == INTEGER:
        return int(word, {"0o": 8, "0x": 16}.get(word[:2], 10))
    number = float(re.sub(r"\.(?=inf|nan)", "", word.lower()))
    if not math.isfinite(number):
        raise Unreadable(f"must be a finite number, got {word}; write a number, or leave it out")
    if not number and re.search("[1-9]", word.lower().partition("e")[0]):
        raise Unreadable(f"{word} is smaller than any number that floats hold; write 0, if it is")
    return number


def _old(word: str) -> str:
    """Return why a number of YAML 1.1 is refused, and what is written in its place."""
    plain = word.replace("_", "")
    if ":" in word:
        return "counts in sixties in YAML 1.1 and is text in YAML 1.2; write the number itself"
    if "_" in word:
        return f"has underscores, which numbers of YAML 1.2 have not; write {plain}"
    if "b" in word or "x" in word:
        return "is a number in YAML 1.1 and text in YAML 1.2; write it in decimal"
    return (
        f"begins with a zero: YAML 1.1 reads such a number as octal, YAML 1.2 as decimal; "
        f"write {int(word)}"
    )
