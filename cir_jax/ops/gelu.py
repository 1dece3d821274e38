"""The exact GELU, and the gate of gated feed-forward networks.

Both are computed in float32 by the error function, whose expansion is half as long as
that of its complement, and both gradients are written out to keep nothing but the
inputs, which are the widest maps of a network; the automatic ones keep twice as much.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU: x Φ(x), with Φ the normal distribution (1606.08415).

    Args:
        x: any map.

    Returns:
        A map in the type of `x`.
    """
    x32 = x.astype(jnp.float32)
    return (x32 * _normal_cdf(x32)).astype(x.dtype)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    return ((g.astype(jnp.float32) * _slope(x.astype(jnp.float32))).astype(g.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def gated_gelu(
    gate: Float[Array, "*shape"], value: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """gelu(gate) * value.

    Args:
        gate: what goes through the GELU.
        value: what it multiplies.

    Returns:
        The product, in the type of the inputs.
    """
    gate32 = gate.astype(jnp.float32)
    return (gate32 * _normal_cdf(gate32) * value).astype(gate.dtype)


def _gated_forward(gate: Array, value: Array) -> tuple[Array, tuple[Array, Array]]:
    return gated_gelu(gate, value), (gate, value)


def _gated_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    gate, value, g32 = (x.astype(jnp.float32) for x in (*residuals, g))
    d_gate = g32 * value * _slope(gate)
    return d_gate.astype(g.dtype), (g32 * gate * _normal_cdf(gate)).astype(g.dtype)


gated_gelu.defvjp(_gated_forward, _gated_backward)


def _slope(x: Array) -> Array:
    """The derivative of GELU."""
    density = jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5
    return _normal_cdf(x) + x * density


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))
