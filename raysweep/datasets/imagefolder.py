"""A user's own image files: one folder per class, below `train` and `test`.

    path/train/<class>/*.png      path/test/<class>/*.png

The layout is that of torchvision's ImageFolder; images may lie in folders below a class's.

Where we differ: classes are those of the training folder, in the order of their names; all images
are turned as their EXIF orientation says and resized bilinearly to one side.
"""

from __future__ import annotations

from raysweep.datasets._folders import Folders


class ImageFolder(Folders):
    """Images below `path`, resized to `side` x `side`."""
