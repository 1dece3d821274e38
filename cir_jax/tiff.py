"""TIFF files of 8 or 16 bits a channel: Pillow's directory writer around our strips.

Pillow writes no 16-bit colour. TIFF 6.0 with Adobe's deflate and the horizontal
predictor (section 14).
"""

import io
import zlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, TiffImagePlugin, TiffTags

from cir_jax.png import LEVEL

DEFLATE, DIFFERENCES = 8, 2
BLACK_IS_ZERO, RGB = 1, 2
UNASSOCIATED_ALPHA = 2


def write(
    file: io.BufferedIOBase,
    shape: tuple[int, int, int],
    depth: int,
    stripes: Iterable[UInt8[np.ndarray, "_ w c"] | UInt16[np.ndarray, "_ w c"]],
    icc: bytes | None = None,
    exif: bytes | None = None,
) -> None:
    """Writes a TIFF, losslessly compressed; holds the compressed strips in memory.

    Args:
        file: where to, at its beginning.
        shape: height, width and channels (grey, grey + alpha, RGB or RGB + alpha).
        depth: bits a channel, 8 or 16.
        stripes: the rows from the top, uint8 or uint16 as `depth` says; all of as many
            rows but the last.
        icc: a profile to embed.
        exif: EXIF to embed, with its `Exif` heading.

    Raises:
        OSError: the file cannot be written.
        struct.error: it would be larger than TIFF's 4 GiB.
    """
    height, width, channels = shape
    strips, rows = [], []
    for stripe in stripes:
        little_endian = stripe.astype(stripe.dtype.newbyteorder("<"))
        little_endian[:, 1:] -= stripe[:, :-1]
        strips.append(zlib.compress(little_endian.tobytes(), LEVEL))
        rows.append(len(stripe))
    sizes = [len(strip) for strip in strips]
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    if exif:
        _add_exif(directory, exif)
    storage = {
        TiffImagePlugin.IMAGEWIDTH: width,
        TiffImagePlugin.IMAGELENGTH: height,
        TiffImagePlugin.BITSPERSAMPLE: (depth,) * channels,
        TiffImagePlugin.SAMPLESPERPIXEL: channels,
        TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: (
            BLACK_IS_ZERO if channels < 3 else RGB
        ),
        TiffImagePlugin.COMPRESSION: DEFLATE,
        TiffImagePlugin.PREDICTOR: DIFFERENCES,
        TiffImagePlugin.ROWSPERSTRIP: rows[0],
        # counted from the end of the directory, which `save` adds
        TiffImagePlugin.STRIPOFFSETS: tuple(
            int(n) for n in np.cumsum([0, *sizes[:-1]])
        ),
        TiffImagePlugin.STRIPBYTECOUNTS: tuple(sizes),
    }
    if channels in (2, 4):
        storage[TiffImagePlugin.EXTRASAMPLES] = UNASSOCIATED_ALPHA
    if icc:
        storage[TiffImagePlugin.ICCPROFILE] = icc
    for tag, value in storage.items():
        directory[tag] = value
    for tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS):
        directory.tagtype[tag] = TiffTags.LONG
    directory.save(file)
    for strip in strips:
        file.write(strip)


def _add_exif(directory: TiffImagePlugin.ImageFileDirectory_v2, data: bytes) -> None:
    """Copies EXIF tags, and the directories that hang below them."""
    exif = Image.Exif()
    exif.load(data)
    for tag, value in exif.items():
        nested = tag in TiffTags.TAGS_V2_GROUPS
        directory[tag] = exif.get_ifd(tag) if nested else value
