"""The few elements that the page is made of; each escapes what it is given, unless it says HTML."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from raysweep.reports.tables import number, words

if TYPE_CHECKING:
    import plotly.graph_objects as go


def text(value: object) -> str:
    """Return data as HTML text, also fit for a quoted attribute; a dash where it is missing."""
    return html.escape(words(value), quote=True) or "–"


def badges(value: object) -> str:
    """Return comma-joined badges as HTML."""
    names = [part for part in words(value).split(", ") if part]
    return " ".join(f'<span class="badge">{html.escape(name)}</span>' for name in names)


def table(
    caption: str, headers: Sequence[str], lines: Iterable[Sequence[str]], *, words_first: int = 1
) -> str:
    """Return a table that sorts by its headers, in a scroll region that the keyboard reaches.

    Args:
        caption: plain text.
        headers: plain text.
        lines: cells as HTML; the first of a line is its header.
        words_first: how many columns are words, set to the left; the rest are numbers.
    """

    def kind(column: int) -> str:
        wordy = column < words_first or headers[column] == "badges"
        return ' class="text"' if wordy else ""

    head = "".join(
        f'<th scope="col"{kind(n)}><button type="button">{html.escape(h)}</button></th>'
        for n, h in enumerate(headers)
    )
    body = []
    for line in lines:
        cells = "".join(f"<td{kind(n)}>{cell}</td>" for n, cell in enumerate(line[1:], 1))
        body.append(f'<tr><th scope="row">{_breakable(line[0])}</th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}"><table>'
        f"<caption><span>{text(caption)}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _breakable(cell: str) -> str:
    """Return a name that may break where a reader would break it, on a phone."""
    return cell if "<" in cell else re.sub(r"(?<=[_(,=])(?=\S)", "<wbr>", cell)


def details(summary: str, body: str) -> str:
    """Return HTML that is shown when its summary is pressed."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def note(body: str) -> str:
    """Return a muted paragraph of HTML."""
    return f'<p class="muted">{body}</p>'


def plots(drawings: Iterable[tuple[str, go.Figure]], *, wide: bool = False) -> str:
    """Return figures with captions, as data: the page draws one when it comes into view."""
    out = []
    for title, figure in drawings:
        # A `<` inside a script could end it.
        data = figure.to_json().replace("<", "\\u003c")
        layout = figure.layout
        least = int((layout.meta or {}).get("least_width", 300))
        out.append(
            f'<figure class="plot"><figcaption>{text(title)}</figcaption>'
            f'<div class="scroll" role="region" tabindex="0" aria-label="{text(title)}">'
            f'<div class="drawing" style="height:{int(layout.height)}px;min-width:{least}px"></div>'
            f'</div><script type="application/json">{data}</script></figure>'
        )
    return f'<div class="plots{" wide" if wide else ""}">{"".join(out)}</div>' if out else ""


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


def shown(image_CHW: np.ndarray, caption: str, alt: str) -> str:
    """Return a picture with its caption and alternative text."""
    return (
        f'<figure><img src="{picture(image_CHW)}" alt="{text(alt)}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def seconds(value: object) -> str:
    """Return seconds with a sensible number of digits, or a dash."""
    taken = number(value)
    if math.isnan(taken):
        return "–"
    if taken == 0 or taken >= 100:
        return f"{taken:.0f}"
    return f"{taken:.1f}" if taken >= 1 else f"{taken:.3f}"
