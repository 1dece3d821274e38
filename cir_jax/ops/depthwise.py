"""Depthwise 3x3 convolution, in the form that each kind of device runs fast."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def depthwise_conv3x3(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "3 3 c"],
    method: Literal["shift", "conv"] | None = None,
) -> Float[Array, "b h w c"]:
    """Filters each channel with its own 3x3 kernel; the map is zero outside.

    XLA's grouped convolution is very slow on CPU, where a sum of nine shifted
    multiplies is several times faster; accelerators have good grouped convolutions.
    The default asks for the platform that the code is lowered for, which is not the
    default backend when compiling ahead of time.

    Args:
        x: input map.
        kernel: one 3x3 kernel per channel (cross-correlation, as in every network).
        method: "shift" or "conv" to insist on one form; by default "shift" on CPU and
            "conv" elsewhere.

    Returns:
        The filtered map, in the type of `x`.
    """
    if method == "shift":
        return _shift(x, kernel)
    if method == "conv":
        return _conv(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_shift, default=_conv)


@jax.custom_vjp
def _shift(x: Array, kernel: Array) -> Array:
    return sum(
        tap * kernel[i, j]
        for (i, j), tap in zip(np.ndindex(3, 3), _taps(x), strict=True)
    )


def _shift_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _shift(x, kernel), (x, kernel)


def _shift_backward(
    residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    # Written out because the automatic gradient takes several times as long on CPU: it
    # reads both maps once for each of the nine sums. Here one pass along the width
    # makes all nine.
    x, kernel = residuals
    products = [(tap * gradient).astype(jnp.float32) for tap in _taps(x)]
    sums = jax.lax.reduce(
        products,
        [jnp.float32(0)] * 9,
        lambda a, b: [p + q for p, q in zip(a, b, strict=True)],
        dimensions=(2,),
    )
    d_kernel = jnp.stack(sums).sum(axis=(1, 2)).reshape(kernel.shape)
    return _shift(gradient, kernel[::-1, ::-1]), d_kernel.astype(kernel.dtype)


_shift.defvjp(_shift_forward, _shift_backward)


def _taps(x: Array) -> list[Array]:
    """The map as each of the nine kernel entries sees it, row by row."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + h, j : j + w] for i, j in np.ndindex(3, 3)]


def _conv(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
