"""GTSRB: photographs of German traffic signs in 43 classes, here at 32 x 32 pixels.

J. Stallkamp, M. Schlipsing, J. Salmen, C. Igel: The German Traffic Sign Recognition Benchmark: A
multi-class classification competition, IJCNN 2011.

Where we differ: with a folder named by RAYSWEEP_DATA that holds gtsrb-train.parquet and
gtsrb-test.parquet these are used (the published full set has 39,209 training images), else
torchvision's download (26,640), resized bilinearly. They are two data sets: identity is the digest
of the source files. Training images are sorted by class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from raysweep.datasets import ImageSet, Labels
from raysweep.datasets._decode import decoded
from raysweep.datasets._published import Published


class GTSRB(Published):
    """Training and test images, (N, 3, 32, 32)."""

    TORCHVISION: ClassVar[str] = "GTSRB"
    SPLITS: ClassVar[tuple[Mapping[str, Any], ...]] = ({"split": "train"}, {"split": "test"})

    def _samples(self) -> list[list[tuple[str, int]]]:
        return [list(part._samples) for part in self.sets()]

    def downloaded_labels(self) -> Labels:
        """Return the numbers of the signs."""
        train, test = (np.array([label for _, label in part]) for part in self._samples())
        return Labels(train=train, test=test, classes=tuple(f"{c:02d}" for c in range(43)))

    def downloaded_images(self) -> tuple[ImageSet, ImageSet]:
        """Return the photographs, resized to 32 x 32."""
        train, test = (
            ImageSet(
                images=decoded(
                    ((file, Path(file).read_bytes()) for file, _ in part),
                    total=len(part),
                    grey=False,
                    side=32,
                ),
                labels=np.array([label for _, label in part]),
            )
            for part in self._samples()
        )
        return train, test
