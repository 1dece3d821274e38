"""Bicubic downscaling as MATLAB's imresize does it: the x4 protocol of the papers."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SUPPORT = 2
"""Half the width of the cubic kernel, pixels of the small image."""


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
    height, width, channels = image.shape
    if height % scale or width % scale:
        raise ValueError(f"{width}x{height} pixels are no multiple of {scale}")
    if scale == 1:
        return image
    rim = SUPPORT * scale
    padded = np.pad(image, ((rim, rim), (rim, rim), (0, 0)), mode="symmetric")
    size = (width // scale + 2 * SUPPORT, height // scale + 2 * SUPPORT)
    small = [
        Image.fromarray(padded[..., channel].astype(np.float32)).resize(
            size, Image.Resampling.BICUBIC
        )
        for channel in range(channels)
    ]
    inside = np.stack(small, axis=-1)[SUPPORT:-SUPPORT, SUPPORT:-SUPPORT]
    return np.floor(np.clip(inside, 0, 255) + 0.5).astype(np.uint8)
