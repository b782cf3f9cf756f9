"""Methods of other packages: what cannot be used is one warning that names the package."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raysweep import methods
from raysweep.errors import PluginWarning, SpecError
from raysweep.methods import registry
from raysweep.sweep import catalog
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.schema import json_schema

ROOT = Path(__file__).parent.parent
GOOD = '''
"""Corner: a white corner."""
from raysweep.attacks import Attack

class Corner(Attack):
    def stamp(self, images_BCHW, *, ids, part, artifact, seed):
        stamped = images_BCHW.clone()
        stamped[:, :, :2, :2] = 1.0
        return stamped
'''
MODEL = """
from raysweep.models import Model
class Net(Model):
    {body}
"""
BUILD = "def build(self, shape): ..."
REQUIRED = """
from raysweep.defenses import Defense
class Asking(Defense):
    share: float
    def needs(self):
        return frozenset({"features"})
    def run(self, inputs, ctx): ...
"""
SWEEP = """
name: plugged
dataset: {digits: {size: 200}}
model: linear
attacks: [%s]
defenses: [none]
"""
PACKAGES = ("third_party", "fourth_party")
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return an installer of a distribution, with a module per method, found as any other is."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(package: str, role: str, files: dict[str, str], point: str = "") -> Path:
        facts = tmp_path / f"{package}-1.5.dist-info"
        facts.mkdir(exist_ok=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        folder = tmp_path / package.replace("-", "_")
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text("")
        with (facts / "entry_points.txt").open("a") as points:
            for name, text in files.items():
                (folder / f"{name}.py").write_text(text)
                points.write(f"[raysweep.{role}]\n{point or name} = {folder.name}.{name}\n")
        return folder

    forget()
    yield installed
    forget()
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


def forget() -> None:
    methods.available.cache_clear()
    methods.load.cache_clear()
    registry._WARNED.clear()


FAULTS = {
    "import": ("attacks", "import no_such_library\n", (
        "cannot be imported: ModuleNotFoundError: No module named 'no_such_library' (",
        "broken.py, line 1, in <module>); install what it needs, or repair or uninstall",
    )),
    "syntax": ("attacks", "x = = 1\n", ("cannot be imported: SyntaxError: ", "broken.py, line 1)")),
    "raises": ("defenses", "raise RuntimeError('no license')\n", (
        "cannot be imported: RuntimeError: no license (",
    )),
    "exits": ("attacks", "raise SystemExit(3)\n", ("cannot be imported: SystemExit: 3 (",)),
    "empty": ("defenses", "x = 1\n", (
        "must define exactly one defense class, found []; derive one class from "
        "raysweep.defenses.Defense",
    )),
    "role": ("defenses", GOOD, ("Corner is no defense; derive one class from",)),
    "layers": ("models", MODEL.format(body=BUILD), ("Net must define HEAD, LAYERS; see",)),
    "head": ("models", MODEL.format(body="LAYERS = ('a',)\n    " + BUILD), ("must define HEAD;",)),
    "build": ("models", MODEL.format(body="LAYERS, HEAD = ('a',), 'a'"), ("must define build;",)),
    "plain": ("models", "from torch import nn\nclass Net(nn.Module): ...\n", (
        "must define exactly one model class, found []; derive one class from "
        "raysweep.models.Model; its Net is a plain torch.nn.Module, which a sweep file names "
        'without an entry point: model: {module: "third_party.broken:Net"}',
    )),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plugin_that_cannot_be_used_is_told_and_stops_nothing_else(
    fault: str, install: Install
) -> None:
    role, text, parts = FAULTS[fault]
    install("third-party", role, {"broken": text})
    install("third-party", "attacks", {"corner": GOOD})
    opening = f"{role[:-1]} 'broken' of package third-party 1.5 (module third_party.broken) "
    with pytest.warns(PluginWarning) as told:
        known = {one: methods.usable(one) for one in methods.ROLES}  # type: ignore[attr-defined]
    assert len(told) == 1 and str(told[0].message).startswith(opening)
    assert told[0].filename == "third-party 1.5"
    for part in parts:
        assert part in str(told[0].message)
    assert "corner" in known["attacks"] and "broken" not in known[role]
    assert any(entry.name == "corner" for entry in catalog.entries("attacks")), "and said once"
    with pytest.raises(SpecError) as refused:
        methods.load(role, "broken")  # type: ignore[arg-type]
    assert str(refused.value) == str(told[0].message)


def test_a_name_that_nothing_brings_tells_where_own_methods_are_looked_for() -> None:
    with pytest.raises(SpecError, match=r"installed package, in the group raysweep\.attacks$"):
        methods.load("attacks", "beside_the_sweep")


def test_a_sweep_that_names_it_gets_its_line_package_cause_and_remedy(
    install: Install, tmp_path: Path
) -> None:
    install("third-party", "attacks", {"broken": "import no_such_library\n", "corner": GOOD})
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP % "corner")
    assert load_sweep(file).attacks[0].name == "corner"
    for named in ("broken", "{broken: {rate: 0.1}}", "{broken: some}"):
        file.write_text(SWEEP % f"corner, {named}")
        with pytest.raises(SpecError) as refused:
            load_sweep(file)
        assert str(refused.value).startswith(f"{file}:5: ")
        for part in ("third-party 1.5", "No module named 'no_such_library'", "uninstall the"):
            assert part in str(refused.value)


def test_the_name_of_raysweeps_own_method_is_its_own(install: Install) -> None:
    install("third-party", "attacks", {"badnets": GOOD, "corner": GOOD})
    with pytest.warns(PluginWarning) as told:
        assert methods.load("attacks", "badnets").__module__ == "raysweep.attacks.badnets"
    assert len(told) == 1
    assert str(told[0].message) == (
        "attack 'badnets' of package third-party 1.5 (module third_party.badnets) has the name of "
        "raysweep's own attack, which is used in its place; rename its module and its entry "
        "point, or uninstall the package"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "corner" in methods.usable("attacks")


def test_two_packages_that_bring_one_name_are_both_named(install: Install) -> None:
    install("third-party", "attacks", {"corner": GOOD})
    install("fourth-party", "attacks", {"corner": GOOD})
    with pytest.raises(SpecError) as refused:
        methods.load("attacks", "corner")
    for part in ("third-party 1.5 (module third_party.corner)", "fourth-party 1.5", "keep one"):
        assert part in str(refused.value)
    with pytest.warns(PluginWarning, match="'corner' is brought by several packages"):
        assert "badnets" in methods.usable("attacks")


def test_an_entry_point_with_another_name_than_its_module_is_refused(install: Install) -> None:
    install("third-party", "attacks", {"corner": GOOD}, point="edge")
    with pytest.raises(SpecError, match=r"attack 'edge' .* must have the name of its module"):
        methods.load("attacks", "edge")


def test_a_defense_with_a_parameter_that_must_be_given_is_listed(install: Install) -> None:
    install("third-party", "defenses", {"asking": REQUIRED})
    (entry,) = (entry for entry in catalog.entries("defenses") if entry.name == "asking")
    assert entry.kind == ""


def test_the_schema_knows_what_works(install: Install) -> None:
    install("third-party", "attacks", {"broken": "import no_such_library\n", "corner": GOOD})
    with pytest.warns(PluginWarning, match="'broken' of package third-party"):
        text = str(json_schema())
    assert "'corner'" in text and "'broken'" not in text


def test_the_command_lists_what_works(install: Install, tmp_path: Path) -> None:
    install("third-party", "attacks", {"broken": "import no_such_library\n", "corner": GOOD})
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "raysweep", "list", "attacks"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths}, check=True,
    )  # fmt: skip
    assert "corner" in done.stdout and "badnets" in done.stdout
    assert done.stderr.count("warning: ") == 1 and "PluginWarning" not in done.stderr
    assert "'broken' of package third-party 1.5" in done.stderr and "Traceback" not in done.stderr
