"""A user's own image files: one folder per class, below `train` and `test`.

    path/train/<class>/*.png      path/test/<class>/*.png

The layout is that of torchvision's ImageFolder.

Where we differ: classes are those of the training folder, in the order of their names; all images
are resized bilinearly to one side.
"""

from __future__ import annotations

from raysweep.datasets._folders import Folders


class ImageFolder(Folders):
    """Images below `path`, resized to `side` x `side`."""
