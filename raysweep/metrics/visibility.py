"""Distances of triggered inputs from their originals, and the likeness of images in [0, 1].

SSIM is that of Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli: Image Quality Assessment, 2004: local
means, variances and covariances under a Gaussian window of 11 x 11 pixels and a deviation of 1.5,
K1 = 0.01, K2 = 0.03, a range of 1; windows that lie within the image alone; the mean over windows,
channels and images. A smaller image has the largest odd window that it holds.
"""

from __future__ import annotations

import numpy as np

from raysweep.arrays import Floats

WINDOW, DEVIATION = 11, 1.5
STABLE = 0.01**2, 0.03**2  # C1 and C2 of values in [0, 1]
AT_ONCE = 500  # images


def l2(before: Floats, after: Floats) -> float:
    """Return the mean over inputs (B, ...) of the Euclidean norm of their change."""
    change = (after - before).reshape(len(before), -1)
    return float(np.linalg.norm(change, axis=1).mean())


def linf(before: Floats, after: Floats) -> float:
    """Return the mean over inputs (B, ...) of the largest change of one value."""
    return float(np.abs(after - before).reshape(len(before), -1).max(axis=1).mean())


def ssim(before: Floats, after: Floats) -> float:
    """Return the mean structural similarity, at most 1, of images (B, C, H, W) in [0, 1]."""
    cuts = range(0, len(before), AT_ONCE)
    each = [_ssim(before[cut : cut + AT_ONCE], after[cut : cut + AT_ONCE]) for cut in cuts]
    return float(np.concatenate(each).mean())


def _ssim(before: Floats, after: Floats) -> Floats:
    """Return the structural similarity (B,) of each image."""
    x, y = before.astype(np.float64), after.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x, variance_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = STABLE
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    found: Floats = likeness.mean(axis=(1, 2, 3))
    return found


def _windowed(images: Floats) -> Floats:
    """Return the Gaussian means (B, C, H', W') of all windows that lie within the images."""
    from scipy.ndimage import correlate1d

    side = min(images.shape[2:])
    reach = (min(WINDOW, side - 1 + side % 2) - 1) // 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / DEVIATION) ** 2)
    weights /= weights.sum()
    for axis in (2, 3):
        images = correlate1d(images, weights, axis=axis)
    height, width = images.shape[2:]
    return images[:, :, reach : height - reach, reach : width - reach]
