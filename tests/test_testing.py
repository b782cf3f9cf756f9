"""The contracts that are shipped: another package inherits them, and they see what breaks them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep.attacks.badnets import BadNets
from raysweep.testing import DeviceContract
from tests.test_contributing import blocks

ROOT = Path(__file__).parent.parent
DATASET = '''
"""Dots: two classes of noise."""
import numpy as np
import torch
from pathlib import Path
from raysweep.datasets import Dataset, ImageSet, Labels
from raysweep.paths import DataPath

class Dots(Dataset):
    path: DataPath

    def files(self):
        return [Path(self.path)]

    def read_labels(self):
        labels = np.load(self.path)
        return Labels(train=labels[:30], test=labels[30:], classes=("a", "b"))

    def decode(self):
        def made(labels):
            values = torch.from_numpy(labels)[:, None, None, None] * 100 + 50
            return ImageSet(images=values.expand(-1, 1, 8, 8).to(torch.uint8), labels=labels)
        labels = self.read_labels()
        return made(labels.train), made(labels.test)
'''
MODEL = '''
"""Flat: one dense layer."""
from raysweep.models import Model, normalized

class Flat(Model):
    LAYERS, HEAD = ("net.1",), "net.1"

    def build(self, shape):
        from torch import nn
        size = shape.channels * shape.height * shape.width
        return normalized(shape, nn.Sequential(nn.Flatten(), nn.Linear(size, shape.num_classes)))
'''
TESTS = """
import numpy as np
import raysweep.testing
from extra.bright_row import BrightRow
from extra.dots import Dots
from extra.feature_norm import FeatureNorm
from extra.flat import Flat

class TestBrightRow(raysweep.testing.AttackContract):
    method = BrightRow

class TestBrightRowOnAGPU(raysweep.testing.DeviceContract):
    method = BrightRow

class TestFeatureNorm(raysweep.testing.DefenseContract):
    method = FeatureNorm

class TestFlat(raysweep.testing.ModelContract):
    method = Flat

class TestDots(raysweep.testing.DatasetContract):
    method = Dots

    def files(self, folder):
        np.save(folder / "labels.npy", np.arange(50) % 2)
        return {"path": str(folder / "labels.npy")}
"""
# method → its text, what is broken in it, and the test that sees it.
BROKEN = {
    "bright_row": ("stamped = images_BCHW.clone()", "stamped = images_BCHW",
                   "BrightRow::test_stamping_is_pure_bounded_and_blind_to_batches"),
    "feature_norm": ("return Findings(train_scores=scores)",
                     "return Findings(train_scores=-scores)",
                     "FeatureNorm::test_scores_beat_chance"),
    "flat": ('("net.1",), "net.1"', '("net.1",), "net.0"',
             "Flat::test_builds_for_any_images_and_names_its_layers"),
    "dots": ("labels=labels)", "labels=1 - labels)",
             "Dots::test_labels_agree_with_decoded_images"),
}  # fmt: skip


def installed(folder: Path) -> None:
    """Install methods as another package does, whole and broken, with a test class for each."""
    texts = {name: (role, code) for (role, name), code in blocks().items()}
    texts |= {"dots": ("datasets", DATASET), "flat": ("models", MODEL)}
    for name, (old, new, _) in BROKEN.items():
        role, text = texts[name]
        assert text.count(old) == 1
        texts[f"broken_{name}"] = (role, text.replace(old, new))
    (folder / "extra").mkdir()
    (folder / "extra" / "__init__.py").write_text("")
    facts = folder / "extra-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    points = ""
    for name, (role, text) in texts.items():
        (folder / "extra" / f"{name}.py").write_text(text)
        points += f"[raysweep.{role}]\n{name} = extra.{name}\n"
    (facts / "entry_points.txt").write_text(points)
    (folder / "test_extra.py").write_text(TESTS)
    broken = TESTS.replace("from extra.", "from extra.broken_")
    (folder / "test_broken.py").write_text(broken.replace("class Test", "class TestBroken"))


@pytest.mark.further
def test_a_package_inherits_the_contracts_and_they_see_what_is_broken(tmp_path: Path) -> None:
    installed(tmp_path)
    seen = [f"test_broken.py::TestBroken{test}" for _, _, test in BROKEN.values()]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "test_extra.py",
         *seen],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 40, done.stdout + done.stderr
    failed = re.findall(r"^FAILED ([\w.:]+)", done.stdout, re.MULTILINE)
    assert set(failed) == set(seen), done.stdout
    assert "assert False" in done.stdout, "asserts of the contracts are rewritten: they show values"


def test_a_method_that_forgets_the_device_is_seen() -> None:
    class Forgetful(BadNets):
        def stamp(self, images_BCHW: torch.Tensor, **given: Any) -> torch.Tensor:
            return super().stamp(images_BCHW + torch.zeros(images_BCHW.shape), **given)

    contract = DeviceContract()
    contract.test_equals_itself_on_the_cpu(BadNets)
    with pytest.raises(RuntimeError, match="operands on cuda:0 and on the CPU"):
        contract.test_equals_itself_on_the_cpu(Forgetful)


def test_without_pytest_the_extra_is_named() -> None:
    code = "import sys; sys.modules['pytest'] = None; import raysweep.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and 'pip install "raysweep[testing]"' in done.stderr
