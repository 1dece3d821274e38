"""Layer norm over channels that keeps little for its gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5  # PyTorch's, in every network here


@jax.custom_vjp
def layer_norm(
    x: Float[Array, "*b c"], scale: Float[Array, " c"], bias: Float[Array, " c"]
) -> Float[Array, "*b c"]:
    """(x - mean) / sqrt(variance + 1e-5) * scale + bias, over the last axis.

    Statistics are taken in float32. The gradient is written out to keep x and two
    numbers per pixel; the automatic one keeps two more float32 maps.

    Args:
        x: any map, channels last.
        scale: factor of each channel.
        bias: offset of each channel.

    Returns:
        The normalised map, in the type of `x`.
    """
    return _forward(x, scale, bias)[0]


def _forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + EPSILON)
    y = (x32 - mean) * inverse * scale + bias
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _backward(residuals: tuple[Array, ...], g: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = residuals
    normal = (x.astype(jnp.float32) - mean) * inverse
    g = g.astype(jnp.float32)
    gs = g * scale
    along = jnp.mean(gs * normal, axis=-1, keepdims=True)
    dx = (gs - jnp.mean(gs, axis=-1, keepdims=True) - normal * along) * inverse
    pixels = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), jnp.sum(g * normal, pixels), jnp.sum(g, pixels)


layer_norm.defvjp(_forward, _backward)
