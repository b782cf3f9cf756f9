"""Attacked images: clean, triggered, and their difference magnified; pure."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.reports.cells import Cells
from raysweep.reports.material import Material

SAMPLES = 4
ATTACKS = 60


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image of the page: a PNG data URI, its caption, and its text for who cannot see it."""

    image: str
    caption: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images under a title; those of a group stand side by side."""

    title: str
    groups: Sequence[Sequence[Shown]]


def picture(image_CHW: np.ndarray, side: int = 96) -> str:
    """Return a uint8 image (C, H, W) as a PNG data URI, enlarged without smoothing."""
    from PIL import Image

    pixels = image_CHW.transpose(1, 2, 0)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3])
    factor = max(1, math.ceil(side / max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def magnified(clean_CHW: np.ndarray, triggered_CHW: np.ndarray) -> np.ndarray:
    """Return |triggered - clean| of uint8 images times `factor` of them, uint8."""
    gap = np.abs(triggered_CHW.astype(int) - clean_CHW.astype(int))
    product: np.ndarray = (gap * factor(clean_CHW, triggered_CHW)).astype(np.uint8)
    return product


def factor(clean_CHW: np.ndarray, triggered_CHW: np.ndarray) -> int:
    """Return the largest whole factor by which their difference still fits 8 bits, at least 1."""
    largest = int(np.abs(triggered_CHW.astype(int) - clean_CHW.astype(int)).max(initial=0))
    return 255 // largest if largest else 1


def pictures(material: Material, cells: Cells) -> tuple[list[Gallery], str]:
    """Return clean, triggered and difference of some images, for each attack; and what is left out.

    Returns:
        the galleries, and a sentence on the attacks that are left out, or nothing.
    """
    shown = list(material.pictures.items())
    names = cells.names["attack"]
    galleries = [
        Gallery(title=names.get(attack, attack), groups=_triples(attack, clean, triggered))
        for attack, (clean, triggered) in shown[:ATTACKS]
        if len(clean)
    ]
    fewer = f"Shown: the first {ATTACKS} of {len(shown)} attacks." if len(shown) > ATTACKS else ""
    return galleries, fewer


def _triples(attack: str, clean: np.ndarray, triggered: np.ndarray) -> list[list[Shown]]:
    groups = []
    pairs = zip(clean[:SAMPLES], triggered[:SAMPLES], strict=False)
    for which, (before, after) in enumerate(pairs, 1):
        largest = int(np.abs(after.astype(int) - before.astype(int)).max(initial=0))
        times = factor(before, after)
        change = f"difference ×\N{NO-BREAK SPACE}{times}" if largest else "no difference"
        gap = f"absolute difference times {times}, at most {largest} of 255 per pixel"
        three = (
            (before, "clean", "clean"),
            (after, "triggered", "with the trigger"),
            (magnified(before, after), change, gap),
        )
        groups.append(
            [
                Shown(image=picture(image), caption=caption,
                      alt=f"{attack}, test image {which}: {alt}")
                for image, caption, alt in three
            ]
        )  # fmt: skip
    return groups
