"""Restored pictures out: in the depth and mode that came in, whole or not at all."""

import dataclasses
import io
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from cir_jax import png, tiff
from cir_jax.errors import UserError, unknown
from cir_jax.image_arrays import rows_of
from cir_jax.image_io import Picture, written

SAME = "same"
"""Stands for the format of the name that came in."""


@dataclasses.dataclass(frozen=True)
class OutputFormat:
    """What a format that can be written holds, and how it is written.

    Attributes:
        pillow: its name in Pillow.
        suffixes: of its files, the usual one first.
        alpha: it holds alpha.
        deep: the channel counts that it holds in 16 bits.
        side: the most pixels along a side.
        quality: what lossy formats are written with by default, 1 to 100; None in
            lossless ones.
        options: further arguments of Pillow's.
    """

    pillow: str
    suffixes: tuple[str, ...]
    alpha: bool = True
    deep: tuple[int, ...] = ()
    side: int = 2**31 - 1
    quality: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


FULL_COLOUR = {"subsampling": "4:4:4"}
FORMATS = {
    "png": OutputFormat("PNG", (".png",), deep=(1, 2, 3, 4)),
    "tiff": OutputFormat("TIFF", (".tif", ".tiff"), deep=(1, 2, 3, 4)),
    "jpeg2000": OutputFormat("JPEG2000", (".jp2",), deep=(1,)),
    "bmp": OutputFormat("BMP", (".bmp",), alpha=False),
    "jpeg": OutputFormat(
        "JPEG",
        (".jpg", ".jpeg"),
        alpha=False,
        side=65500,
        quality=95,
        options=FULL_COLOUR,
    ),
    "webp": OutputFormat(
        "WEBP",
        (".webp",),
        side=16383,
        quality=95,
        options={"exact": True},  # keeps the colours of transparent pixels
    ),
    "avif": OutputFormat(
        "AVIF", (".avif",), side=65536, quality=90, options=FULL_COLOUR
    ),
}
"""By the name that `--format` takes. The default qualities are those at which a second
compression is hard to see; JPEG 2000 is written without loss."""


def output_suffix(format: str | None, like_suffix: str) -> str:
    """The suffix of an output file's name.

    Args:
        format: one of `FORMATS`; None or "" for PNG; "same" for the input's suffix, or
            PNG's where such a file cannot be written (GIF, HEIC, .j2k).
        like_suffix: the input's suffix, such as ".JPG".

    Raises:
        UserError: there is no such format.
    """
    if format == SAME and _of_suffix(like_suffix):
        return like_suffix
    return _named("png" if format == SAME else format).suffixes[0]


def check_format(path: Path, like: Picture, format: str | None) -> OutputFormat:
    """The format that `write_picture` would write; refused if it would drop alpha.

    Alpha that is opaque everywhere is no loss. Depth may be: 16 bits are rounded to 8
    where the format holds no more.

    Args:
        path: the output file; with "same", its suffix decides.
        like: the picture that came in.
        format: as in `output_suffix`.

    Raises:
        UserError: there is no such format, or it has no alpha and the picture does.
    """
    name = _of_suffix(path.suffix) or "png" if format == SAME else format
    kind = _named(name)
    if not kind.alpha and not _opaque(like):
        raise UserError(
            f"{path} cannot hold the transparency of its input, being {kind.pillow}: "
            "give --format png, webp, avif, tiff or jpeg2000"
        )
    return kind


