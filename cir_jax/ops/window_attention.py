"""The parts of attention inside square windows: plain, shifted and overlapping ones.

Tokens of a window are numbered row by row; windows of a map too. attend_windows.py puts
the parts together.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cir_jax.ops.depthwise import padded_by


def partition(
    x: Float[Array, "b h w c"], size: int
) -> Float[Array, "b windows tokens c"]:
    """Cuts a map into windows of `size` x `size`.

    Args:
        x: a map whose height and width are multiples of `size`.
        size: side of a window, in pixels.

    Returns:
        size² tokens for each of the h * w / size² windows.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c)
    return x.swapaxes(2, 3).reshape(b, -1, size * size, c)


def merge(
    windows: Float[Array, "b windows tokens c"], height: int, width: int
) -> Float[Array, "b {height} {width} c"]:
    """Puts the windows of a map together again: undoes `partition`.

    Args:
        windows: square windows that fill a map of `height` x `width`.
        height: height of the map, in pixels.
        width: width of the map, in pixels.

    Returns:
        The map.
    """
    b, _, tokens, c = windows.shape
    size = round(tokens**0.5)
    x = windows.reshape(b, height // size, width // size, size, size, c)
    return x.swapaxes(2, 3).reshape(b, height, width, c)


def overlapping_partition(
    x: Float[Array, "b h w c"], size: int, overlap: int
) -> Float[Array, "b windows tokens c"]:
    """Cuts a map into windows that reach `overlap` pixels into their neighbours.

    The same as PyTorch's `unfold` with kernel size + 2 * overlap, stride `size` and
    zero padding `overlap`, but made of slices only: a gather's gradient is a scatter,
    which is slow everywhere.

    Args:
        x: a map whose height and width are multiples of `size`.
        size: distance between windows, in pixels.
        overlap: how far a window reaches beyond its own `size` x `size`, at most half
            of `size`; beyond the map there are zeros.

    Returns:
        (size + 2 * overlap)² tokens for each window.
    """
    return overlapping_windows(padded_by(x, overlap), size, overlap)


def overlapping_windows(
    x: Float[Array, "b h w c"], size: int, overlap: int
) -> Float[Array, "b windows tokens c"]:
    """`overlapping_partition` of a map that has its `overlap` pixels of padding."""
    x = _overlapping_strips(x, size, overlap)  # b rows side w c
    b, rows, side, _, c = x.shape
    x = x.reshape(b * rows, side, -1, c).swapaxes(1, 2)  # columns before rows
    x = _overlapping_strips(x, size, overlap)  # b*rows columns side side c
    x = x.swapaxes(2, 3)
    return x.reshape(b, -1, side * side, c)


def _overlapping_strips(x: Array, size: int, overlap: int) -> Array:
    """Cuts `b length ...` into strips of size + 2 * overlap, `size` apart."""
    count = (x.shape[1] - 2 * overlap) // size
    # A strip is its first `size` pixels and the first of the next strip.
    more = size - 2 * overlap
    x = jnp.pad(x, ((0, 0), (0, max(0, more))) + ((0, 0),) * (x.ndim - 2))
    own = x[:, : count * size].reshape(x.shape[0], count, size, *x.shape[2:])
    next_ = x[:, size : (count + 1) * size].reshape(own.shape)[:, :, : 2 * overlap]
    return jnp.concatenate([own, next_], axis=2)


def relative_position_index(size: int, overlap: int = 0) -> Int[np.ndarray, "q k"]:
    """Where each pair of a query and a key finds its entry of the bias table.

    With `overlap` 0 this is Swin's index. With an overlap it is the one of HAT's
    overlapping cross-attention as released: offsets that fall short of the table's
    range give negative numbers, which wrap around the end of the table. Ported weights
    have been trained so.

    Args:
        size: side of the queries' window.
        overlap: how far the keys' window reaches beyond it on each side.

    Returns:
        Indices into a table of (2 * size + 2 * overlap - 1)² rows, for size² queries
        and (size + 2 * overlap)² keys.
    """
    side = size + 2 * overlap
    if overlap:
        difference = np.arange(side)[None, :] - np.arange(size)[:, None]
        difference = difference + size - side + 1
    else:
        difference = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
    rows = difference[:, None, :, None] * (size + side - 1)
    columns = difference[None, :, None, :]
    return (rows + columns).reshape(size**2, side**2)


def window_attention(
    q: Float[Array, "b windows q c"],
    k: Float[Array, "b windows k c"],
    v: Float[Array, "b windows k c"],
    bias: Float[Array, "heads q k"],
    regions: Int[Array, "windows q"] | None = None,
) -> Float[Array, "b windows q c"]:
    """Scaled dot-product attention inside each window.

    Products accumulate, and bias and softmax are taken, in float32.

    Args:
        q: queries; c is a multiple of the number of heads.
        k: keys.
        v: values.
        bias: relative-position bias, added to the logits.
        regions: for shifted windows (which hold as many keys as queries), the part of
            the map each token comes from: see `shift_regions`.

    Returns:
        The attended values, in the type of `v`.
    """
    heads, c = len(bias), v.shape[-1]
    # b windows tokens c -> b windows heads tokens c/heads
    q, k, v = (x.reshape(*x.shape[:3], heads, -1).swapaxes(2, 3) for x in (q, k, v))
    out = _attend(q * q.shape[-1] ** -0.5, k, v, bias, regions)
    return out.swapaxes(2, 3).reshape(*out.shape[:2], -1, c)


@jax.custom_vjp
def _attend(
    q: Array, k: Array, v: Array, bias: Array, regions: Array | None
) -> Float[Array, "b windows heads q d"]:
    return _forward(q, k, v, bias, regions)[0]


def _forward(
    q: Array, k: Array, v: Array, bias: Array, regions: Array | None
) -> tuple[Array, tuple[Array, ...]]:
    logits = _product("bwnqd,bwnkd->bwnqk", q, k) + bias
    if regions is not None:
        # A small product, which is fused with the large one, as a comparison is not on
        # CPU. A stored mask would hold tokens² values for each window of the map.
        own = jax.nn.one_hot(regions, 4, dtype=jnp.float32)  # windows tokens 4
        logits += _product("wqr,wkr->wqk", own, -100 * (1 - own))[:, None]
    # The softmax's division waits until the keys are summed over: there is less to
    # divide, and one map of the keys' size less to write.
    weights = jnp.exp(logits - logits.max(-1, keepdims=True)).astype(v.dtype)
    inverse = 1 / weights.sum(-1, keepdims=True, dtype=jnp.float32)
    out = (_product("bwnqk,bwnkd->bwnqd", weights, v) * inverse).astype(v.dtype)
    return out, (q, k, v, weights, inverse, out)


def _backward(residuals: tuple[Array, ...], g: Array) -> tuple[Array | None, ...]:
    q, k, v, weights, inverse, out = residuals
    g = (g * inverse).astype(v.dtype)
    d_v = _to_keys(weights, g)
    d_weights = _product("bwnqd,bwnkd->bwnqk", g, v)
    # Written as a product it takes XLA on CPU less time than as a sum.
    mean = _product("bwnqd,bwnqd->bwnq", g, out)[..., None]
    d_logits = weights * (d_weights - mean)
    # A product, because XLA sums over leading axes slowly on CPU.
    ones = jnp.ones(d_logits.shape[:2], jnp.float32)
    d_bias = jnp.einsum("bw,bwnqk->nqk", ones, d_logits)
    d_logits = d_logits.astype(v.dtype)
    d_q = _product("bwnqk,bwnkd->bwnqd", d_logits, k)
    d_k = _to_keys(d_logits, q)
    return *(x.astype(v.dtype) for x in (d_q, d_k, d_v)), d_bias, None


def _product(indices: str, x: Array, y: Array) -> Array:
    return jnp.einsum(indices, x, y, preferred_element_type=jnp.float32)


def _to_keys(
    weights: Float[Array, "b windows heads q k"],
    x: Float[Array, "b windows heads q d"],
) -> Float[Array, "b windows heads k d"]:
    """What each key gets of the queries' x."""
    return jax.lax.platform_dependent(
        weights,
        x,
        cpu=_to_keys_on_cpu,
        default=partial(_product, "bwnqk,bwnqd->bwnkd"),
    )


def _to_keys_on_cpu(weights: Array, x: Array) -> Array:
    # XLA's fast products on CPU take no transposed left factor. Here the small maps are
    # transposed instead of the weights; the barriers keep XLA from undoing that.
    x = jax.lax.optimization_barrier(x.swapaxes(-1, -2))
    y = _product("bwndq,bwnqk->bwndk", x, weights)
    return jax.lax.optimization_barrier(y).swapaxes(-1, -2)


_attend.defvjp(_forward, _backward)


def shift_regions(
    height: int, width: int, size: int, shift: int
) -> Int[Array, "windows tokens"]:
    """Numbers the parts of each window that a cyclic shift brought into it, 0 to 3.

    After the shift, the last windows of each row and column hold pixels from opposite
    ends of the map, which must not attend to each other (Swin, 2103.14030).

    Args:
        height: height of the map, in pixels.
        width: width of the map, in pixels.
        size: side of a window.
        shift: by how much the map was rolled up and to the left.

    Returns:
        A region number for each token of each window.
    """
    rows, columns = (np.arange(n) >= n - shift for n in (height, width))
    regions = 2 * rows[:, None] + columns[None, :]
    regions = regions.reshape(height // size, size, width // size, size)
    regions = regions.swapaxes(1, 2).reshape(-1, size * size)
    return jnp.asarray(regions, jnp.int8)
