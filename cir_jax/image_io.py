"""Image files in, decoded whole or refused with a reason; rounding; plain PNG out."""

import contextlib
import dataclasses
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image, ImageCms

from cir_jax import image_arrays, image_files, image_metadata
from cir_jax.errors import UserError
from cir_jax.files import written_whole

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif",
    ".jp2", ".j2k", ".heic", ".heif", ".hif",
)  # fmt: skip
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L")
COLOUR_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr")
PHOTOMETRIC = 262  # the TIFF tag; 0 is grey that counts from white
RGB_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr")
"""Modes of 8 bits or fewer without alpha, which convert to RGB without loss of kind."""
PNG_OPTIONS = {"compress_type": zlib.Z_RLE}
"""Photographs come out 4% larger than by zlib's usual search for what was there before,
in a quarter of the time, which a CPU has for the network; enlarged ones 3%."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded image file, ready for a network, and what its rewriting needs.

    Colours are sRGB. An embedded profile that is another one is converted from, and
    `icc` is then sRGB's: the picture is written as sRGB, because going back would round
    a second time and could not bring back the colours that sRGB does not have. Two
    kinds stay in their own space with their own profile, because a tone curve or wider
    primaries do not hide compression from a network: 16-bit pixels, since ImageCms
    converts 8 bits, and grey, whose profile is a tone curve.

    Attributes:
        pixels: uint8 or uint16, upright (EXIF orientation applied); grey is repeated.
        alpha: of the same dtype, not premultiplied, or None.
        grey: the file was grey, and is written grey again.
        format: Pillow's name of the file's format, such as "JPEG".
        exif: with its `Exif` heading; without orientation, size, thumbnail and
            tags of storage.
        icc: the profile of `pixels`; None if the file had none that fits.
    """

    pixels: image_arrays.Pixels
    alpha: image_arrays.Alpha
    grey: bool
    format: str
    exif: bytes | None
    icc: bytes | None


def find_images(folder: Path) -> list[Path]:
    """The image files below a folder, by suffix, in sorted order.

    Links to folders are not followed. What cannot be read, such as a link to nowhere,
    is among them.

    Raises:
        UserError: the folder is missing, holds no image, or it or a folder below it
            may not be read.
    """
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist: give a folder of images")

    def refuse(error: OSError) -> None:
        raise UserError(
            f"folder {error.filename} cannot be read ({error.strerror}): change its "
            "permissions, or give the folders beside it"
        ) from error

    found = sorted(
        path
        for parent, _, names in os.walk(folder, onerror=refuse)
        for path in (Path(parent, name) for name in names)
        if path.suffix.lower() in SUFFIXES
    )
    if not found:
        raise UserError(
            f"folder {folder} holds no image: expected files that end in "
            f"{', '.join(SUFFIXES)}"
        )
    return found


def find_inputs(start: Path) -> dict[Path, Path]:
    """The image files that a file or a folder stands for.

    Returns:
        Each with its path below the folder; a file with its name.

    Raises:
        UserError: there is no such file or folder, or see `find_images`.
    """
    if start.is_dir():
        return {path: path.relative_to(start) for path in find_images(start)}
    if not start.exists():
        raise UserError(f"{start} does not exist: give image files or folders")
    return {start: Path(start.name)}


def read_picture(
    path: Path,
    *,
    max_pixels: int = image_files.MAX_PIXELS,
    allow_truncated: bool = False,
) -> Picture:
    """Decodes an image file of any open format and most modes.

    The content decides on the format, whatever the name. Of several frames or pages the
    first is read. Palettes and CMYK become RGB, 1 bit becomes 8-bit grey. AVIF, HEIC
    and JPEG 2000 in colour of more than 8 bits are read as 8. At most 7 bytes of memory
    a pixel are in use for 8-bit colour, 3 in the end.

    Args:
        path: the file.
        max_pixels: refuse larger images, before they are decoded.
        allow_truncated: take what there is of a file that breaks off; the rest is grey
            or black. A setting of the whole process: meanwhile other threads' strict
            reads wait or are as lenient.

    Raises:
        UserError: the file cannot be read, is no image of an open format or too large,
            is damaged, or has pixels of another kind.
    """
    remedy = "replace it"
    if not allow_truncated:
        remedy += ", or try --allow-truncated to restore what there is of it"
    with contextlib.ExitStack() as stack:
        if allow_truncated:
            stack.enter_context(image_files.truncated_allowed())
        file = stack.enter_context(image_files.opened_file(path))
        with image_files.opened_image(file, str(path), max_pixels, remedy) as image:
            _check_kind(image, path)
            if image_arrays.is_deep(image):
                fields = _decode_deep(image, file, path)
            else:
                fields = _decode(image)
            orientation, exif = image_metadata.exif_of(image)
            file_format = "JPEG" if image.format == "MPO" else image.format
            image.close()  # frees Pillow's pixels before the arrays are turned
    pixels, alpha, grey, icc = fields
    return Picture(
        image_arrays.upright(pixels, orientation),
        None if alpha is None else image_arrays.upright(alpha, orientation),
        grey,
        file_format,
        exif,
        icc,
    )


def read_size(
    path: Path, *, max_pixels: int = image_files.MAX_PIXELS
) -> tuple[int, int]:
    """Height and width of an image file as stored, from its header alone.

    Raises:
        UserError: see `read_picture`; what lies behind the header is not looked at.
    """
    with (
        image_files.opened_file(path) as file,
        image_files.opened_image(file, str(path), max_pixels, "replace it") as image,
    ):
        return image.height, image.width


