"""PNG files written stripe by stripe, of 8 or 16 bits a channel.

Pillow writes no 16-bit colour, and needs a copy of the image at 4 bytes a pixel for the
rest; here the memory is that of one stripe. PNG specification, third edition (W3C).
"""

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8, UInt16

LEVEL = 4
"""zlib's effort: photographs come out 1% larger than at 6, in half the time."""
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""The specification's colour type of grey, grey + alpha, RGB and RGB + alpha."""
PAETH = 4
"""The filter of every row: the best single one on photographs."""


def write(
    file: io.BufferedIOBase,
    shape: tuple[int, int, int],
    depth: int,
    stripes: Iterable[UInt8[np.ndarray, "_ w c"] | UInt16[np.ndarray, "_ w c"]],
    icc: bytes | None = None,
    exif: bytes | None = None,
) -> None:
    """Writes a PNG; the same bytes for the same image.

    Args:
        file: where to.
        shape: height, width and channels (grey, grey + alpha, RGB or RGB + alpha).
        depth: bits a channel, 8 or 16.
        stripes: the rows from the top, some at a time, uint8 or uint16 as `depth` says.
        icc: a profile to embed.
        exif: EXIF to embed, with or without its `Exif` heading.

    Raises:
        OSError: the file cannot be written.
    """
    height, width, channels = shape
    file.write(b"\x89PNG\r\n\x1a\n")
    header = (width, height, depth, COLOUR_TYPES[channels], 0, 0, 0)
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", *header))
    if icc:
        _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if exif:
        _chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    step = channels * depth // 8  # bytes a pixel
    above = np.zeros(width * step, np.uint8)
    compressor = zlib.compressobj(LEVEL, strategy=zlib.Z_FILTERED)
    for stripe in stripes:
        big_endian = np.ascontiguousarray(stripe, stripe.dtype.newbyteorder(">"))
        rows = big_endian.view(np.uint8).reshape(len(stripe), -1)
        _chunk(file, b"IDAT", compressor.compress(_filtered(rows, above, step)))
        above = rows[-1]
    _chunk(file, b"IDAT", compressor.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: io.BufferedIOBase, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _filtered(
    rows: UInt8[np.ndarray, "h n"], above: UInt8[np.ndarray, " n"], step: int
) -> UInt8[np.ndarray, "h n+1"]:
    """What is left of each byte when Paeth's prediction is taken away (section 9.4).

    Args:
        rows: the bytes of some rows.
        above: the row above the first.
        step: bytes a pixel.
    """
    up = np.concatenate([above[None], rows[:-1]])
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, step:] = rows[:, :-step]
    corner[:, step:] = up[:, :-step]
    # |p - left|, |p - up| and |p - corner| of p = left + up - corner
    rise, run = np.int16(up) - corner, np.int16(left) - corner
    to_left, to_up, to_corner = abs(rise), abs(run), abs(rise + run)
    nearest = np.where(to_up <= to_corner, up, corner)
    use_left = (to_left <= to_up) & (to_left <= to_corner)
    out = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    out[:, 0] = PAETH
    np.subtract(rows, np.where(use_left, left, nearest), out=out[:, 1:])
    return out
