"""Restored pictures out: in the depth and mode that came in, whole or not at all."""

import dataclasses
import io
import types
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import png
from jaxtyping import UInt8, UInt16
from PIL import Image

from cir_jax import image_metadata
from cir_jax.errors import UserError, unknown
from cir_jax.image_arrays import Alpha, Pixels, eight_bits, pack, rows_of
from cir_jax.image_io import PNG_OPTIONS, Picture, written

DEEP_PNG_LEVEL = 4
"""Of 16 bits: zlib's effort, in half the time of the usual 6."""
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
    "png": OutputFormat("PNG", (".png",), deep=(1, 2, 3, 4), options=PNG_OPTIONS),
    "tiff": OutputFormat("TIFF", (".tif", ".tiff"), deep=(1, 2, 3, 4)),
    "jpeg2000": OutputFormat("JPEG2000", (".jp2",), deep=(1,)),
    "bmp": OutputFormat("BMP", (".bmp",), alpha=False),
    "jpeg": OutputFormat(
        "JPEG",
        (".jpg", ".jpeg", ".jfif"),
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
compression is hard to see; JPEG 2000 is written without loss. TIFF is not compressed:
Pillow's compressor of it takes no EXIF but the outermost directory."""


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


def check_quality(quality: int | None) -> None:
    """Refuses a quality that is not in 1 to 100; None is no quality.

    Raises:
        UserError: it is not.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise UserError(f"quality {quality} is not in 1 to 100")


def write_picture(
    path: Path,
    pixels: Pixels,
    like: Picture,
    format: str | None = None,
    quality: int | None = None,
) -> None:
    """Writes a restored picture the way it came in; makes its folder.

    Grey stays grey, 16 bits stay 16 bits and alpha stays where the format holds them
    (`FORMATS`; see `check_format`). EXIF and profile are embedded, except in BMP and
    JPEG 2000, which Pillow writes without; a TIFF of 16 bits that is not plain grey
    keeps of EXIF only the texts of its outermost directory (make, model, artist, ...).
    PNG and TIFF are the same bytes for the same picture.

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
    check_quality(quality)
    keep_alpha = kind.alpha and like.alpha is not None
    alpha = _resized(like.alpha, height, width) if keep_alpha else None
    channels = (1 if like.grey else 3) + keep_alpha
    depth = 16 if pixels.dtype == np.uint16 and channels in kind.deep else 8
    stripes = _stripes(pixels, alpha, like.grey, depth)
    try:
        with written(path) as file:
            if depth == 8 or channels == 1:
                _by_pillow(file, kind, pack((width, height), stripes), like, quality)
            elif kind.pillow == "PNG":
                rows = (row.tobytes() for part in stripes for row in part.astype(">u2"))
                _DeepPng(width, height, channels, like).write_packed(file, rows)
            else:
                _deep_tiff(file, (height, width, channels), stripes, like)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # EXIF or a profile makes an encoder raise anything
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path} cannot be written as {kind.pillow} ({reason}): give --format png"
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
    pixels: Pixels,
    alpha: Alpha,
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
            stripe = eight_bits(stripe)
        yield stripe


def _by_pillow(
    file: io.BufferedIOBase,
    kind: OutputFormat,
    image: Image.Image,
    like: Picture,
    quality: int | None,
) -> None:
    options = dict(kind.options)
    if kind.quality:
        options["quality"] = quality or kind.quality
    if like.icc:
        options["icc_profile"] = like.icc
    if like.exif:
        exif = options["exif"] = Image.Exif()
        exif.load(like.exif)
        image_metadata.keep_letters(exif)
    if kind.pillow == "JPEG2000":  # its encoder repeats a write that fails, for ever
        buffer = io.BytesIO()
        image.save(buffer, kind.pillow, **options)
        file.write(buffer.getbuffer())
    else:  # without a `fileno`: Pillow would not notice that the last write came short
        sink = types.SimpleNamespace(write=file.write, seek=file.seek, tell=file.tell)
        image.save(sink, kind.pillow, **options)


class _DeepPng(png.Writer):
    """Writes a PNG of 16 bits a channel, with profile and EXIF."""

    def __init__(self, width: int, height: int, channels: int, like: Picture):
        super().__init__(
            width,
            height,
            greyscale=channels == 2,
            alpha=channels != 3,
            bitdepth=16,
            compression=DEEP_PNG_LEVEL,
        )
        self._like = like

    def write_preamble(self, outfile: io.BufferedIOBase) -> None:
        """Writes what comes before the pixels."""
        super().write_preamble(outfile)
        if self._like.icc:
            profile = b"ICC profile\0\0" + zlib.compress(self._like.icc)
            png.write_chunk(outfile, b"iCCP", profile)
        if self._like.exif:
            exif = self._like.exif.removeprefix(b"Exif\0\0")
            png.write_chunk(outfile, b"eXIf", exif)


def _deep_tiff(
    file: io.BufferedIOBase,
    shape: tuple[int, int, int],
    stripes: Iterator[UInt16[np.ndarray, "_ w c"]],
    like: Picture,
) -> None:
    """Writes a TIFF of 16 bits a channel, of 2 to 4 channels."""
    import tifffile  # takes long to load, for what is rarely written

    height, width, channels = shape
    exif = Image.Exif()
    exif.load(like.exif or b"")
    texts = {
        tag: value.encode("latin-1")  # as Pillow read it
        for tag, value in exif.items()
        if isinstance(value, str)
    }
    tifffile.imwrite(
        file,
        (stripe.tobytes() for stripe in stripes),
        shape=shape,
        dtype=np.uint16,
        photometric="minisblack" if channels == 2 else "rgb",
        planarconfig="contig",
        extrasamples=["unassalpha"] if channels != 3 else None,
        rowsperstrip=rows_of(height, width)[0].stop,
        metadata=None,
        software=False,
        iccprofile=like.icc,
        extratags=[(tag, "s", None, text, True) for tag, text in texts.items()],
    )
