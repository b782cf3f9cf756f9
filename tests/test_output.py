"""Where commands write: places are checked before work, and errors name what helps."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from pathlib import Path

import pytest

from raysweep.cli.options import check_output
from raysweep.errors import SpecError
from raysweep.run.cluster.temporary import short_folder

command_line = importlib.import_module("raysweep.cli.app")  # the package has an `app`, too


def said(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Return the status and the errors of a command whose output takes ASCII alone."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["raysweep", *words])
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    sys.stderr.flush()
    return int(ended.value.code or 0), raw.getvalue().decode()


def test_a_sign_that_the_output_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    status, told = said(["plan", "毒.yaml"], monkeypatch)
    assert status == 2 and told.startswith("error: ?.yaml: cannot be read")


@pytest.mark.parametrize(
    "words",
    [
        ["report", "x", "--output"], ["results", "x", "--format", "csv", "--output"],
        ["leaderboard", "x", "--format", "backdoorbench", "--output"],
        ["tune", "x.yaml", "--write"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    status, told = said([*words, "nowhere/page"], monkeypatch)
    assert status == 2 and "'nowhere' is no folder; make it" in told, told
    if words[0] != "tune":
        status, told = said([*words, "folder"], monkeypatch)
        assert status == 2 and "is a folder; name a file in it" in told, told


@pytest.mark.parametrize(
    "words",
    [
        ["leaderboard", "x", "--output"], ["export", "x.yaml", "--to"], ["import", ".", "--to"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_file_where_a_folder_is_asked_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        status, told = said([*words, place], monkeypatch)
        assert status == 2 and ("folder is asked" in told or "is no folder" in told), told
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_output("--output", tmp_path / "page.html")
    check_output("--output", tmp_path / "a" / "b", folder=True)
    monkeypatch.setattr(os, "access", lambda place, mode: False)  # tests may run as root
    with pytest.raises(SpecError, match="cannot be written to; name another place"):
        check_output("--output", tmp_path / "page.html")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left", "/x"), "free some space there"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "a place that you may write"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), "correct the path"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "give the command again once"),
        (OSError(errno.EIO, "Input/output error"), ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_system_names_what_helps(
    error: OSError, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fails)
    status, told = said([], monkeypatch)
    assert status == 1 and remedy in told and "launch again" not in told
    assert told.count("\n") == 1


def test_a_long_folder_of_temporary_files_gives_ray_a_short_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/short")
    assert short_folder() is None
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    place = short_folder()
    assert place is not None and len(place) < 30
    assert Path(place).parent.stat().st_mode & 0o777 == 0o700
    Path(place).mkdir(exist_ok=True)
    Path(place).chmod(0o777)  # as Ray opens its own to everybody
    assert short_folder() == place
