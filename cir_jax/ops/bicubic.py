"""Bicubic resizing as PyTorch does it, which is how published encoders were fed."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Real

A = -0.75
"""The parameter of Keys' cubic in PyTorch; it is -0.5 in MATLAB, Pillow and JAX."""


def resize_bicubic(
    image: Real[Array | np.ndarray, "b h w c"], height: int, width: int
) -> Float32[Array, "b {height} {width} c"]:
    """Resizes as torch's `interpolate(mode="bicubic", align_corners=False)` does.

    Each new pixel is the weighted sum of 4 x 4 old ones, whatever the scale: nothing
    is antialiased. Beyond the border the last pixel repeats (Keys, 1981, A = -0.75).

    Args:
        image: any values. Of a numpy array only the pixels that count, at most 16 for
            each new one, are copied and go to the device.
        height: of the result, pixels.
        width: of the result, pixels.

    Returns:
        The image at the other size, not clipped; differentiable.
    """
    rows = _weights(image.shape[1], height)
    columns = _weights(image.shape[2], width)
    if isinstance(image, np.ndarray):
        y, x = (np.flatnonzero(weights.any(axis=0)) for weights in (rows, columns))
        image = image[:, y[:, None], x]  # b y x c
        rows, columns = rows[:, y], columns[:, x]
    # Two matrix products, as a gather's gradient is a scatter, slow on accelerators.
    return jnp.einsum(
        "ih,bhwc,jw->bijc",
        rows,
        jnp.asarray(image, jnp.float32),
        columns,
        precision=jax.lax.Precision.HIGHEST,
    )


def _weights(old: int, new: int) -> Float32[np.ndarray, "{new} {old}"]:
    """How much each of the old pixels of an axis counts in each of the new ones."""
    position = (np.arange(new) + 0.5) * old / new - 0.5
    before = np.floor(position).astype(int)
    weights = np.zeros((new, old))
    for pixel in (before - 1, before, before + 1, before + 2):
        d = np.abs(position - pixel)
        near = ((A + 2) * d - (A + 3)) * d**2 + 1
        far = A * (((d - 5) * d + 8) * d - 4)
        inside = np.clip(pixel, 0, old - 1)
        np.add.at(weights, (np.arange(new), inside), np.where(d <= 1, near, far))
    return weights.astype(np.float32)
