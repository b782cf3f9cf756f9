"""The contract of datasets: what every dataset keeps to, on small files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import ValidationError

from raysweep import methods
from raysweep.datasets import Dataset
from raysweep.errors import PlanError, StageError

Kind = type[Dataset]
Make = Callable[..., Dataset]


def identity(dataset: Dataset) -> str:
    """Return the digest of a dataset's files and labels."""
    return dataset.source_digest(dataset.read_labels())


class DatasetContract:
    """The tests that a dataset inherits: `class TestMine(DatasetContract): method = MyDataset`.

    A dataset of files overrides `files` too. Its entry point must be installed: stages restore a
    dataset by its name.

    Attributes:
        method: the dataset's class.
    """

    method: ClassVar[Kind]

    def files(self, folder: Path) -> dict[str, Any]:
        """Write small files into a folder; return the parameters that lead to them.

        At least 10 training and 20 test images, of at least 2 classes.
        """
        del folder
        return {}

    @pytest.fixture
    def make(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
        """A maker of the dataset on its small files, with further parameters."""
        monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
        parameters = {**self.method.TOY, **self.files(tmp_path)}
        return lambda **given: self.method.model_validate({**parameters, **given})

    def test_labels_agree_with_decoded_images(self, make: Make) -> None:
        """Labels that are read without decoding are those of the images, from 0."""
        dataset = make()
        labels = dataset.read_labels()
        train, test = dataset.decode()
        for part, expected in ((train, labels.train), (test, labels.test)):
            assert (part.labels == expected).all() and part.labels.dtype == np.int64
            vectors = dataset.DOMAIN == "features"
            assert part.images.dtype.is_floating_point is vectors and part.images.ndim == 4
            assert len(part.images) == len(expected)
            assert part.images.shape[2:] == (1, 1) if vectors else part.images.shape[1] in (1, 3)
        assert max(labels.train.max(), labels.test.max()) < len(labels.classes)
        assert all(file.is_file() for file in dataset.files())

    def test_the_cut_is_disjoint_stable_and_sized(self, make: Make) -> None:
        """Training, clean and evaluation sets never share an image, and have the sizes asked."""
        dataset = make()
        labels = dataset.read_labels()
        train, clean, test = dataset.kept(labels)
        total = len(labels.test)
        assert len(train) == len(labels.train) and len(clean) == min(2000, total // 5)
        assert not set(clean) & set(test) and len(clean) + len(test) == total
        for a, b in zip(dataset.kept(labels), (train, clean, test), strict=True):
            assert (a == b).all()
        train, clean, test = make(size=10, test_size=12, clean_size=4).kept(labels)
        assert (len(train), len(clean), len(test)) == (10, 4, 8)
        with pytest.raises(PlanError, match="size must be at most"):
            make(size=10**6).kept(labels)

    def test_is_a_frozen_value(self, make: Make) -> None:
        """The dataset is restored from its identity, and unknown parameters are refused."""
        dataset = make()
        assert methods.restore("datasets", dataset.identity()) == dataset
        with pytest.raises(ValidationError):
            make(no_such_field=1)

    def test_identity_is_stable_and_checked_where_the_stage_runs(self, make: Make) -> None:
        """The same files have the same digest; other files are refused."""
        dataset = make()
        assert identity(dataset) == identity(make())
        labels = dataset.read_labels()
        dataset.check_source(labels, identity(dataset))
        with pytest.raises(StageError, match="differ from those that were planned"):
            dataset.check_source(labels, "0" * 32)

    def test_label_noise_replaces_an_exact_share_of_training_labels(self, make: Make) -> None:
        """`label_noise` gives exactly so many training labels another class."""
        clean, noisy = make(), make(label_noise=0.3)
        labels = clean.read_labels()
        rows = noisy.kept(labels)[0]
        given = noisy.training_labels(labels, rows)
        assert (given != labels.train[rows]).sum() == int(0.3 * len(rows))
        assert (given == noisy.training_labels(labels, rows)).all()
        assert given.min() >= 0 and given.max() < len(labels.classes)
        other = make(label_noise=0.3, subset_seed=1)
        assert (other.training_labels(labels, rows) != given).any()
        assert (clean.training_labels(labels, rows) == labels.train[rows]).all()
