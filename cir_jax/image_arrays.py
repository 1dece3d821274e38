"""Pillow's images to arrays and back: grey and colour, alpha, 16 bits, orientation.

Pillow keeps an RGB image at 4 bytes a pixel, and handing it to numpy whole makes two
copies more; here it is copied a stripe at a time.
"""

import re
import sys
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, TiffImagePlugin

BITS, PLANES = 258, 284  # TIFF tags: bits a channel; 2 is a plane a channel
STRIPE = 2**18
"""Pixels that are copied at a time."""
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Pillow's 16-bit raw modes take the high byte in big, little or native order; the one
of the other order takes the low byte."""
ORDERS = {"B": ">", "L": "<", "N": "="}
"""NumPy's names of the same orders."""

for _prefix, _order in ((b"II", "L"), (b"MM", "B")):
    _key = (_prefix, 1, (1,), 1, (16, 16), (2,))  # grey that counts from black; alpha
    TiffImagePlugin.OPEN_INFO[_key] = ("RGBA", f"LA;16{_order}")
"""Lets Pillow open TIFF of 16-bit grey and alpha, as it opens such a PNG."""

Image.core.set_block_size(2**26)
"""Bytes that Pillow asks for at a time. Memory of more than 2**25 goes back to the
system when it is free; Pillow's usual 2**24 pile up, a fifth of a gigabyte."""

Pixels = UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"]
Alpha = UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"] | None


def rows_of(height: int, width: int) -> list[slice]:
    """The stripes of an image, from the top; all but the last of one height."""
    step = max(1, STRIPE // width)
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, in Pillow's words, such as "RGB;16B".

    Args:
        image: opened and not yet loaded.

    Returns:
        The raw mode of Pillow's decoder where it has one, otherwise the image's mode.
    """
    arguments = image.tile[0].args if image.tile else image.mode
    raw = arguments if isinstance(arguments, str) else arguments[0]
    return raw if image.format in ("PNG", "TIFF") else image.mode


def is_deep(image: Image.Image) -> bool:
    """Whether a channel has more than 8 bits, up to 16. Args as in `raw_mode`."""
    if image.format == "TIFF":  # the raw mode of planes that lie apart does not tell
        return bool(8 < np.max(image.tag_v2.get(BITS, 1)) <= 16)
    return re.search(r";(12|16)", f"{image.mode} {raw_mode(image)}") is not None


def can_unpack_deep(image: Image.Image) -> bool:
    """Whether `unpack` or `unpack_deep_colour` takes a deep image. Args as before."""
    planes_apart = image.format == "TIFF" and image.tag_v2.get(PLANES) == 2
    kinds = r"I;16\w?" if planes_apart else r"I;16\w?|(RGB|RGBA|LA);16[BLN]"
    return re.fullmatch(kinds, raw_mode(image)) is not None


def unpack(
    image: Image.Image, bands: str, convert: Callable[[Image.Image], Image.Image]
) -> tuple[Pixels, Alpha]:
    """Copies an image into arrays.

    Args:
        image: any mode.
        bands: what `convert` makes: "L", "LA", "RGB", "RGBA" or "I;16".
        convert: makes such an image of a stripe of this one.

    Returns:
        Pixels, grey repeated three times, and alpha; uint16 for "I;16", else uint8.
    """
    width, height = image.size
    dtype = np.uint16 if bands == "I;16" else np.uint8
    pixels = np.empty((height, width, 3), dtype)
    alpha = np.empty((height, width), dtype) if bands.endswith("A") else None
    for rows in rows_of(height, width):
        stripe = convert(image.crop((0, rows.start, width, rows.stop)))
        values = np.asarray(stripe).reshape(rows.stop - rows.start, width, -1)
        if alpha is not None:
            alpha[rows] = values[..., -1]
            values = values[..., :-1]
        pixels[rows] = values
    return pixels, alpha


def pack(
    size: tuple[int, int],
    stripes: Iterable[UInt8[np.ndarray, "_ w c"] | UInt16[np.ndarray, "_ w 1"]],
) -> Image.Image:
    """Copies arrays into an image.

    Args:
        size: width and height.
        stripes: the rows from the top, some at a time; uint8 of 1 to 4 channels (grey
            or RGB, then alpha), or uint16 of one.
    """
    image, top = None, 0
    for stripe in stripes:
        part = Image.fromarray(stripe[..., 0] if stripe.shape[-1] == 1 else stripe)
        image = image or Image.new(part.mode, size)
        image.paste(part, (0, top))
        top += part.height
    return image


def unpack_deep_colour(
    image: Image.Image, reopen: Callable[[], Image.Image]
) -> tuple[UInt16[np.ndarray, "h w 3"], UInt16[np.ndarray, "h w"] | None]:
    """Decodes a PNG or TIFF of 16-bit colour, or 16-bit grey and alpha, exactly.

    Pillow decodes them to 8 bits, the high bytes: the file is decoded once more for the
    low bytes.

    Args:
        image: opened and not yet loaded; raw mode "RGB;16x", "RGBA;16x" or "LA;16x".
        reopen: opens it once more.
    """
    raw = raw_mode(image)
    if raw.startswith("LA"):  # as many bytes as RGBA: taken as they are
        _decode_as(image, "RGBA")
        pairs = np.array(image).view(f"{ORDERS[raw[-1]]}u2").astype(np.uint16)
        return np.repeat(pairs[..., :1], 3, axis=-1), pairs[..., 1]
    bands = raw.partition(";")[0]
    with reopen() as again:
        _decode_as(again, raw[:-1] + OTHER_BYTE[raw[-1]])
        low, low_alpha = unpack(again, bands, lambda stripe: stripe)
    high, high_alpha = unpack(image, bands, lambda stripe: stripe)
    alpha = None if high_alpha is None else np.uint16(high_alpha) << 8 | low_alpha
    return np.uint16(high) << 8 | low, alpha


def _decode_as(image: Image.Image, raw: str) -> None:
    """Lets an image that is not yet loaded be decoded in another raw mode."""

    def changed(arguments: str | tuple) -> str | tuple:
        return raw if isinstance(arguments, str) else (raw, *arguments[1:])

    image.tile = [tile._replace(args=changed(tile.args)) for tile in image.tile]


def eight_bits(values: UInt16[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Rounds 16 bits to 8."""
    return ((np.uint32(values) + 128) // 257).astype(np.uint8)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors an array [h, w, ...] as an EXIF orientation, 1 to 8, says."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