def read_rgb(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file to RGB, turned as its EXIF orientation says.

    Raises:
        UserError: the file cannot be read, or see `decode_rgb`.
    """
    with image_files.opened_file(path) as file:
        return _read_rgb(file, str(path))


def decode_rgb(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file's bytes to RGB, turned as the EXIF orientation says.

    The strict reader, for training and scores: nothing is dropped from an image and no
    colour is converted by a profile.

    Args:
        data: the file.
        name: what errors call it.

    Raises:
        UserError: it is no image of an open format, is too large or damaged, or has
            alpha or more than 8 bits a channel; names the image and says what to do.
    """
    return _read_rgb(io.BytesIO(data), name)


def to_uint8(image: Float32[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """Clips values to [0, 1] and rounds them to 8 bits."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_uint16(image: Float32[np.ndarray, "h w c"]) -> UInt16[np.ndarray, "h w c"]:
    """Clips values to [0, 1] and rounds them to 16 bits."""
    return np.round(np.clip(image, 0, 1) * 65535).astype(np.uint16)


def write_png(path: Path, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes a PNG, RGB or grey, whole or not at all; makes its folder.

    Raises:
        UserError: the file cannot be written.
    """
    height, width, _ = image.shape
    stripes = (image[rows] for rows in image_arrays.rows_of(height, width))
    with written(path) as file:
        whole = image_arrays.pack((width, height), stripes)
        whole.save(file, "PNG", **PNG_OPTIONS)


@contextlib.contextmanager
def written(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file to write `path` to, whole or not at all; makes its folder.

    Raises:
        UserError: the file cannot be written; `path` is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary, temporary.open("wb") as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written: {reason}") from error


def _read_rgb(file: io.BufferedIOBase, name: str) -> UInt8[np.ndarray, "h w 3"]:
    limit = image_files.MAX_PIXELS
    with image_files.opened_image(file, name, limit, "replace it") as image:
        deep = image_arrays.is_deep(image)
        if deep or image.mode not in RGB_MODES or image.has_transparency_data:
            kind = "16 bits a channel" if deep else f"mode {image.mode}"
            raise UserError(
                f"{name} has {kind}: convert it to 8-bit RGB or grey without "
                "alpha first"
            )
        pixels, _ = image_arrays.unpack(
            image, "RGB", lambda stripe: stripe.convert("RGB")
        )
        orientation, _ = image_metadata.exif_of(image)
    return image_arrays.upright(pixels, orientation)


Fields = tuple[np.ndarray, np.ndarray | None, bool, bytes | None]
"""Pixels and alpha as the file has them, not turned yet; grey; profile."""


def _check_kind(image: Image.Image, path: Path) -> None:
    """Refuses pixels without an exact counterpart in 8-bit or 16-bit RGB and alpha."""
    raw = image_arrays.raw_mode(image)
    known = image.mode in (*GREY_MODES, *COLOUR_MODES)
    if image_arrays.is_deep(image):
        known = image_arrays.can_unpack_deep(image)
    if not known:
        raise UserError(
            f"{path} has pixels of the kind {raw}: convert it to grey or RGB of 8 or "
            "16 bits a channel first"
        )


def _decode(image: Image.Image) -> Fields:
    """Decodes an image of 8 bits a channel or fewer; colour becomes sRGB."""
    step = {"L;2": 85, "L;4": 17}.get(image_arrays.raw_mode(image))
    if step and "transparency" in image.info:  # Pillow scales up the pixels alone
        image.info["transparency"] *= step
    image.load()
    grey, alpha = image.mode in GREY_MODES, image.has_transparency_data
    bands = ("L" if grey else "RGB") + ("A" if alpha else "")
    base = "L" if grey else "CMYK" if image.mode == "CMYK" else "RGB"
    icc, transform = image.info.get("icc_profile"), None
    if not image_metadata.fits(icc, base):
        icc = None
    elif not grey:
        icc, transform = image_metadata.to_srgb(icc, base, alpha)

    def convert(stripe: Image.Image) -> Image.Image:
        if transform is None:
            return stripe.convert(bands)
        if base != "CMYK":
            stripe = stripe.convert(bands)
        return ImageCms.applyTransform(stripe, transform)

    return *image_arrays.unpack(image, bands, convert), grey, icc


def _decode_deep(image: Image.Image, file: io.BufferedIOBase, path: Path) -> Fields:
    """Decodes an image of 16 bits a channel, in its own colours."""
    grey = image.mode in GREY_MODES or image_arrays.raw_mode(image).startswith("LA")
    white_is_zero = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0
    if image.mode in GREY_MODES:
        pixels, alpha = image_arrays.unpack(image, "I;16", lambda stripe: stripe)
    else:
        pixels, alpha = image_arrays.unpack_deep_colour(
            image, lambda: image_files.open_header(file, str(path))
        )
    if white_is_zero:  # Pillow leaves 16 bits as they are stored
        np.invert(pixels, out=pixels)
    clear = image.info.get("transparency")
    if clear is not None:  # PNG's one colour that means nothing is there
        alpha = np.where((pixels == clear).all(-1), 0, 65535).astype(np.uint16)
    icc = image.info.get("icc_profile")
    fits = image_metadata.fits(icc, "L" if grey else "RGB")
    return pixels, alpha, grey, icc if fits else None
