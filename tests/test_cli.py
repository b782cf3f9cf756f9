"""The command line as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.table import Table

from raysweep.cli.app import main
from raysweep.cli.options import open_console

ROOT = Path(__file__).parent.parent
SWEEP = """
name: cli
dataset: {digits: {size: 300}}
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 1}
attacks: [{badnets: {rate: 0.05}}]
defenses: [none, spectral_signatures]
track: {wandb: disabled}
"""


def raysweep(*words: str, store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raysweep", *words], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "RAYSWEEP_STORAGE": str(store)}, timeout=200,
    )  # fmt: skip


@dataclass(frozen=True)
class Here:
    """The command line in this process, for what needs no start of its own."""

    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    store: Path

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        self.patch.chdir(ROOT)
        self.patch.setenv("RAYSWEEP_STORAGE", str(self.store))
        self.patch.setattr(sys, "argv", ["raysweep", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self.capsys.readouterr()
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), said.out, said.err)


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    return Here(monkeypatch, capsys, tmp_path / "store")


@pytest.mark.slow
def test_plan_launch_status_report(tmp_path: Path, here: Here) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(SWEEP)
    planned = raysweep("plan", str(file), store=here.store)
    assert planned.returncode == 0 and "cli: 2 trials" in planned.stdout
    assert "below the decisions of 1 trials: 0 to 3 further stages" in planned.stdout
    assert "none like them was timed yet" in planned.stdout
    dry = here("launch", str(file), "--dry-run")
    assert dry.stdout == planned.stdout
    done = here("launch", str(file), "--inline")
    assert done.returncode == 0, done.stderr
    assert "badnets @ 5 %" in done.stdout and "spectral_signatures" in done.stdout
    assert "report: " in done.stdout and "next: " in done.stdout
    again = here("plan", str(file))
    assert "estimate: 0 s on one slot" in again.stdout
    status = here("status", "cli")
    assert "0 failed" in status.stdout and "; ended" in status.stdout
    shown = here("report", "cli", "--output", str(tmp_path / "r.html"))
    assert shown.returncode == 0 and (tmp_path / "r.html").stat().st_size > 1 << 19
    for form in ("backdoorbench", "backdoor-toolbox"):
        words = ("export", str(file), "--to", str(tmp_path / form), "--format", form)
        written = here(*words)
        assert written.returncode == 0 and Path(written.stdout.strip()).is_dir()
    assert "is not overwritten" in here(*words).stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["status", "nothing"], 1, "no sweep 'nothing'"),
        (["report", "nothing"], 1, "no sweep 'nothing'"),
        (["list", "attack"], 2, "role must be one of attacks, defenses"),
        (["launch", "x.yaml", "--inline", "--address", "auto"], 2, "give one"),
        (["launch", "x.yaml"], 2, "x.yaml: cannot be read"),
        (["launch", "a\x1b[2J.yaml"], 2, r"a\x1b[2J.yaml: cannot be read"),
        (["launch", "sweeps/quickstart.yaml", "--storage", "/proc/nowhere"], 1, "/proc/nowhere"),
    ],
)
def test_errors_are_one_message(words: list[str], code: int, message: str, here: Here) -> None:
    done = here(*words)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_brackets_are_text_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="cifar10 [parquet of jpeg]")
    table.add_column("[Errno 28]")
    table.add_row("a\x1b[31mcell")
    open_console().print(table)
    open_console().print("a\rline\x1b[2J")
    shown = capsys.readouterr().out
    assert "[parquet of jpeg]" in shown and "[Errno 28]" in shown
    assert r"a\x1b[31mcell" in shown and r"a\rline\x1b[2J" in shown and "\x1b" not in shown


def test_lists_and_schema(here: Here) -> None:
    listed = here("list")
    for name in ("badnets", "spectral_signatures", "digits", "resnet18"):
        assert name in listed.stdout
    assert here("schema").stdout.startswith("{")
    told = here("doctor").stdout
    assert "is writable" in told
    assert "GPUs, one kernel tried on each: " in told
    if not torch.cuda.is_available():
        assert f"no GPU (torch {torch.__version__}" in told, "which build, and what the driver says"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, raysweep.cli; print(sorted({'torch', 'ray', 'pandas', 'pydantic', 'numpy'} & set(sys.modules)))"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