def write_picture(
    path: Path,
    pixels: UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"],
    like: Picture,
    format: str | None = None,
    quality: int | None = None,
) -> None:
    """Writes a restored picture the way it came in; makes its folder.

    Grey stays grey, 16 bits stay 16 bits and alpha stays where the format holds them
    (`FORMATS`; see `check_format`). EXIF and profile are embedded, except in BMP and
    JPEG 2000, which Pillow writes without. PNG and TIFF are the same bytes for the same
    picture.

    Args:
        path: the file. What exists is replaced once the new file is complete.
        pixels: in the dtype and the colours of `like`'s, of any size: alpha is resized
            to it by a bicubic filter.
        like: the picture that came in; its own pixels are not looked at.
        format: as in `check_format`.
        quality: 1 to 100, of lossy formats; without it, theirs in `FORMATS`. Others
            ignore it.

    Raises:
        UserError: see `check_format`; the picture is too large for the format, the
            quality not in its range, or the file cannot be written.
    """
    kind = check_format(path, like, format)
    height, width, _ = pixels.shape
    if max(height, width) > kind.side:
        raise UserError(
            f"{path} would have {width}x{height} pixels, and {kind.pillow} holds "
            f"{kind.side} a side: give --format png"
        )
    if quality is not None and not 1 <= quality <= 100:
        raise UserError(f"quality {quality} is not in 1 to 100")
    keep_alpha = kind.alpha and like.alpha is not None
    alpha = _resized(like.alpha, height, width) if keep_alpha else None
    channels = (1 if like.grey else 3) + keep_alpha
    depth = 16 if pixels.dtype == np.uint16 and channels in kind.deep else 8
    stripes = _stripes(pixels, alpha, like.grey, depth)
    metadata = {"icc": like.icc, "exif": like.exif}
    try:
        with written(path) as file:
            if kind.pillow in ("PNG", "TIFF"):
                writer = png if kind.pillow == "PNG" else tiff
                shape = (height, width, channels)
                writer.write(file, shape, depth, stripes, **metadata)
            else:
                _encode(file, kind, (width, height), stripes, like, quality)
    except (ValueError, struct.error) as error:
        raise UserError(
            f"{path} cannot be written as {kind.pillow} ({error}): give --format png"
        ) from error


def _of_suffix(suffix: str) -> str | None:
    """The name of the format whose files have a suffix."""
    for name, kind in FORMATS.items():
        if suffix.lower() in kind.suffixes:
            return name
    return None


def _named(format: str | None) -> OutputFormat:
    format = format or "png"
    if format not in FORMATS:
        raise unknown("format", format, [*FORMATS, SAME])
    return FORMATS[format]


def _opaque(like: Picture) -> bool:
    alpha = like.alpha
    return alpha is None or bool(alpha.min() == np.iinfo(alpha.dtype).max)


def _resized(
    alpha: UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"], height: int, width: int
) -> UInt8[np.ndarray, "h2 w2"] | UInt16[np.ndarray, "h2 w2"]:
    """Alpha of another size, bicubic; the same where the size is the same."""
    if alpha.shape == (height, width):
        return alpha
    exact = Image.fromarray(np.float32(alpha))
    resized = np.asarray(exact.resize((width, height), Image.Resampling.BICUBIC))
    return np.round(resized).clip(0, np.iinfo(alpha.dtype).max).astype(alpha.dtype)


def _stripes(
    pixels: UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"],
    alpha: UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"] | None,
    grey: bool,
    depth: int,
) -> Iterator[UInt8[np.ndarray, "_ w c"] | UInt16[np.ndarray, "_ w c"]]:
    """The rows that are written, some at a time: grey or RGB, then alpha, at depth."""
    for rows in rows_of(*pixels.shape[:2]):
        stripe = pixels[rows]
        if grey:  # three restored channels of one grey: their mean, rounded
            total = stripe.sum(axis=-1, keepdims=True, dtype=np.uint32)
            stripe = ((total + 1) // 3).astype(pixels.dtype)
        if alpha is not None:
            stripe = np.concatenate([stripe, alpha[rows, :, None]], axis=-1)
        if depth == 8 and stripe.dtype == np.uint16:
            stripe = ((np.uint32(stripe) + 128) // 257).astype(np.uint8)
        yield stripe


def _encode(
    file: io.BufferedIOBase,
    kind: OutputFormat,
    size: tuple[int, int],
    stripes: Iterator[UInt8[np.ndarray, "_ w c"] | UInt16[np.ndarray, "_ w c"]],
    like: Picture,
    quality: int | None,
) -> None:
    """Writes by a Pillow encoder."""
    image, top = None, 0
    for stripe in stripes:
        part = Image.fromarray(stripe[..., 0] if stripe.shape[-1] == 1 else stripe)
        image = image or Image.new(part.mode, size)
        image.paste(part, (0, top))
        top += part.height
    options = dict(kind.options)
    if kind.quality:
        options["quality"] = quality or kind.quality
    if like.icc:
        options["icc_profile"] = like.icc
    if like.exif:
        options["exif"] = like.exif
    buffer = io.BytesIO()  # so that writing fails with the system's reason
    image.save(buffer, kind.pillow, **options)
    file.write(buffer.getbuffer())
