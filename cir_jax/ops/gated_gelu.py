"""The gate of gated feed-forward networks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def gated_gelu(
    gate: Float[Array, "*shape"], value: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """gelu(gate) * value, with the exact (erf) GELU.

    Computed in float32. The gradient is written out to keep nothing but the two inputs,
    which are the widest maps of a network; the automatic one keeps twice as much.

    Args:
        gate: what goes through the GELU.
        value: what it multiplies.

    Returns:
        The product, in the type of the inputs.
    """
    gate32 = gate.astype(jnp.float32)
    return (gate32 * _normal_cdf(gate32) * value).astype(gate.dtype)


def _forward(gate: Array, value: Array) -> tuple[Array, tuple[Array, Array]]:
    return gated_gelu(gate, value), (gate, value)


def _backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    gate, value, g32 = (x.astype(jnp.float32) for x in (*residuals, g))
    cdf = _normal_cdf(gate)
    density = jnp.exp(-0.5 * gate * gate) * (2 * jnp.pi) ** -0.5
    d_gate = g32 * value * (cdf + gate * density)
    return d_gate.astype(g.dtype), (g32 * gate * cdf).astype(g.dtype)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


gated_gelu.defvjp(_forward, _backward)
