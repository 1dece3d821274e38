"""What travels with an image's pixels: its EXIF, and the colours they stand for."""

import contextlib
import io

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageCms

PICTURE_TAGS = {
    *(270, 271, 272),  # description, make, model
    *(282, 283, 296),  # resolution
    *(305, 306, 315, 316, 33432),  # software, time, artist, computer, copyright
    *(18246, *range(40091, 40096)),  # rating; title, comment, ... as Windows keeps them
    *(ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo),
}
"""EXIF's outermost tags that are kept: those of the picture, not of its storage, which
would be taken for the output's where that is TIFF."""
SIZES = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
"""The colour space in an ICC profile's header, by the mode of the pixels."""
SAME = 1
"""Levels of 255 by which a profile may differ from sRGB and still count as it."""


def exif_of(image: Image.Image) -> tuple[int, bytes | None]:
    """The orientation of an image, and its EXIF without it.

    Left out are what stops being true (orientation, width and height, the thumbnail,
    tags of storage; see `PICTURE_TAGS`) and EXIF that is too broken to be written
    again. Pillow writes texts of inner directories in ASCII, other letters as "?".

    Args:
        image: a loaded image (TIFF is turned by Pillow when it loads).

    Returns:
        The orientation, 1 (upright) to 8; EXIF with its `Exif` heading, or None.
    """
    orientation, data = 1, None
    with contextlib.suppress(Exception):  # broken EXIF makes Pillow raise anything
        exif = image.getexif()
        orientation = exif.pop(ExifTags.Base.Orientation, 1)
        for tag in set(exif) - PICTURE_TAGS:
            del exif[tag]
        keep_letters(exif)
        for tag in SIZES:
            exif.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
        exif.bigtiff = False  # as it is in BigTIFF files, but EXIF never is
        data = exif.tobytes() if len(exif) else None
    return orientation if orientation in range(1, 9) else 1, data


def keep_letters(exif: Image.Exif) -> None:
    """Lets texts of the outermost directory be written again as they were.

    Pillow reads them as Latin-1 and writes them as ASCII, but leaves bytes alone.
    """
    for tag, value in exif.items():
        if isinstance(value, str):
            exif[tag] = value.encode("latin-1")


def fits(icc: bytes | None, mode: str) -> bool:
    """Whether there is a profile, and it speaks of "L", "RGB" or "CMYK" pixels."""
    return bool(icc) and icc[16:20] == SPACES[mode]


def srgb_profile() -> bytes:
    """An ICC profile of sRGB; the same bytes on every day."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + bytes(12) + profile[36:]  # without the time of its making


def to_srgb(
    icc: bytes, mode: str, alpha: bool
) -> tuple[bytes | None, ImageCms.ImageCmsTransform | None]:
    """How pixels become sRGB: relative colorimetric, with black point compensation.

    Args:
        icc: a profile that fits the mode.
        mode: of the pixels: "RGB" or "CMYK".
        alpha: RGB pixels have alpha, which is carried over.

    Returns:
        The profile of the pixels afterwards, and the argument of
        `ImageCms.applyTransform`, which is None where nothing is to be done. A profile
        that maps a grid of colours onto themselves is sRGB, whatever its name: it and
        the pixels stay as they are. One that is broken is dropped.
    """

    def transform(source: str, target: str) -> ImageCms.ImageCmsTransform:
        return ImageCms.buildTransform(
            ImageCms.getOpenProfile(io.BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            source,
            target,
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )

    try:
        if mode == "RGB":
            seen = ImageCms.applyTransform(
                Image.fromarray(_colour_grid()), transform("RGB", "RGB")
            )
            if np.abs(np.int16(seen) - _colour_grid()).max() <= SAME:
                return icc, None
        suffix = "A" if alpha else ""
        return srgb_profile(), transform(mode + suffix, "RGB" + suffix)
    except ImageCms.PyCMSError:
        return None, None


def _colour_grid() -> UInt8[np.ndarray, "27 27 3"]:
    """Every colour of nine levels a channel."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
