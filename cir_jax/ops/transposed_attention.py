"""Attention between channels, whose cost is linear in the number of pixels."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def transposed_attention(
    q: Float[Array, "b h w c"],
    k: Float[Array, "b h w c"],
    v: Float[Array, "b h w c"],
    temperature: Float[Array, "heads 1 1"],
) -> Float[Array, "b h w c"]:
    """Multi-dconv-head transposed attention (MDTA), its core (Restormer, 2111.09881).

    Each head compares its channels with one another: q and k are L2-normalised along
    the pixels, and their c/heads x c/heads cosines, times the temperature, go through a
    softmax over k's channels. The division by the norms is done on that small
    matrix, not on the maps. Products accumulate, and the norms and the softmax are
    taken, in float32.

    Args:
        q: queries; c is a multiple of the number of heads.
        k: keys.
        v: values.
        temperature: the learnt scale of each head's cosines.

    Returns:
        The attended values, in the type of `v`.
    """
    heads = temperature.shape[0]
    weights = channel_weights(*channel_products(q, k, heads), temperature)
    values = _by_head(v, heads)
    out = jnp.einsum("bnde,bpne->bpnd", weights.astype(v.dtype), values)
    return out.reshape(v.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def channel_products(
    q: Float[Array, "b h w c"], k: Float[Array, "b h w c"], heads: int
) -> tuple[
    Float[Array, "b {heads} d d"],
    Float[Array, "b {heads} d"],
    Float[Array, "b {heads} d"],
]:
    """Sums over pixels: each channel of q times each of k, and their squares; float32.

    Those of a map are the sums of its parts'.
    """
    q, k = (_by_head(x, heads) for x in (q, k))
    products = jnp.einsum("bpnd,bpne->bnde", q, k, preferred_element_type=jnp.float32)
    squares = (jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1) for x in (q, k))
    return products, *squares


def _forward(
    q: Array, k: Array, heads: int
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    return channel_products(q, k, heads), (q, k)


def _backward(
    heads: int, residuals: tuple[Array, Array], gradients: tuple[Array, ...]
) -> tuple[Array, Array]:
    # Written out because the automatic one makes both maps channels first and turns
    # them round again.
    d_products, d_q_squares, d_k_squares = gradients
    q, k = (_by_head(x, heads) for x in residuals)

    def gradient(x: Array, other: Array, matrices: Array, d_squares: Array) -> Array:
        y = _times(other, matrices.astype(other.dtype)) + 2 * x * d_squares[:, None]
        return y.astype(x.dtype).reshape(residuals[0].shape)

    return (
        gradient(q, k, d_products.swapaxes(-1, -2), d_q_squares),
        gradient(k, q, d_products, d_k_squares),
    )


def _by_head(x: Array, heads: int) -> Float[Array, "b p n d"]:
    return x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads)


def _times(
    x: Float[Array, "b p n d"], matrices: Float[Array, "b n d e"]
) -> Float[Array, "b p n e"]:
    if x.shape[2] == 1:  # a product as it stands
        return (x[:, :, 0] @ matrices[:, 0])[:, :, None]
    return jnp.einsum("bpnd,bnde->bpne", x, matrices)


channel_products.defvjp(_forward, _backward)


def channel_weights(
    products: Float[Array, "b n d d"],
    q_squares: Float[Array, "b n d"],
    k_squares: Float[Array, "b n d"],
    temperature: Float[Array, "n 1 1"],
) -> Float[Array, "b n d d"]:
    """Of `channel_products`, how much each channel gets of each; sums to 1."""
    cosines = products * _inverse_root(q_squares)[..., :, None]
    cosines *= _inverse_root(k_squares)[..., None, :]
    return jax.nn.softmax(cosines * temperature, axis=-1)


def _inverse_root(squares: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    # The floor is that of torch's `normalize` (1e-12, squared). It stands under the
    # root, whose gradient at zero is infinite.
    return jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
