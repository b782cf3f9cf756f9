"""CIFAR-100: 60,000 color images of 32 x 32 pixels in a hundred classes.

A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, technical report, University
of Toronto, 2009.

Where we differ: with a folder named by RAYSWEEP_DATA that holds cifar100-train.parquet and
cifar100-test.parquet these are used, else torchvision's download. A JPEG-encoded copy and the
original are two data sets: identity is the digest of the source files.
"""

from __future__ import annotations

from typing import ClassVar

from raysweep.datasets._cifar import CIFAR


class CIFAR100(CIFAR):
    """Color images of a hundred classes."""

    TORCHVISION: ClassVar[str] = "CIFAR100"
