"""Before/after sheets: what a table of decibels looks like."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
LINE, GAP = 20, 4
"""Height of a caption's line, and what lies between a caption and its image, pixels."""
BACKGROUND, INK, MARK = (24, 24, 24), (235, 235, 235), (255, 221, 0)
FONT = ImageFont.load_default(size=15)

Window = tuple[slice, slice]
"""Rows and columns."""


def difference(
    a: UInt8[np.ndarray, "h w c"], b: UInt8[np.ndarray, "h w c"]
) -> UInt8[np.ndarray, "h w c"]:
    """|b - a|, 8-bit units."""
    return np.maximum(a, b) - np.minimum(a, b)


def most_changed(
    differences: Sequence[UInt8[np.ndarray, "h w c"]], size: int, count: int = 1
) -> list[Window]:
    """The windows in which the sum of all differences is largest.

    Each is the largest among those that do not overlap the ones before it.

    Args:
        differences: of the versions of one picture from its first, see `difference`.
        size: a window's sides, pixels; those of the picture where it is smaller.
        count: how many windows.

    Returns:
        The most changed first: at least one, and `count` unless there is no room for
        more or nothing else changed.
    """
    change: Int64[np.ndarray, "h w"] = sum(
        each.sum(axis=-1, dtype=np.int64) for each in differences
    )
    height, width = (min(size, side) for side in change.shape)
    total = np.pad(change, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    inside = (
        total[height:, width:]
        - total[:-height, width:]
        - total[height:, :-width]
        + total[:-height, :-width]
    )
    windows = []
    for _ in range(count):
        y, x = map(int, np.unravel_index(inside.argmax(), inside.shape))
        if windows and inside[y, x] == 0:
            break
        windows.append((slice(y, y + height), slice(x, x + width)))
        # No window may start where it would reach into this one.
        inside[
            max(0, y - height + 1) : y + height, max(0, x - width + 1) : x + width
        ] = 0
    return windows


def shorten(text: str, width: int) -> str:
    """A caption's line without its middle, so that it is at most `width` pixels wide.

    Characters that cannot be printed, which file names may have, become "?".
    """
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    shortened, kept = text, len(text)
    while FONT.getlength(shortened) > width and kept > 2:
        kept -= 1
        shortened = f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"
    return shortened


def overview(
    image: UInt8[np.ndarray, "_ _ 3"],
    windows: Sequence[Window],
    size: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """A whole image with its windows as numbered boxes.

    Args:
        image: it is reduced until it fits; or enlarged by a whole number, by repeating
            pixels, as long as it fits.
        windows: numbered from 1.
        size: height and width at most, pixels.
    """
    scale = min(most / side for most, side in zip(size, image.shape, strict=False))
    scale = int(scale) if scale >= 1 else scale
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    canvas = Image.fromarray(image).resize((width, height), smooth)
    draw = ImageDraw.Draw(canvas)
    for number, (rows, columns) in enumerate(windows, start=1):
        # Around what is marked, as far as the image goes.
        left, top = (max(0, round(scale * s.start) - 2) for s in (columns, rows))
        right = min(width, round(scale * columns.stop) + 2)
        bottom = min(height, round(scale * rows.stop) + 2)
        draw.rectangle((left - 1, top - 1, right, bottom), None, BACKGROUND)
        draw.rectangle((left, top, right - 1, bottom - 1), None, MARK, width=2)
        tag_width, tag_height = round(FONT.getlength(str(number))) + 6, LINE - 2
        if min(right - left, bottom - top) < 2 * tag_height:
            # It would hide what is marked: put it beside, on the side with room.
            left = right if right + tag_width <= width else left - tag_width
        top = max(0, min(top, height - tag_height))
        draw.rectangle((left, top, left + tag_width - 1, top + tag_height - 1), MARK)
        draw.text((left + 3, top), str(number), BACKGROUND, FONT)
    return np.asarray(canvas)


def sheet(
    rows: Sequence[Sequence[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]], zoom: int = 1
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays captioned images out in rows and columns.

    Args:
        rows: each a sequence of (caption, image); sizes may differ, and a caption may
            have several lines, or none. A column is as wide as its widest image or
            caption.
        zoom: whole-number enlargement, by repeating pixels so that artefacts stay seen.

    Returns:
        The sheet. It can be an image of another sheet.
    """
    cells = [
        [
            (caption.splitlines(), image.repeat(zoom, 0).repeat(zoom, 1))
            for caption, image in row
        ]
        for row in rows
    ]
    widths = [0] * max(map(len, cells))
    for row in cells:
        for column, (lines, image) in enumerate(row):
            needed = max(map(FONT.getlength, lines), default=0)
            widths[column] = max(widths[column], image.shape[1], int(needed) + 1)
    captions = [_caption_height(max(len(lines) for lines, _ in row)) for row in cells]
    heights = [
        caption + max(image.shape[0] for _, image in row)
        for caption, row in zip(captions, cells, strict=True)
    ]
    size = [sum(sides) + MARGIN * (len(sides) + 1) for sides in (widths, heights)]
    canvas = Image.new("RGB", tuple(size), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    y = MARGIN
    for row, caption, height in zip(cells, captions, heights, strict=True):
        x = MARGIN
        for (lines, image), width in zip(row, widths, strict=False):
            for number, line in enumerate(lines):
                draw.text((x, y + 2 + LINE * number), line, INK, FONT)
            canvas.paste(Image.fromarray(image), (x, y + caption))
            x += width + MARGIN
        y += height + MARGIN
    return np.asarray(canvas)


def _caption_height(lines: int) -> int:
    return LINE * lines + GAP if lines else 0
