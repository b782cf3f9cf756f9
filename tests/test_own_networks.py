"""Plain `torch.nn.Module`s that a sweep file names: planned, keyed by their source, run."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import raysweep
from raysweep import methods, training
from raysweep.datasets import Shape
from raysweep.datasets.digits import Digits
from raysweep.errors import FilesError, PlanError, SpecError, StageError
from raysweep.methods import Context
from raysweep.models import module
from raysweep.models.module import Module
from raysweep.plan.costs import operations
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.schema import json_schema
from raysweep.sweep.spec import foreign_modules, restored, to_plain, to_yaml

NUMBERS = itertools.count()
PARTS = """
from torch import nn

def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
"""
NET = """
from torch import nn
from {parts} import block

class Net(nn.Module):
    def __init__(self, num_classes, in_channels=3, width=8, depth=1):
        super().__init__()
        assert depth < 9, "too deep"
        self.one = block(in_channels, width)
        self.two = block(width, 2 * width)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.two(self.one(x))))

class Soft(Net):
    def forward(self, x):
        return super().forward(x).log_softmax(1)

class Twice(Net):
    def __init__(self, num_classes, in_channels=3):
        super().__init__(num_classes, in_channels)
        self.aux = nn.Linear(4, num_classes)

class Headless(nn.Conv2d):
    def __init__(self, num_classes):
        super().__init__(3, num_classes, 3)

class Color(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)

class Own(nn.Module):  # takes images of one size alone
    def __init__(self, num_classes, shape):
        super().__init__()
        self.flat = nn.Flatten()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.fc(self.flat(x))

class Listed(nn.Module):
    def __init__(self, num_classes, in_channels=3):
        super().__init__()
        self.blocks = nn.ModuleList([block(in_channels, 4), block(4, 4)])
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.last(x)

def made(num_classes):
    return "no network"

