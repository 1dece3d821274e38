"""Attention inside square windows: shifted (Swin), overlapping (HAT).

Each is a whole operation, from the map to the projected values. On CPU maps that are
too large for its cache are computed in strips of windows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cir_jax.ops.affine import Affine
from cir_jax.ops.matmul import matmul
from cir_jax.ops.strips import over_strips, strips_of
from cir_jax.ops.window_attention import (
    merge,
    overlapping_partition,
    overlapping_windows,
    partition,
    shift_regions,
    window_attention,
)


@partial(jax.jit, static_argnames=("size", "shift"))
def attend_windows(
    x: Float[Array, "b h w c"],
    qkv: Affine,
    bias: Float[Array, "heads t t"],
    project_out: Affine,
    size: int,
    shift: int = 0,
) -> Float[Array, "b h w c"]:
    """Self-attention inside windows of `size` x `size` pixels (Swin, 2103.14030).

    Args:
        x: a map whose height and width are multiples of `size`.
        qkv: to three times the channels: queries, keys, values.
        bias: relative-position bias, added to the logits of size² queries and keys.
        project_out: from the values' channels.
        size: side of the windows, pixels.
        shift: by how many pixels the windows are moved down and to the right; pixels
            that a window then gets from opposite ends of the map do not attend to each
            other.

    Returns:
        A map of the same size, in the type of `x`.
    """
    x = jnp.roll(x, (-shift, -shift), axis=(1, 2))
    sizes = {"size": size, "shift": shift}
    x = jax.lax.platform_dependent(
        *(x, qkv, bias, project_out),
        cpu=partial(in_strips, **sizes),
        default=partial(plain, **sizes),
    )
    return jnp.roll(x, (shift, shift), axis=(1, 2))


@partial(jax.jit, static_argnames=("size", "overlap"))
def attend_overlapping_windows(
    x: Float[Array, "b h w c"],
    qkv: Affine,
    bias: Float[Array, "heads t k"],
    project_out: Affine,
    size: int,
    overlap: int,
) -> Float[Array, "b h w c"]:
    """Attention to larger windows than the queries' own (HAT, 2205.04437).

    Keys and values beyond the map are zeros that are not masked: they take their share
    of the softmax.

    Args:
        x: a map whose height and width are multiples of `size`.
        qkv: to three times the channels: queries, keys, values.
        bias: relative-position bias, added to the logits of size² queries and
            (size + 2 overlap)² keys.
        project_out: from the values' channels.
        size: side of the queries' windows, pixels.
        overlap: how far the keys' windows reach beyond these on each side.

    Returns:
        A map of the same size, in the type of `x`.
    """
    sizes = {"size": size, "overlap": overlap}
    return jax.lax.platform_dependent(
        *(x, qkv, bias, project_out),
        cpu=partial(overlapping_in_strips, **sizes),
        default=partial(overlapping_plain, **sizes),
    )


def plain(
    x: Array, qkv: Affine, bias: Array, project_out: Affine, size: int, shift: int
) -> Array:
    """The operation, of the whole map, which is shifted already."""
    regions = shift_regions(*x.shape[1:3], size, shift) if shift else None
    return _attend(x, qkv, bias, project_out, regions, size)


def _attend(
    x: Array,
    qkv: Affine,
    bias: Array,
    project_out: Affine,
    regions: Array | None,
    size: int,
) -> Array:
    _, h, w, _ = x.shape
    tokens = partition(x, size)
    q, k, v = (part(tokens) for part in qkv.split(3))
    return merge(project_out(window_attention(q, k, v, bias, regions)), h, w)


def in_strips(
    x: Array, qkv: Affine, bias: Array, project_out: Affine, size: int, shift: int
) -> Array:
    """The same in strips."""
    strips = strips_of(x.shape, _logits_bytes(bias), unit=size)
    function = partial(_of_strip, size, shift, x.shape[1])
    return over_strips(function, strips, (x,), (qkv, bias, project_out))[0]


def _of_strip(
    size: int,
    shift: int,
    height: int,
    parameters: tuple[Affine, Array, Affine],
    strips: tuple[Array],
    row: int | Array,
) -> tuple[Array, tuple]:
    (x,) = strips
    _, rows, w, _ = x.shape
    regions = None
    if shift:
        windows = (row * w // size**2, rows * w // size**2)
        regions = shift_regions(height, w, size, shift)
        regions = jax.lax.dynamic_slice_in_dim(regions, *windows)
    return _attend(x, *parameters, regions, size), ()


def _logits_bytes(bias: Array) -> int:
    """What the logits take for each query, of all heads; they are float32."""
    heads, _, keys = bias.shape
    return 4 * heads * keys


def overlapping_plain(
    x: Array, qkv: Affine, bias: Array, project_out: Affine, size: int, overlap: int
) -> Array:
    """The operation, of the whole map."""
    q, *others = (part(x) for part in qkv.split(3))
    windows = (overlapping_partition(y, size, overlap) for y in others)
    return _attend_others(q, *windows, bias, project_out, size)


def _attend_others(
    q: Array, k: Array, v: Array, bias: Array, project_out: Affine, size: int
) -> Array:
    """A map of queries and windows of keys and values."""
    out = window_attention(partition(q, size), k, v, bias)
    return merge(project_out(out), *q.shape[1:3])


def overlapping_in_strips(
    x: Array, qkv: Affine, bias: Array, project_out: Affine, size: int, overlap: int
) -> Array:
    """The same in strips."""
    strips = strips_of(x.shape, _logits_bytes(bias), halo=overlap, unit=size)
    function = partial(_of_overlapping_strip, size, overlap)
    return over_strips(function, strips, (x,), (qkv, bias, project_out))[0]


def _of_overlapping_strip(
    size: int,
    overlap: int,
    parameters: tuple[Affine, Array, Affine],
    strips: tuple[Array],
    row: int | Array,
) -> tuple[Array, tuple]:
    qkv, bias, project_out = parameters
    q, *others = (matmul(*strips, part.matrix) for part in qkv.split(3))
    q = q[:, overlap:-overlap, overlap:-overlap]
    windows = (overlapping_windows(y, size, overlap) for y in others)
    return _attend_others(q, *windows, bias, project_out, size), ()
