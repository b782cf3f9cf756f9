"""Sweep files, in YAML or Python → `Sweep` and its text."""

from __future__ import annotations

import contextlib
import runpy
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from raysweep.errors import PlanError, SpecError
from raysweep.methods import ROLES
from raysweep.paths import starting_at
from raysweep.sweep.faults import line_in, python_faults
from raysweep.sweep.overrides import as_yaml, check_yaml, with_overrides
from raysweep.sweep.reading import from_text, lost_paths, opened
from raysweep.sweep.spec import Sweep
from raysweep.sweep.yaml import Path_, SweepText, file_name, parse, read_yaml

__all__ = ["LoadedSweep", "from_text", "load_sweep", "read_sweep"]


@dataclass(frozen=True, kw_only=True)
class LoadedSweep:
    """A sweep and the text that describes it.

    Attributes:
        sweep: what is to be run.
        text: the sweep file as written; with overrides of the command line, YAML that holds them.
        parsed: the values of the text and their lines; none of a Python sweep file.
        origins: axis, such as `defenses` → for each of its values, the path in the text of the
            entry from which it was opened.
    """

    sweep: Sweep
    text: str
    parsed: SweepText | None = None
    origins: Mapping[str, Sequence[Path_]] = field(default_factory=dict)

    @contextlib.contextmanager
    def with_lines(self) -> Iterator[None]:
        """Let the error of a plan begin with file, line and field of the value that it is about."""
        try:
            yield
        except SpecError as error:
            field, _, message = str(error).partition(": ")
            path = tuple(field.split("."))
            if self.parsed is None or path not in self.parsed.lines:
                raise
            raise SpecError(self.parsed.error(path, message)) from None
        except PlanError as error:
            if (path_of := self._path(error.about)) is None or self.parsed is None:
                raise
            raise PlanError(self.parsed.error(path_of, str(error))) from None

    def _path(self, values: Sequence[object]) -> Path_ | None:
        """Return the path of the first of some values of the sweep that the text gives."""
        for value in values:
            for axis, paths in self.origins.items():
                for one, path in zip(getattr(self.sweep, axis), paths, strict=True):
                    if one == value:
                        return path
        return None


def load_sweep(file: Path) -> Sweep:
    """Read a sweep file, `.yaml`, `.yml`, or `.py` (which defines `sweep`); `-`: standard input.

    Raises:
        SpecError: one line per fault: `file:line: field: got value; rule; remedy`.
    """
    return read_sweep(file).sweep


def read_sweep(file: Path, overrides: Sequence[str] = ()) -> LoadedSweep:
    """Read a sweep file as `load_sweep` does, change some of its values, and keep its text.

    Args:
        file: the sweep file.
        overrides: `KEY=VALUE`, each a path of a value, such as `recipe.epochs`, and a YAML value.

    Raises:
        SpecError: one line per fault; a value that was set is named with its option.
    """
    with starting_at(file.parent):
        if file.suffix == ".py" and not file.is_dir():
            check_yaml(file, overrides)
            return LoadedSweep(sweep=_run_python(file), text=_python_text(file))
        text = read_yaml(file)
        changed = with_overrides(parse(file_name(file), text), overrides)
        sweep, origins = opened(changed)
        return LoadedSweep(
            sweep=sweep, text=as_yaml(changed, overrides) if overrides else text,
            parsed=changed, origins=origins,
        )  # fmt: skip


def _python_text(file: Path) -> str:
    with tokenize.open(file) as stream:  # in the encoding that the file declares
        return stream.read()


def _run_python(file: Path) -> Sweep:
    try:
        sweep = runpy.run_path(str(file)).get("sweep")
    except ValidationError as error:
        raise SpecError("\n".join(python_faults(file, error))) from None
    except OSError as error:
        raise SpecError(f"{file}: cannot be read ({error})") from None
    except SpecError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a user's file does wrong is told
        raise SpecError(f"{file}:{line_in(file, error)}: {type(error).__name__}: {error}") from None
    if not isinstance(sweep, Sweep):
        raise SpecError(
            f"{file}:1: must define `sweep`, a raysweep.Sweep, got {type(sweep).__name__}"
        )
    lost = [
        f"{file}:1: {role}.{number}.{value.name}.{field}: {message}"
        for role in ROLES
        for number, value in enumerate(getattr(sweep, role))
        for field, message in lost_paths(value)
    ]
    if lost:
        raise SpecError("\n".join(lost))
    return sweep