constant = 3
"""
GREY = Shape(channels=1, height=8, width=8, num_classes=10, mean=(0.3,), std=(0.3,))
Write = Callable[[], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a writer of a module with networks, and of one beside it that it imports."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def written() -> str:
        name = f"nets{next(NUMBERS)}"
        (tmp_path / f"parts_of_{name}.py").write_text(PARTS)
        (tmp_path / f"{name}.py").write_text(NET.format(parts=f"parts_of_{name}"))
        return name

    yield written
    for name in [name for name in sys.modules if re.fullmatch(r"(parts_of_)?nets\d+", name)]:
        del sys.modules[name]


def test_a_sweep_runs_with_defenses_that_read_features_and_layers(
    write: Write, tmp_path: Path
) -> None:
    nets = write()
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"name: own\ndataset: {{digits: {{size: 300}}}}\n"
        f'model: {{module: "{nets}:Net", head: fc, width: 4}}\n'
        "attacks: [{badnets: {rate: 0.1}}]\nrecipe: {epochs: 1, precision: float32}\n"
        "defenses: [none, activation_clustering, {fine_pruning: {epochs: 1}}]\n"
        "track: {wandb: disabled}\n"
    )
    storage = str(tmp_path / "store")
    done = raysweep.launch(file, storage, inline=True)
    assert done.rows["status"].tolist() == ["ok"] * 3, done.rows["error"].tolist()
    assert done.rows["model"].unique().tolist() == [f"{nets}:Net(head=fc, width=4)"]
    assert done.rows["model.width"].tolist() == [4] * 3
    again = raysweep.launch(load_sweep(file), storage, inline=True)
    assert (again.ran, again.cached) == (0, done.ran)
    assert len(raysweep.load("own", storage)) == 3
    assert foreign_modules(load_sweep(file)) == {nets, f"parts_of_{nets}"}


def test_what_is_not_given_is_told_from_the_network(write: Write) -> None:
    nets = write()
    net = Module(module=f"{nets}:Net")
    assert (net.HEAD, net.LAYERS) == ("net.fc", ("net.one", "net.two", "net.fc"))
    listed = Module(module=f"{nets}:Listed")
    assert listed.HEAD == "net.last.2"
    assert listed.LAYERS == ("net.blocks.0", "net.blocks.1", "net.last.2")
    some = Module(module=f"{nets}:Net", layers=("two",))
    assert some.LAYERS == ("net.two", "net.fc")
    for model in (net, listed, some):
        training.build(model, GREY, Context(seed=0))
        again = methods.restore("models", json.loads(json.dumps(model.identity())))
        assert again == model and again.label == model.label and hash(again) == hash(model)


def test_what_is_wrong_names_the_value_and_the_remedy(write: Write, tmp_path: Path) -> None:
    nets = write()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"module": "nets.Net"}, r"must be an import path and a name, such as my_package\.nets:"),
        ({"module": "no_such:Net"}, "no module 'no_such' can be imported here; install"),
        ({"module": f"{nets}:Nett"}, rf"module '{nets}' has no 'Nett'; did you mean 'Net'\?"),
        ({"module": f"{nets}:constant"}, "must be a class or a function, got int"),
        ({"module": f"{nets}:made"}, r"must make a torch\.nn\.Module, got str"),
        ({"module": f"{nets}:block"}, r"must take num_classes, its signature is \(inputs, outp"),
        ({"module": f"{nets}:Net", "head": "fcc"}, r"got 'fcc'; its nn\.Linear .* are: fc \(97\)"),
        ({"module": f"{nets}:Net", "head": "one"}, r"head must name the nn\.Linear .* got 'one'"),
        ({"module": f"{nets}:Twice"}, r"2 nn\.Linear have num_classes .*: fc \(97\), aux \(97\)"),
        ({"module": f"{nets}:Headless"}, "0 nn.Linear have num_classes outputs .* are: none"),
        ({"module": f"{nets}:Net", "layers": ("three",)}, "layers must name submodules, got 'thr"),
        ({"module": f"{nets}:Net", "layers": ("one", "one")}, "must name each submodule once"),
        ({"module": f"{nets}:Net", "hight": 3}, r"cannot be called: got .*'hight'; its"),
        ({"module": f"{nets}:Net", "num_classes": 3}, "num_classes is taken from the dataset"),
        ({"module": f"{nets}:Net", "label": 3}, "label is a word of raysweep's own"),
        ({"module": f"{nets}:Net", "depth": 9},
         rf"raised an error as it was called with num_classes=97, in_channels=3, depth=9: "
         rf"AssertionError: too deep \(.*{nets}\.py, line 8, in __init__\); change"),
    ]  # fmt: skip
    for given, said in cases:
        with pytest.raises(ValidationError, match=said):
            Module.model_validate(given)
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"name: own\ndataset: digits\nattacks: [none]\ndefenses: [none]\n"
        f"model:\n  module: {nets}:Net\n  depth: 9\n"
    )
    with pytest.raises(SpecError, match=r"sweep\.yaml:5: model: .*too deep \(.*, line 8"):
        load_sweep(file)


def test_data_and_head_are_tried_before_a_training(write: Write) -> None:
    nets = write()
    cases = [
        ({"module": f"{nets}:Color"},
         r"cannot take images of 1 channels, 8 x 8 pixels: RuntimeError: .*"
         r"to have 3 channels.*, in forward\); let its signature take in_channels"),
        ({"module": f"{nets}:Soft"}, r"head 'fc' must give the logits .* without softmax"),
        ({"module": f"{nets}:Listed", "layers": ("blocks",)}, "layer 'blocks' gives no tensor"),
    ]  # fmt: skip
    for given, said in cases:
        with pytest.raises(StageError, match=said):
            training.build(Module.model_validate(given), GREY, Context(seed=0))


def test_work_is_estimated_for_any_network(write: Write) -> None:
    nets = write()
    net, own = Module(module=f"{nets}:Net"), Module(module=f"{nets}:Own")
    assert operations(net, Digits(), 10) > 5e5
    assert operations(own, Digits(), 10) == 2 * (64 * 10 + 10) * 3, "two for each weight"
    training.build(own, GREY, Context(seed=0))


def test_a_changed_network_is_another_model(write: Write, tmp_path: Path) -> None:
    nets = write()
    model = Module(module=f"{nets}:Net")
    planned = model.identity()
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    assert model.identity() == planned
    for file in (tmp_path / f"parts_of_{nets}.py", tmp_path / f"{nets}.py"):
        file.write_text(file.read_text() + "\n# changed\n")
        with pytest.raises(
            PlanError, match=rf"{nets}\.py.* changed after this process imported it"
        ):
            model.identity()
        with pytest.raises((FilesError, ValidationError), match="changed after this process"):
            methods.restore("models", planned)
        module._DIGESTS.clear()  # as in a process that begins
        assert model.identity()["content_digest"] != planned["content_digest"]
        with pytest.raises(
            FilesError, match=rf"{nets}\.py differs from what was planned; give all"
        ):
            methods.restore("models", planned)
        planned = model.identity()
    assert methods.restore("models", planned) == model


def test_a_network_that_was_imported_before_its_file_changed_is_refused(
    write: Write, tmp_path: Path
) -> None:
    nets, same = write(), write()
    for name in (nets, same):
        importlib.import_module(name)  # as a notebook does
    file = tmp_path / f"parts_of_{nets}.py"
    file.write_text(PARTS.replace("ReLU", "Tanh"))
    with pytest.raises(ValidationError, match=rf"{nets}\.py.* changed after this process imported"):
        Module(module=f"{nets}:Net")
    assert Module(module=f"{same}:Net").content_digest()


@pytest.mark.further
@pytest.mark.parametrize(
    "text",
    ["model: {{module: {0}:Net, width: [4, 8]}}",
     "models: [{{module: {{module: {0}:Net, width: [4, 8]}}}}]",
     "models:\n  - module: {0}:Net\n    width: 4\n  - module: {0}:Net\n    width: 8"],
)  # fmt: skip
def test_spellings(text: str, write: Write, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    nets = write()
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"name: own\ndataset: digits\nattacks: [none]\ndefenses: [none]\n{text.format(nets)}\n"
    )
    sweep = load_sweep(file)
    assert sweep.models == tuple(Module(module=f"{nets}:Net", width=width) for width in (4, 8))
    jsonschema.validate(yaml.safe_load(file.read_text()), json_schema())
    assert restored(json.loads(json.dumps(to_plain(sweep)))) == sweep
    file.write_text(to_yaml(sweep))
    assert load_sweep(file) == sweep
