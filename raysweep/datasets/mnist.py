"""MNIST: 70,000 gray images of handwritten digits, 28 x 28 pixels, in ten classes.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition,
Proceedings of the IEEE 1998.

Where we differ: with a folder named by RAYSWEEP_DATA that holds mnist-train.parquet and
mnist-test.parquet these are used, decoded to one channel, else torchvision's download of the
original files. They are two data sets: identity is the digest of the source files.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from raysweep.datasets import ImageSet, Labels
from raysweep.datasets._published import Published


class MNIST(Published):
    """60,000 training and 10,000 test images, (N, 1, 28, 28)."""

    TORCHVISION: ClassVar[str] = "MNIST"
    GREY: ClassVar[bool] = True
    SIDE: ClassVar[int] = 28

    def downloaded_labels(self) -> Labels:
        """Return the digits."""
        train, test = (part.targets.numpy().astype(np.int64) for part in self.sets())
        return Labels(train=train, test=test, classes=tuple(map(str, range(10))))

    def downloaded_images(self) -> tuple[ImageSet, ImageSet]:
        """Return the images with the channel that torchvision leaves out."""
        train, test = (
            ImageSet(
                images=part.data[:, None].clone(), labels=part.targets.numpy().astype(np.int64)
            )
            for part in self.sets()
        )
        return train, test
