"""The common base of CIFAR-10 and CIFAR-100: torchvision's files of them."""

from __future__ import annotations

import numpy as np

from raysweep.datasets import ImageSet, Labels
from raysweep.datasets._published import Published


class CIFAR(Published):
    """50,000 training and 10,000 test images, (N, 3, 32, 32)."""

    def downloaded_labels(self) -> Labels:
        """Return the labels, and torchvision's names of the classes."""
        train, test = self.sets()
        return Labels(
            train=np.array(train.targets), test=np.array(test.targets), classes=tuple(train.classes)
        )

    def downloaded_images(self) -> tuple[ImageSet, ImageSet]:
        """Return the images, channels first."""
        import torch

        train, test = (
            ImageSet(
                images=torch.from_numpy(part.data.transpose(0, 3, 1, 2).copy()),
                labels=np.array(part.targets),
            )
            for part in self.sets()
        )
        return train, test
