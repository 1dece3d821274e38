"""Opening image files that may be anything: too large, damaged, hostile, no image."""

import contextlib
import functools
import io
import re
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError

from cir_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "JPEG2000")
"""Pillow's parsers that are open to input; its rarely used ones stay closed."""
MAX_PIXELS = 300_000_000
"""More than any camera's; to decode 8-bit colour of this size takes 2.1 GB."""

_settings_lock = threading.RLock()


@contextlib.contextmanager
def opened_file(path: Path) -> Iterator[io.BufferedIOBase]:
    """An ordinary file, open to be read.

    Raises:
        UserError: it is missing or empty, is no ordinary file, or may not be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for forever
            raise UserError(f"{path} is not a file: give an image file")
        if status.st_size == 0:
            raise UserError(f"{path} is empty: replace it")
        file = path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        yield file


@contextlib.contextmanager
def opened_image(
    file: io.BufferedIOBase, name: str, max_pixels: int, remedy: str
) -> Iterator[Image.Image]:
    """An image, of which the header is read; what fails in the block is its damage.

    Args:
        file: the file.
        name: what errors call it.
        max_pixels: refuse larger ones.
        remedy: what to do about a damaged file.

    Raises:
        UserError: it is no image of an open format, too large, or cannot be decoded;
            one that is raised in the block passes through.
    """
    try:
        with open_header(file, name) as image:
            if image.width * image.height > max_pixels:
                raise UserError(
                    f"{name} has {image.width}x{image.height} pixels, more than the "
                    f"{max_pixels:,} that are read: cut it into pieces, or raise "
                    "--max-megapixels where there is one"
                )
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not an image that can be read, or breaks off in its header: "
            f"expected one of {', '.join(FORMATS)}, HEIF"
        ) from error
    except Exception as error:  # a hostile file makes a parser raise anything
        reason = str(error) or type(error).__name__
        raise UserError(f"{name} cannot be decoded ({reason}): {remedy}") from error


def open_header(file: io.BufferedIOBase, name: str) -> Image.Image:
    """Lets Pillow read the header, without a limit of size.

    Raises:
        UserError: it is HEIC and the library for it is not installed.
        Exception: what else Pillow raises.
    """
    file.seek(0)
    brand = re.fullmatch(rb".{4}ftyp(hei.|hev.|mif1|msf1)", file.read(12), re.DOTALL)
    heif = brand is not None and _has_heif()
    try:
        with _set(Image, "MAX_IMAGE_PIXELS", sys.maxsize):
            return Image.open(file, formats=[*FORMATS, "HEIF"] if heif else FORMATS)
    except UnidentifiedImageError as error:
        if brand is None or heif:
            raise
        raise UserError(
            f"{name} is a HEIC picture, which needs pillow-heif: "
            "pip install 'cir_jax[heic]'"
        ) from error


@contextlib.contextmanager
def truncated_allowed() -> Iterator[None]:
    """Lets Pillow, in the whole process, take files that break off."""
    with _set(ImageFile, "LOAD_TRUNCATED_IMAGES", True):
        yield


@functools.cache
def _has_heif() -> bool:
    """Adds HEIF to Pillow, if its library is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


@contextlib.contextmanager
def _set(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Sets a variable of Pillow's, which are the whole process's, for a while."""
    with _settings_lock:
        before = getattr(module, name)
        setattr(module, name, value)
        try:
            yield
        finally:
            setattr(module, name, before)
