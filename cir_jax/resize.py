"""Bicubic resizing as MATLAB's imresize does it: the x4 protocol of the papers."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SUPPORT = 2
"""Half the width of the cubic kernel, pixels of the small image."""


def modcrop(
    image: UInt8[np.ndarray, "h w c"], scale: int
) -> UInt8[np.ndarray, "_ _ c"]:
    """An image without the last rows and columns that are no multiple of the scale."""
    height, width = (size // scale * scale for size in image.shape[:2])
    return image[:height, :width]


def downscale(
    image: UInt8[np.ndarray, "h w c"], scale: int
) -> UInt8[np.ndarray, "_ _ c"]:
    """Shrinks an image by a whole number, antialiased.

    Keys' cubic kernel (a = -0.5) stretched by the scale, borders mirrored with the edge
    pixel repeated, rounded once: MATLAB's `imresize(im2double(image), 1 / scale)`. The
    kernel is Pillow's, on floats; Pillow's own borders are not MATLAB's, so the mirror
    is put there first.

    Args:
        image: 8-bit pixels; both sides multiples of the scale.
        scale: how many pixels become one, along each side.

    Returns:
        The image of h / scale by w / scale pixels.

    Raises:
        ValueError: a side is no multiple of the scale.
    """
    height, width, _ = image.shape
    if height % scale or width % scale:
        raise ValueError(f"{width}x{height} pixels are no multiple of {scale}")
    if scale == 1:
        return image
    return _resized(image, (height // scale, width // scale), rim=SUPPORT * scale)


def upscale(
    image: UInt8[np.ndarray, "h w c"], scale: int
) -> UInt8[np.ndarray, "_ _ c"]:
    """Enlarges an image by a whole number: MATLAB's `imresize(image, scale)`.

    Args:
        image: 8-bit pixels.
        scale: into how many pixels one is spread, along each side.

    Returns:
        The image of scale * h by scale * w pixels.
    """
    height, width, _ = image.shape
    if scale == 1:
        return image
    return _resized(image, (scale * height, scale * width), rim=SUPPORT)


def _resized(
    image: UInt8[np.ndarray, "h w c"], shape: tuple[int, int], rim: int
) -> UInt8[np.ndarray, "_ _ c"]:
    """Bicubic at another size; `rim` pixels of mirror image on every side."""
    padded = np.pad(image, ((rim, rim), (rim, rim), (0, 0)), mode="symmetric")
    # The rim comes out at the new size, too, and is cut off.
    height, width = shape
    y, x = (rim * new // old for new, old in zip(shape, image.shape, strict=False))
    resized = [
        Image.fromarray(padded[..., channel].astype(np.float32)).resize(
            (width + 2 * x, height + 2 * y), Image.Resampling.BICUBIC
        )
        for channel in range(image.shape[-1])
    ]
    inside = np.stack(resized, axis=-1)[y : y + height, x : x + width]
    return np.floor(np.clip(inside, 0, 255) + 0.5).astype(np.uint8)
