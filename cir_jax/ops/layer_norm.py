"""Layer norms over channels that keep little for their gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cir_jax.ops.affine import Affine

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


@jax.custom_vjp
def bias_free_layer_norm(
    x: Float[Array, "*b c"], scale: Float[Array, " c"]
) -> Float[Array, "*b c"]:
    """`layer_norm` that does not centre: x / sqrt(variance + 1e-5) * scale.

    Restormer's "BiasFree" norm; the variance is about the mean, as usual.

    Args:
        x: any map, channels last.
        scale: factor of each channel.

    Returns:
        The map with its variance normalised, in the type of `x`.
    """
    return _bias_free_forward(x, scale)[0]


class Norm(NamedTuple):
    """The parameters of one of the two norms, which is a function of a map.

    Attributes:
        scale: factor of each channel.
        bias: offset of each channel; None for the norm that does not centre.
    """

    scale: Float[Array, " c"]
    bias: Float[Array, " c"] | None = None

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """The normalised map."""
        if self.bias is None:
            return bias_free_layer_norm(x, self.scale)
        return layer_norm(x, self.scale, self.bias)

    @property
    def centres(self) -> bool:
        """Whether it subtracts the mean."""
        return self.bias is not None

    def before(self, layer: Affine) -> Affine:
        """The linear layer that takes what `normalised` gives, in place of the norm."""
        kernel = self.scale[:, None] * layer.kernel
        bias = layer.bias
        if self.bias is not None:
            more = self.bias @ layer.kernel.astype(jnp.float32)
            bias = more if bias is None else bias + more
        return Affine(
            *(
                None if x is None else x.astype(layer.kernel.dtype)
                for x in (kernel, bias)
            )
        )


def normalised(x: Float[Array, "*b c"], centred: bool) -> Float[Array, "*b c"]:
    """A norm without scale and bias, of a map's pixels."""
    ones = jnp.ones(x.shape[-1], jnp.float32)
    return Norm(ones, jnp.zeros_like(ones) if centred else None)(x)


def _forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    x32, mean, inverse = _statistics(x)
    y = (x32 - mean) * inverse * scale + bias
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _bias_free_forward(x: Array, scale: Array) -> tuple[Array, tuple[Array, ...]]:
    x32, mean, inverse = _statistics(x)
    return (x32 * inverse * scale).astype(x.dtype), (x, mean, inverse, scale)


def _statistics(x: Array) -> tuple[Array, Array, Array]:
    x32 = x.astype(jnp.float32)
    mean = _mean(x32)
    return x32, mean, jax.lax.rsqrt(_mean(jnp.square(x32 - mean)) + EPSILON)


def _mean(x: Array) -> Array:
    return jnp.mean(x, axis=-1, keepdims=True)


def _mean_product(x: Array, y: Array) -> Array:
    """The mean of x * y over channels.

    As a product of vectors: the multiplications and sums of a strip such as 34 x 66
    pixels take XLA on CPU ten times as long when they are written out.
    """
    products = jnp.einsum("...c,...c->...", x, y, precision="highest")
    return products[..., None] / x.shape[-1]


def _backward(residuals: tuple[Array, ...], g: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = residuals
    normal = (x.astype(jnp.float32) - mean) * inverse
    g = g.astype(jnp.float32)
    gs = g * scale
    dx = (gs - _mean(gs) - normal * _mean_product(gs, normal)) * inverse
    pixels = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), jnp.sum(g * normal, pixels), jnp.sum(g, pixels)


def _bias_free_backward(residuals: tuple[Array, ...], g: Array) -> tuple[Array, Array]:
    x, mean, inverse, scale = residuals
    x32 = x.astype(jnp.float32)
    y, normal = x32 * inverse, (x32 - mean) * inverse
    g = g.astype(jnp.float32)
    gs = g * scale
    dx = (gs - normal * _mean_product(gs, y)) * inverse
    return dx.astype(x.dtype), jnp.sum(g * y, tuple(range(x.ndim - 1)))


layer_norm.defvjp(_forward, _backward)
bias_free_layer_norm.defvjp(_bias_free_forward, _bias_free_backward)
