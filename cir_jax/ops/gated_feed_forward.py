"""Restormer's gated feed-forward network (GDFN, 2111.09881) as one operation."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cir_jax.ops.affine import Affine
from cir_jax.ops.depthwise import depthwise_conv, shifted_sums
from cir_jax.ops.gelu import gated_gelu
from cir_jax.ops.layer_norm import Norm, normalised
from cir_jax.ops.matmul import matmul
from cir_jax.ops.strips import over_strips, strips_of

REGISTER = 8
"""Float32 numbers of a vector register (AVX2); in bfloat16 it is half of one."""


@jax.jit
def gated_feed_forward(
    x: Float[Array, "b h w c"],
    norm: Norm,
    project_in: Affine,
    depthwise: Affine,
    project_out: Affine,
) -> Float[Array, "b h w c"]:
    """X + P(gelu(D(n A)) * D(n B)) with n = norm(x); D filters each channel, 3x3.

    On CPU maps that are too large for its cache are computed in strips, and the norm's
    scale and bias are put into the kernels of A and B.

    Args:
        x: the map.
        norm: of each pixel.
        project_in: to twice the hidden width, A's outputs first, then B's.
        depthwise: kernel 3 3 channels, and bias, of these; zeros outside.
        project_out: P, from the hidden width.

    Returns:
        A map of the same size, in the type of `x`.
    """
    return jax.lax.platform_dependent(
        x, norm, project_in, depthwise, project_out, cpu=in_strips, default=plain
    )


def plain(
    x: Array, norm: Norm, project_in: Affine, depthwise: Affine, project_out: Affine
) -> Array:
    """The operation, of the whole map."""
    n = norm(x)
    gate, value = (
        d.add_bias(depthwise_conv(p(n), d.kernel))
        for p, d in zip(project_in.split(2), depthwise.split(2), strict=True)
    )
    return x + project_out(gated_gelu(gate, value))


def in_strips(
    x: Array, norm: Norm, project_in: Affine, depthwise: Affine, project_out: Affine
) -> Array:
    """The same in strips, or of the whole map where that is but one."""
    hidden = project_out.kernel.shape[0]
    strips = strips_of(x.shape, 2 * hidden * x.dtype.itemsize, halo=1)
    if strips.count == 1:
        return plain(x, norm, project_in, depthwise, project_out)
    # Whole vector registers: Restormer's hidden widths are odd numbers such as 255.
    more = -hidden % REGISTER
    parameters = (
        [norm.before(p).with_zeros(more).matrix for p in project_in.split(2)],
        [d.with_zeros(more) for d in depthwise.split(2)],
        Affine(jnp.pad(project_out.kernel, ((0, more), (0, 0))), project_out.bias),
    )
    function = partial(_of_strip, norm.centres)
    return over_strips(function, strips, (x,), parameters)[0]


def _of_strip(
    centred: bool,
    parameters: tuple[list[Array], list[Affine], Affine],
    strips: tuple[Array],
    row: int | Array,
) -> tuple[Array, tuple]:
    matrices, depthwise, project_out = parameters
    (strip,) = strips
    x, ones = strip[..., :-1], strip[..., -1:]
    # Zeros of the halo stay zeros.
    n = jnp.concatenate([normalised(x, centred), ones], axis=-1)
    gate, value = (
        d.add_bias(shifted_sums(matmul(n, matrix), d.kernel, 0))
        for matrix, d in zip(matrices, depthwise, strict=True)
    )
    return x[:, 1:-1, 1:-1] + project_out(gated_gelu(gate, value)), ()
