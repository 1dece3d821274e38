"""Attention between channels, whose cost is linear in the number of pixels."""

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
    b, h, w, c = v.shape
    heads = temperature.shape[0]
    q, k, v = (x.reshape(b, h * w, heads, c // heads) for x in (q, k, v))

    products = jnp.einsum("bpnd,bpne->bnde", q, k, preferred_element_type=jnp.float32)
    cosines = products * _inverse_norm(q)[..., :, None] * _inverse_norm(k)[..., None, :]
    weights = jax.nn.softmax(cosines * temperature, axis=-1)
    out = jnp.einsum("bnde,bpne->bpnd", weights.astype(v.dtype), v)
    return out.reshape(b, h, w, c)


def _inverse_norm(x: Float[Array, "b p n d"]) -> Float[Array, "b n d"]:
    # The floor is that of torch's `normalize` (1e-12, squared). It stands under the
    # root, whose gradient at zero is infinite.
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1)
    return jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
