"""Restormer's attention between channels (MDTA, 2111.09881) as one operation."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cir_jax.ops.affine import Affine
from cir_jax.ops.depthwise import depthwise_conv, shifted_sums
from cir_jax.ops.matmul import matmul
from cir_jax.ops.strips import over_strips, strips_of
from cir_jax.ops.transposed_attention import (
    channel_products,
    channel_weights,
    transposed_attention,
)


@jax.jit
def multi_dconv_attention(
    x: Float[Array, "b h w c"],
    qkv: Affine,
    depthwise: Affine,
    temperature: Float[Array, "heads 1 1"],
    project_out: Affine,
    queries: Float[Array, "b h w c"] | None = None,
) -> Float[Array, "b h w c"]:
    """Transposed attention of filtered projections of the map, projected.

    On CPU maps that are too large for its cache are computed in strips, and the weights
    are put into the projection's kernel first, which is one product of the map less.

    Args:
        x: the map.
        qkv: to three times the channels: queries, keys, values.
        depthwise: filters these, 3x3; zeros outside.
        temperature: see `transposed_attention`.
        project_out: from the values' channels.
        queries: the map that the queries are made of instead.

    Returns:
        A map of the same size, in the type of `x`.
    """
    return jax.lax.platform_dependent(
        *(x, queries, qkv, depthwise, temperature, project_out),
        cpu=in_strips,
        default=plain,
    )


def plain(
    x: Array,
    queries: Array | None,
    qkv: Affine,
    depthwise: Affine,
    temperature: Array,
    project_out: Affine,
) -> Array:
    """The operation, of the whole map."""
    maps = (x if queries is None else queries, x, x)
    q, k, v = (
        d.add_bias(depthwise_conv(p(y), d.kernel))
        for y, p, d in zip(maps, qkv.split(3), depthwise.split(3), strict=True)
    )
    return project_out(transposed_attention(q, k, v, temperature))


def in_strips(
    x: Array,
    queries: Array | None,
    qkv: Affine,
    depthwise: Affine,
    temperature: Array,
    project_out: Affine,
) -> Array:
    """The same in strips, or of the whole map where it has few pixels."""
    b, h, w, c = x.shape
    heads = len(temperature)
    if b * h * w <= c:
        return plain(x, queries, qkv, depthwise, temperature, project_out)

    strips = strips_of(x.shape, 3 * c * x.dtype.itemsize, halo=1)
    maps = (x,) if queries is None else (x, queries)
    v, sums = over_strips(partial(_of_strip, heads), strips, maps, (qkv, depthwise))
    weights = channel_weights(*sums, temperature).astype(v.dtype)
    kernel = project_out.kernel.reshape(heads, c // heads, -1)
    kernels = jnp.einsum("bnde,ndf->bnef", weights, kernel).reshape(b, c, -1)
    y = jnp.einsum("bpc,bcd->bpd", v.reshape(b, h * w, c), kernels)
    return project_out.add_bias(y.reshape(b, h, w, -1))


def _of_strip(
    heads: int,
    parameters: tuple[Affine, Affine],
    strips: tuple[Array, ...],
    row: int | Array,
) -> tuple[Array, tuple[Array, ...]]:
    maps = (strips[-1], strips[0], strips[0])
    q, k, v = (
        d.add_bias(shifted_sums(matmul(y, p.matrix), d.kernel, 0))
        for y, p, d in zip(maps, *(p.split(3) for p in parameters), strict=True)
    )
    return v, channel_products(q, k, heads)
