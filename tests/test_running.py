"""The commands that run a sweep file, as a user types them: plan, launch, tune, init."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raysweep import __version__
from raysweep.attacks.badnets import BadNets
from raysweep.cli import options, running
from raysweep.cli.app import app, main
from raysweep.cli.init import TEXT
from raysweep.methods.recipe import Recipe
from raysweep.plan.planner import Planner
from raysweep.results.description import described
from raysweep.run.run import Run
from raysweep.store import Store, sweepfolder
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.resources import Resources
from raysweep.sweep.spec import Sweep, Track
from raysweep.sweep.tuning import Tune

SMALL = (
    "--set", "dataset.digits={size: 200, test_size: 100}", "--set", "recipe.epochs=1",
    "--set", "model=linear", "--set", "attacks=[badnets]", "--set", "defenses=[none]",
)  # fmt: skip
ROOT = Path(__file__).parent.parent
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def raysweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command line in this process and in an empty folder: exit status, output, errors."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("RAYSWEEP_STORAGE", raising=False)
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))

    def run(*words: str, given: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raysweep", *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def commands(text: str) -> list[list[str]]:
    """Return the commands that a hint shows, as a shell would read them."""
    parts = re.findall(r"raysweep (?:launch|plan|status|report|tune) [^·\n,;]*", text)
    return [shlex.split(part) for part in parts]


# Help


def test_help_version_and_completion(raysweep: Command) -> None:
    assert raysweep("--version") == (0, f"raysweep {__version__}\n", "")
    for words in ([], ["plan"], ["launch"], ["tune"], ["init"], ["status"]):
        short, long = raysweep(*words, "-h"), raysweep(*words, "--help")
        assert short == long and short[0] == 0 and "Usage" in short[1]
    assert "--show-completion" in raysweep("--help")[1]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("raysweep status ", {"other", "small"}),
        ("raysweep status sm", {"small"}),
        ("raysweep status --storage nowhere ", set()),
        ("raysweep launch x.yaml --force tra", {"train"}),
        ("raysweep plan x.yaml --force bad", {"badnets", "badnets_clean_label"}),
        ("raysweep laun", {"launch"}),
    ],
)
def test_a_shell_completes_names(typed: str, expected: set[str], tmp_path: Path) -> None:
    for name in ("small", "other"):
        (tmp_path / "raysweep-store" / "sweeps" / name).mkdir(parents=True)
    code = "import sys; sys.argv = ['raysweep']; from raysweep.cli import main; main()"
    code = (
        f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "_RAYSWEEP_COMPLETE": "complete_bash",
             "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "RAYSWEEP_STORAGE": ""},
    )  # fmt: skip
    assert set(done.stdout.split()) == expected, done.stdout
    assert "typer" in done.stderr and not {"torch", "ray"} & set(done.stderr.split())


def test_completions_know_what_there_is(tmp_path: Path) -> None:
    assert options.DEFAULT_STORAGE == sweepfolder.DEFAULT_STORAGE
    (tmp_path / "s.yaml").write_text(TEXT)
    Planner(load_sweep(tmp_path / "s.yaml"))  # imports all stage kinds
    stages = ROOT / "raysweep" / "stages"
    assert all((stages / f"{kind}.py").exists() for kind in options.KINDS)
    written = [
        f.stem for f in stages.glob("*.py") if re.search(r"^    KIND, ", f.read_text(), re.M)
    ]
    assert sorted(written) == sorted(options.KINDS)


# init


@pytest.mark.further
def test_init_writes_a_file_that_plans_and_runs(raysweep: Command) -> None:
    status, out, _ = raysweep("init")
    assert status == 0 and Path("sweep.yaml").exists()
    assert [line[:2] for line in commands(out)] == [["raysweep", "plan"], ["raysweep", "launch"]]
    assert raysweep(*commands(out)[0][1:])[0] == 0
    status, out, err = raysweep("launch", "sweep.yaml", "--inline", *SMALL)
    assert status == 0, err
    assert "badnets @ 5 %" in out
    status, out, err = raysweep(
        "tune", "sweep.yaml", "--inline", *SMALL, "--set", "attacks=[badnets, blend]", "--set",
        "defenses=[spectral_signatures]", "--set", "tune.trials=2", "--write", "tuned.yaml",
    )  # fmt: skip
    assert status == 0, err
    assert commands(out)[-1] == ["raysweep", "launch", "tuned.yaml"]
    assert raysweep("plan", "tuned.yaml")[0] == 0
    assert raysweep("init")[0] == 2 and "is there already" in raysweep("init")[2]
    assert raysweep("init", "no/where.yaml")[0] == 2
    status, out, _ = raysweep("init", "an other.yaml")
    assert commands(out)[0] == ["raysweep", "plan", "an other.yaml"]
    assert "raysweep launch 'an other.yaml'" in Path("an other.yaml").read_text()


def test_init_explains_every_option(tmp_path: Path) -> None:
    lines = TEXT.splitlines()
    kinds = (Sweep, Recipe, Resources, Track, Tune)
    for field in [f for kind in kinds for f in kind.model_fields if f != "race"]:  # in `seeds`
        single = field.removesuffix("s")
        at = [n for n, line in enumerate(lines) if re.match(rf" *({field}|{single}):", line)]
        assert any("#" in lines[n] or lines[n - 1].startswith("#") for n in at), field
    (tmp_path / "s.yaml").write_text(TEXT)
    sweep = load_sweep(tmp_path / "s.yaml")
    assert sweep.tune == Tune() and sweep.resources == Resources()
    assert sweep.recipes == (Recipe(batch_size=64),), "else the defaults"


# plan and status


def test_plan_and_status_write_nothing(raysweep: Command, tmp_path: Path) -> None:
    raysweep("init")
    before = files(tmp_path / "here")
    for words in (["plan", "sweep.yaml"], ["plan", "sweep.yaml", "--storage", "new/store"],
                  ["launch", "sweep.yaml", "--dry-run"], ["status", "first"]):  # fmt: skip
        raysweep(*words)
        assert files(tmp_path / "here") == before, words
    assert raysweep("launch", "sweep.yaml", "--inline", *SMALL)[0] == 0
    before = files(tmp_path / "here")
    for words in (["plan", "sweep.yaml", *SMALL], ["plan", "sweep.yaml", "--force", "train"],
                  ["status", "first"]):  # fmt: skip
        assert raysweep(*words)[0] == 0
        assert files(tmp_path / "here") == before, words


def test_a_plan_for_scripts(raysweep: Command) -> None:
    raysweep("init")
    status, out, err = raysweep("plan", "sweep.yaml", *SMALL, "--json", "--set", "name=scripted")
    plan = json.loads(out)
    assert status == 0 and not err
    assert (plan["name"], plan["trials"]) == ("scripted", 1)
    assert plan["storage"] == str(Path("raysweep-store").resolve())
    kinds = {kind["kind"]: kind for kind in plan["kinds"]}
    assert kinds["train"]["run"] == 1 and kinds["train"]["nearest"] is None
    assert plan["seconds"] == pytest.approx(sum(kind["seconds"] for kind in plan["kinds"]))


def test_a_plan_says_why_and_what_is_forced(raysweep: Command) -> None:
    raysweep("init")
    raysweep("launch", "sweep.yaml", "--inline", *SMALL)
    out = raysweep("plan", "sweep.yaml", *SMALL, "--set", "recipe.epochs=2")[1]
    assert "1 not stored; nearest stored: recipe.epochs 1 → 2" in out
    out = raysweep("plan", "sweep.yaml", *SMALL, "--force", "train")[1]
    assert "1 forced" in out and "1 again if an input changes" in out
    dry = raysweep("launch", "sweep.yaml", *SMALL, "--force", "train", "--dry-run")[1]
    assert dry == out
    status, _, err = raysweep("launch", "sweep.yaml", "--inline", *SMALL, "--force", "trian")
    assert status == 2 and "did you mean 'train'?" in err


# launch and tune


def test_a_launch_records_what_ran_and_its_hints_can_be_pasted(raysweep: Command) -> None:
    raysweep("init")
    words = ["--inline", *SMALL, "--storage", "a store", "--set", "name=hinted"]
    status, out, _ = raysweep("launch", "sweep.yaml", *words)
    assert status == 0
    hints = commands(out)
    assert [line[1] for line in hints] == ["status", "report"]
    for line in hints:
        assert line[-2:] == ["--storage", "a store"] and raysweep(*line[1:])[0] == 0, line
    about = described(Store("a store"), "hinted")
    assert about.text is not None and about.text.startswith("# sweep.yaml, with --set ")
    Path("again.yaml").write_text(about.text)
    again = raysweep("launch", "again.yaml", "--inline", "--storage", "a store")[1]
    assert "0 stages ran" in again
    assert raysweep("launch", "sweep.yaml", "--inline", *SMALL, "--force", "train")[0] == 0
    plain = raysweep("launch", "sweep.yaml", "--inline", *SMALL)[1]
    assert "--storage" not in plain, "none was given"


def test_an_interrupted_run_says_how_to_go_on(
    raysweep: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    raysweep("init", "my sweep.yaml")
    watch = Run.finished

    def stopping(self: Run, results: object) -> None:
        watch(self, results)  # type: ignore[arg-type]
        self.schedule.stopping = True

    monkeypatch.setattr(Run, "finished", stopping)
    words = ["launch", "my sweep.yaml", *SMALL, "--force", "train", "--inline", "--storage", "st"]
    status, out, _ = raysweep(*words)
    assert status == 130
    text = out.partition("go on with: ")[2].strip()
    assert shlex.split(text) == ["raysweep", *words]
    piped = [word if word != "my sweep.yaml" else "-" for word in words]
    _, out, _ = raysweep(*piped, given=TEXT)
    line, _, rest = out.partition("go on with: ")[2].strip().rpartition(", ")
    assert (
        shlex.split(line) == ["raysweep", *piped] and rest == "and the same text on standard input"
    )
    tune = ["tune", "my sweep.yaml", *SMALL, "--set", "defenses=[spectral_signatures]", "--inline",
            "--set", "attacks=[badnets, blend]",
            "--storage", "st", "--max-concurrent", "1"]  # fmt: skip
    monkeypatch.setattr(Run, "finished", stopping)
    status, out, _ = raysweep(*tune)
    text = out.partition("go on with: ")[2].strip()
    assert status == 130 and sorted(shlex.split(text)) == sorted(["raysweep", *tune])


def test_a_failure_names_the_storage(raysweep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: BadNets, images_BCHW: object, **more: object) -> None:
        raise RuntimeError("half written")  # no ValueError, by which a plan would refuse it

    monkeypatch.setattr(BadNets, "stamp", broken)
    raysweep("init")
    status, out, _ = raysweep("launch", "sweep.yaml", "--inline", *SMALL, "--storage", "st")
    assert status == 1 and "see: raysweep status first --storage st\n" in out


def test_a_hint_shows_no_password_of_a_database() -> None:
    shown = running._studies("postgresql://me:secret@host/db")
    assert shown == ["--studies", "URL"]
    assert running._studies("sqlite:///a.db") == ["--studies", "sqlite:///a.db"]


def test_standard_input_is_planned_and_launched(raysweep: Command) -> None:
    status, out, _ = raysweep("plan", "-", *SMALL, given=TEXT)
    assert status == 0 and out.startswith("first: 1 trials")
    assert raysweep("launch", "-", "--inline", *SMALL, given=TEXT)[0] == 0
    text = described(Store("raysweep-store"), "first").text
    assert text is not None and text.startswith("# standard input, with --set ")
    status, _, err = raysweep("tune", "-", given="name: 3")
    assert status == 2 and err.startswith("error: standard input:1: ")


def test_every_command_is_registered_once() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert len(names) == len(set(names)) and {"plan", "launch", "tune", "init"} <= set(names)
