"""Attacked images: clean, triggered, and their difference magnified; pure."""

from __future__ import annotations

import numpy as np

from raysweep.reports.html_elements import shown, text
from raysweep.reports.material import Material

SAMPLES = 4


def magnified(clean_CHW: np.ndarray, triggered_CHW: np.ndarray) -> np.ndarray:
    """Return |triggered - clean| of uint8 images times `factor` of them, uint8."""
    gap = np.abs(triggered_CHW.astype(int) - clean_CHW.astype(int))
    product: np.ndarray = (gap * factor(clean_CHW, triggered_CHW)).astype(np.uint8)
    return product


def factor(clean_CHW: np.ndarray, triggered_CHW: np.ndarray) -> int:
    """Return the largest whole factor by which their difference still fits 8 bits, at least 1."""
    largest = int(np.abs(triggered_CHW.astype(int) - clean_CHW.astype(int)).max(initial=0))
    return 255 // largest if largest else 1


def pictures(material: Material) -> str:
    """Return clean, triggered and difference of some images, for each attack."""
    out = ""
    for attack, (clean, triggered) in material.pictures.items():
        rows = ""
        for which, (before, after) in enumerate(
            zip(clean[:SAMPLES], triggered[:SAMPLES], strict=False), 1
        ):
            largest = int(np.abs(after.astype(int) - before.astype(int)).max(initial=0))
            times = factor(before, after)
            change = f"difference × {times}" if largest else "no difference"
            gap = f"absolute difference times {times}, at most {largest} of 255 per pixel"
            three = (
                (before, "clean", "clean"),
                (after, "triggered", "with the trigger"),
                (magnified(before, after), change, gap),
            )
            images = "".join(
                shown(image, caption, f"{attack}, test image {which}: {alt}")
                for image, caption, alt in three
            )
            rows += f'<div class="triple">{images}</div>'
        if rows:
            out += f'<h3>{text(attack)}</h3><div class="gallery">{rows}</div>'
    return out
