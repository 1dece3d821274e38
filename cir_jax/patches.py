"""Patches of an image, for scores that are of patches."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cir_jax.errors import UserError


def cut_patches(
    image: UInt8[np.ndarray, "h w c"], side: int, path: Path
) -> UInt8[np.ndarray, "n p p c"]:
    """All patches of an image, side by side; what is left at the borders is left out.

    Raises:
        UserError: the image, of this path, is smaller than a patch.
    """
    height, width, channels = image.shape
    rows, columns = height // side, width // side
    if not rows * columns:
        raise UserError(
            f"{path} is {width}x{height} pixels, smaller than a patch of {side}: leave "
            "it out"
        )
    whole = image[: rows * side, : columns * side]
    patches = whole.reshape(rows, side, columns, side, channels).swapaxes(1, 2)
    return patches.reshape(-1, side, side, channels)
