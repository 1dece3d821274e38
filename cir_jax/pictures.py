"""Before/after sheets: what a table of decibels looks like."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
CAPTION = 24
BACKGROUND, INK = (24, 24, 24), (235, 235, 235)


def most_changed(
    before: UInt8[np.ndarray, "h w 3"], after: UInt8[np.ndarray, "h w 3"], size: int
) -> tuple[slice, slice]:
    """The window of at most `size` pixels a side in which two images differ most."""
    change = np.abs(before.astype(np.int64) - after).sum(axis=-1)
    height, width = (min(size, side) for side in change.shape)
    total = np.pad(change, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    inside = (
        total[height:, width:]
        - total[:-height, width:]
        - total[height:, :-width]
        + total[:-height, :-width]
    )
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return slice(y, y + height), slice(x, x + width)


def sheet(
    rows: Sequence[Sequence[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]], zoom: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays captioned images out in rows.

    Args:
        rows: each a sequence of (caption, image); sizes may differ.
        zoom: whole-number enlargement, by repeating pixels so that artefacts stay seen.

    Returns:
        The sheet.
    """
    cells = [
        [(caption, image.repeat(zoom, 0).repeat(zoom, 1)) for caption, image in row]
        for row in rows
    ]
    heights = [max(image.shape[0] for _, image in row) + CAPTION for row in cells]
    width = max(sum(image.shape[1] + MARGIN for _, image in row) for row in cells)
    size = (width + MARGIN, sum(heights) + MARGIN * (len(cells) + 1))
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    y = MARGIN
    for row, height in zip(cells, heights, strict=True):
        x = MARGIN
        for caption, image in row:
            draw.text((x, y + 2), caption, INK, font)
            canvas.paste(Image.fromarray(image), (x, y + CAPTION))
            x += image.shape[1] + MARGIN
        y += height + MARGIN
    return np.asarray(canvas)
