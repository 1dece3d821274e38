"""What an image file says of its own compression, from its header alone."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from cir_jax import image_files

LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
"""ITU-T T.81, table K.1; row by row, as Pillow gives a file's tables."""
CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
) + (99,) * 32  # fmt: skip
"""ITU-T T.81, table K.2."""
LIMITS = (255, 32767)
"""The largest steps that libjpeg writes into baseline files, and into others."""
SUBSAMPLINGS = {
    (1, 1): "4:4:4",
    (2, 1): "4:2:2",
    (2, 2): "4:2:0",
    (1, 2): "4:4:0",
    (4, 1): "4:1:1",
    (4, 2): "4:1:0",
}
"""By how many times as many samples luma has as chroma, across and down."""


@dataclasses.dataclass(frozen=True)
class JPEGHeader:
    """What a JPEG file says.

    Attributes:
        quality: libjpeg's, 1 to 100, by the quantisation tables; None if the header
            lacks a table.
        standard: the tables are those that libjpeg makes for this quality; otherwise
            another encoder's, and the quality is that of libjpeg's nearest.
        subsampling: of chroma, such as "4:2:0", "4:0:0" for grey; where these have no
            name for it, each component's samples across and down: "2x2 1x1 2x1".
    """

    quality: int | None
    standard: bool
    subsampling: str

    def __str__(self):
        mark = "" if self.standard else "~"
        known = "" if self.quality is None else f", quality {mark}{self.quality}"
        return f"{self.subsampling}{known}"


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image file says.

    Attributes:
        container: the file's format in Pillow's words, such as "PNG".
        jpeg: what only JPEG files say.
    """

    container: str
    jpeg: JPEGHeader | None

    def __str__(self):
        return " ".join(str(part) for part in (self.container, self.jpeg) if part)

    def to_json(self) -> dict[str, Any]:
        """The fields that are known."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}


def read_header(path: Path, *, max_pixels: int = image_files.MAX_PIXELS) -> Header:
    """What an image file says; its content decides on the format, whatever the name.

    Raises:
        UserError: the file cannot be read, is no image of an open format, is too large
            or breaks off in its header; what lies behind that is not looked at.
    """
    with (
        image_files.opened_file(path) as file,
        image_files.opened_image(file, str(path), max_pixels, "replace it") as image,
    ):
        if image.format in ("JPEG", "MPO"):
            return Header("JPEG", _jpeg_header(image))
        return Header(image.format, None)


def table_quality(tables: Sequence[Sequence[int]]) -> tuple[int, bool]:
    """The quality by which libjpeg makes quantisation tables, or the nearest ones.

    Near is what differs least in the mean of the logarithms' distances; the better of
    two qualities that are equally near.

    Args:
        tables: the first component's, then those of the others that are not the same;
            64 steps each, row by row.

    Returns:
        The quality, 1 to 100; whether the tables are libjpeg's own.
    """
    found = np.maximum(np.array(tables, np.int64), 1)  # a damaged file may have zeros
    kinds = np.minimum(np.arange(len(found)), 1)  # chroma of all but the first
    scaled = _scaled_tables(LIMITS[int(found.max() > LIMITS[0])])[:, kinds]
    distances = np.abs(np.log(found / scaled)).mean((1, 2))
    nearest = len(distances) - 1 - int(np.argmin(distances[::-1]))
    return nearest + 1, bool((found == scaled[nearest]).all())


@functools.cache
def _scaled_tables(limit: int) -> Int64[np.ndarray, "100 2 64"]:
    """The tables for luma and chroma that libjpeg makes for the qualities 1 to 100."""
    quality = np.arange(1, 101)
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    standard = np.array([LUMINANCE, CHROMINANCE], np.int64)
    return ((standard * percent[:, None, None] + 50) // 100).clip(1, limit)


def _jpeg_header(image: Image.Image) -> JPEGHeader:
    _, across, down, table_numbers = zip(*image.layer, strict=True)
    used = dict.fromkeys(table_numbers)  # each once, the first component's first
    tables: Mapping[int, Sequence[int]] = image.quantization
    quality, standard = None, False
    if used.keys() <= tables.keys():
        quality, standard = table_quality([tables[number] for number in used])
    return JPEGHeader(quality, standard, _subsampling(across, down))


def _subsampling(across: Sequence[int], down: Sequence[int]) -> str:
    """The name for how many samples each component has."""
    if len(across) == 1:
        return "4:0:0"
    luma, *others = zip(across, down, strict=True)
    for (times_across, times_down), name in SUBSAMPLINGS.items():
        if all(luma == (times_across * h, times_down * v) for h, v in others[:2]):
            return name
    return " ".join(f"{h}x{v}" for h, v in (luma, *others))
