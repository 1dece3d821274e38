"""Image files in and out: decoded whole or refused with a reason, written whole."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from cir_jax.errors import UserError
from cir_jax.files import written_whole

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF")
"""Pillow's parsers that are open to input; its rarely used ones stay closed."""
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff",
)  # fmt: skip
COLOUR_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr")
"""Modes of 8 bits or fewer without alpha, which convert to RGB without loss of kind."""


def find_images(folder: Path) -> list[Path]:
    """The image files below a folder, by suffix, in sorted order.

    Raises:
        UserError: the folder is missing, or holds no image.
    """
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist: give a folder of images")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not found:
        raise UserError(
            f"folder {folder} holds no image: expected files that end in "
            f"{', '.join(SUFFIXES)}"
        )
    return found


def read_rgb(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file to RGB, turned as its EXIF orientation says.

    Raises:
        UserError: the file is missing, or see `decode_rgb`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return decode_rgb(data, str(path))


def decode_rgb(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file's bytes to RGB, turned as the EXIF orientation says.

    Args:
        data: the file.
        name: what errors call it.

    Raises:
        UserError: it is no image of an open format, is damaged, or has alpha or more
            than 8 bits a channel; names the image and says what to do.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise UserError(
                    f"{name} has {image.width}x{image.height} pixels, more than the "
                    f"{Image.MAX_IMAGE_PIXELS:,} that are read: cut it into pieces"
                )
            # Pillow reads 16-bit colour as 8-bit; the decoder's arguments tell.
            deep = ";16" in str(image.tile)
            if deep or image.mode not in COLOUR_MODES or image.has_transparency_data:
                kind = "16 bits a channel" if deep else f"mode {image.mode}"
                raise UserError(
                    f"{name} has {kind}: convert it to 8-bit RGB or grey without "
                    "alpha first"
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not an image that can be read: expected one of "
            f"{', '.join(FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} cannot be decoded ({error}): replace it") from error


def to_uint8(image: Float32[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """Clips values to [0, 1] and rounds them to 8 bits: the one place that rounds."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def write_png(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG, whole or not at all; makes its folder.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            Image.fromarray(image).save(temporary, "PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
