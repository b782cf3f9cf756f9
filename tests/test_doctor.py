"""The doctor: what this machine has, and what a sweep lacks here."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from raysweep.cli import doctor as checks
from raysweep.cli.app import app
from raysweep.cli.doctor import print_doctor
from raysweep.results.wandb_runs import key_source
from raysweep.sweep.loading import from_text
from raysweep.sweep.spec import Sweep
from raysweep.sweep.yaml import parse

NEEDS = """
name: needy
datasets: [%s]
model: tiny_cnn
attack: none
defense: none
track: {wandb: %s}
resources: {gpu: {%s}}
"""
KEY = "0" * 40


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give an empty home, and no data, key or cache of this machine."""
    for variable in ("RAYSWEEP_DATA", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))


def needy(dataset: str = "digits", wandb: str = "offline", gpu: str = "gpu: 0") -> Sweep:
    return from_text(parse("s.yaml", NEEDS % (dataset, wandb, gpu)))


def doctor(store: Path, sweep: Sweep | None = None) -> tuple[bool, list[str]]:
    """Return whether nothing is missing, and the lines on what is."""
    console = Console(record=True, width=1000)
    complete = print_doctor(console, str(store), sweep)
    lines = console.export_text().splitlines()
    return complete, [line for line in lines if line.startswith("missing: ")]


def test_without_a_sweep_only_the_storage_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(tmp_path / "store") == (True, [])
    said = capsys.readouterr().out
    for part in (
        "mnist: not on this machine", "digits: 1 files", "no key, which online needs",
        "is writable", "GiB free for the storage", "memory: ", "GPUs, one kernel",
    ):  # fmt: skip
        assert part in said
    (tmp_path / "file").write_text("")
    assert doctor(tmp_path / "file")[0] is False


def test_a_sweep_whose_needs_are_met(tmp_path: Path) -> None:
    assert doctor(tmp_path / "store", needy()) == (True, [])


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"dataset": "digits, mnist"}, "data: mnist: not on this machine"),
        ({"wandb": "online"}, "W&B: online (track.wandb); no key"),
        ({"gpu": "gpu: 64"}, "a stage asks for 64.0 GPUs"),
        ({"gpu": "cpu: 100000"}, "a stage asks for 100,000.0 CPUs"),
        ({"gpu": "memory: 900TiB"}, "bytes of memory"),
    ],
)
def test_what_a_sweep_lacks_is_named(tmp_path: Path, given: dict[str, str], missing: str) -> None:
    complete, lines = doctor(tmp_path / "store", needy(**given))
    assert not complete and len(lines) == 1 and missing in lines[0]


def test_data_in_the_named_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSWEEP_DATA", str(tmp_path))
    (tmp_path / "mnist-train.parquet").write_bytes(b"")
    complete, lines = doctor(tmp_path / "store", needy("mnist"))
    assert not complete and "mnist-test.parquet" in lines[0], "one of two is a fault"
    (tmp_path / "mnist-test.parquet").write_bytes(b"")
    assert doctor(tmp_path / "store", needy("mnist")) == (True, [])


def test_where_the_key_comes_from_is_told_and_not_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert key_source() == ""
    login = tmp_path / ".netrc"
    login.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    login.chmod(0o600)
    assert key_source() == str(login)
    assert doctor(tmp_path / "store", needy(wandb="online")) == (True, [])
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert key_source() == "", "of another server"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert key_source() == "WANDB_API_KEY"


def test_the_command_fails_if_something_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    words = ["doctor", str(file), "--storage", str(tmp_path / "store")]
    for dataset, code in (("digits", None), ("mnist", 1)):
        file.write_text(NEEDS % (dataset, "offline", "gpu: 0"))
        assert app(words, standalone_mode=False) == code
    assert "needy: not all that it needs is here" in capsys.readouterr().out


def test_what_a_jobs_server_lacks_is_told_and_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "JOBS_PACKAGES", ("json", "no_such_library"))
    check = checks._jobs_server()
    assert not check.found and not check.needed
    assert check.text.startswith("submit: a jobs server needs no_such_library, not here: pip inst")
    monkeypatch.setattr(checks, "JOBS_PACKAGES", ("json",))
    assert checks._jobs_server().found
