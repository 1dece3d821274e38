"""3x3 convolution, in the form that each kind of device runs fast."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cir_jax.ops.depthwise import padded_by, taps
from cir_jax.ops.matmul import over_pixels

LARGEST = 20e6
"""Bytes of the product at most: where it is larger, memory takes more time than the
slower convolution does."""


@jax.jit
def conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
    """Convolves (cross-correlates) a map; it is zero outside.

    XLA's convolutions on CPU use one core where channels are few. There smaller maps
    are multiplied by the kernel's entries first and what came out is shifted and
    summed, which takes two thirds of the time.

    Args:
        x: the map.
        kernel: rows, columns, input channels, output channels.

    Returns:
        A map of the same size, in the type of `x`.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def plain(x: Array, kernel: Array) -> Array:
    """The convolution as XLA has it."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def on_cpu(x: Array, kernel: Array) -> Array:
    """One matrix product and shifts of what is narrower, in front of it or behind."""
    b, h, w, c = x.shape
    d = kernel.shape[-1]
    narrows = d < c
    product = b * h * w * x.dtype.itemsize * (9 * d if narrows else 3 * max(c, d))
    if product > LARGEST:
        return plain(x, kernel)
    if narrows:
        y = padded_by(x, 1) @ kernel.transpose(2, 0, 1, 3).reshape(c, 9 * d)
        parts = y.reshape(b, h + 2, w + 2, 3, 3, d)
        return sum(
            parts[:, i : i + h, j : j + w, i, j] for i in range(3) for j in range(3)
        )
    y = _columns(x) @ kernel.transpose(1, 2, 0, 3).reshape(3 * c, 3 * d)
    parts = y.reshape(b, h + 2, w, 3, d)
    return sum(parts[:, i : i + h, :, i] for i in range(3))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return on_cpu(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    # Written out because XLA's gradient to the kernel can take ten times as long on
    # CPU: a convolution whose kernel is a whole map. Here what is narrower is laid out
    # as each entry of the kernel meets it, and multiplied by the other. Of two alike it
    # is the gradient's, which serves for both products.
    x, kernel = residuals
    c, d = kernel.shape[2:]
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    if d <= c:
        met = _entries(g)  # b h w 9*d, the last entry first
        d_x = met @ flipped.reshape(9 * d, c)
        d_kernel = over_pixels(x, met).reshape(c, 3, 3, d)[:, ::-1, ::-1]
        d_kernel = d_kernel.transpose(1, 2, 0, 3)
    else:
        d_x = on_cpu(g, flipped)
        d_kernel = over_pixels(_entries(x), g).reshape(kernel.shape)
    return d_x, d_kernel.astype(kernel.dtype)


on_cpu.defvjp(_forward, _backward)


def _columns(x: Array) -> Array:
    """What the kernel's three columns see of a padded map, side by side."""
    padded, w = padded_by(x, 1), x.shape[2]
    return jnp.concatenate([padded[:, :, j : j + w] for j in range(3)], axis=-1)


def _entries(x: Array) -> Array:
    """What each of the kernel's entries sees of a map, side by side."""
    return jnp.concatenate(taps(x, 3, 1), axis=-1)
