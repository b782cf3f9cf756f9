"""No secret of the environment is stored or shown, and no name leads out of the storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest

from raysweep import environment
from raysweep.environment import masked
from raysweep.errors import SpecError, StoreError
from raysweep.results import history, records
from raysweep.results.removal import removal
from raysweep.stages.stage import Result
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import load_sweep

HERE = Path(__file__).parent.parent
LEAKY = '''
"""Leaky: it fails, and says all that it knows."""
import os, sys
from raysweep.attacks import Attack

class Leaky(Attack):
    def stamp(self, images_BCHW, *, ids, part, artifact, seed):
        print("printed", dict(os.environ))
        print("printed", dict(os.environ), file=sys.stderr)
        raise RuntimeError(f"no luck with {dict(os.environ)}")
'''
SWEEP = """
name: leaky
dataset: {digits: {size: 200}}
model: linear
recipe: {epochs: 1, batch_size: 100}
attacks: [leaky: {rate: 0.1}, none]
defenses: [none]
seeds: 1
track: {wandb: offline}
"""
# Commands of one process, which ends as the first one does.
COMMANDS = """
import json, sys
from raysweep.cli.app import main
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["raysweep", *words]
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code)
sys.exit(codes[0])
"""
PLANTED = ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN", "MY_PASSWORD")


@pytest.mark.further
def test_a_method_that_tells_its_environment_tells_no_secret(tmp_path: Path) -> None:
    assert leaked_by(tmp_path, ["--inline"]) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_worker_that_tells_its_environment_tells_no_secret(tmp_path: Path) -> None:
    assert leaked_by(tmp_path, []) == []


def leaked_by(tmp_path: Path, place: list[str]) -> list[str]:
    """Launch a method that shouts its environment; return where a secret of it stands, if any."""
    (tmp_path / "leaky_methods").mkdir()
    (tmp_path / "leaky_methods" / "__init__.py").write_text("")
    (tmp_path / "leaky_methods" / "leaky.py").write_text(LEAKY)
    facts = tmp_path / "leaky_methods-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky-methods\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[raysweep.attacks]\nleaky = leaky_methods.leaky\n")
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    secrets = {name: uuid.uuid4().hex + "/+='\"" for name in PLANTED}
    password = uuid.uuid4().hex
    given = {
        **os.environ, **secrets,
        "DATABASE": f"postgresql://me:{password}@127.0.0.1:1/studies",
        "SEEN_BY_ALL": "not-a-secret-at-all",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(HERE)]),
        "RAYSWEEP_STORAGE": str(tmp_path / "store"), "HOME": str(tmp_path / "home"),
        "RAYSWEEP_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    looks = [["logs", "leaky"], ["status", "leaky"]] if place else []  # the same wherever it ran
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps([["launch", "sweep.yaml", *place], *looks])],
        cwd=tmp_path, env=given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert not looks or "leaky: 2 trials; " in done.stdout, "all commands have run"
    lines = (done.stdout + done.stderr).splitlines()
    # What a method prints in the driver is on the terminal: a plan tries each trigger once there.
    printed = [line for line in lines if line.startswith("printed ")]
    assert place or len(printed) == 2, "what a worker prints is not"
    said = "\n".join(line for line in lines if line not in printed)
    kept = b"".join(
        file.read_bytes()
        for folder in ("store", "cache", "wandb")
        for file in (tmp_path / folder).rglob("*")
        if file.is_file()
    )
    assert b"no luck with" in kept and "no luck with" in said, "the error itself is told"
    assert b"MY_PASSWORD" in kept and environment.MASK.encode() in kept
    assert b"not-a-secret-at-all" in kept
    planted = {name: value[:32] for name, value in secrets.items()} | {"DATABASE": password}
    terminal = [f"{name} on the terminal" for name, value in planted.items() if value in said]
    return terminal + [f"{name} in a file" for name, v in planted.items() if v.encode() in kept]


def test_secrets_are_masked_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s3cr\"et'/+\\text\n"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("RAYSWEEP_STUDIES", "postgresql://me:pass%2Fword@host/studies")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/token-of-ray")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "short")
    forms = (secret, repr(secret), json.dumps(secret), quote(secret, safe=""))
    for form in forms:
        assert "cr" not in masked(f"a {form} b"), form
        assert masked(f"a {form} b").startswith("a ")
    assert masked("at postgresql://me:pass%2Fword@host/x") == "at postgresql://me:***@host/x"
    assert masked("/home/me/token-of-ray and short") == "/home/me/token-of-ray and short"
    assert masked("") == ""


def test_a_secret_that_was_cut_is_masked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "0123456789abcdef"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    assert masked("the key is 01234567") == "the key is ***"
    assert masked("9abcdef is its end") == "*** is its end"
    assert masked("the key is 012") == "the key is 012", "three letters may be anything"
    result = Result(key="train-1", status="failed", error=f"E: {secret}", trace=f"{secret}\nend")
    assert (result.error, result.trace) == ("E: ***", "***\nend")


@pytest.mark.parametrize(
    "name", ["..", ".", "../up", "a/b", "/etc", "a\\b", "a\0b", "", "x/../..", "-rf", ".hidden"]
)
def test_a_name_does_not_lead_out_of_the_storage(name: str, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "sweep.json").write_text("{}")
    store = Store(str(tmp_path / "store"))
    store.write("sweeps/other/sweep.json", b"{}")
    for look in (
        lambda: records.load(name, str(tmp_path / "store")),
        lambda: history.folder_of(store, name),
        lambda: removal(store, name),
    ):
        with pytest.raises((StoreError, SpecError)):
            look()
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.replace("leaky: {rate: 0.1}", "none") + f"\nname: {json.dumps(name)}\n")
    file.write_text(file.read_text().replace("name: leaky\n", ""))
    with pytest.raises(SpecError, match="name"):
        load_sweep(file)
    for path in (f"sweeps/{name}/x", SweepFolder(store, f"a/../{name}").path("x")):
        if name not in ("-rf", ".hidden", "a/b"):
            with pytest.raises(StoreError, match="below its root"):
                store.write(path, b"")
    assert (tmp_path / "up" / "sweep.json").read_text() == "{}"
