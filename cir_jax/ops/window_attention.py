"""Attention inside square windows: plain, shifted (Swin), overlapping (HAT).

Tokens of a window are numbered row by row; windows of a map too.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


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
        overlap: how far a window reaches beyond its own `size` x `size`, at most
            `size`; beyond the map there are zeros.

    Returns:
        (size + 2 * overlap)² tokens for each window.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w, c)
    x = _with_neighbours(x, overlap)  # b h/size side w c
    side = x.shape[2]
    x = x.reshape(b, h // size, side, w // size, size, c).transpose(0, 1, 3, 4, 2, 5)
    x = x.reshape(b * (h // size), w // size, size, side, c)  # columns before rows
    x = _with_neighbours(x, overlap)
    x = x.reshape(b, h // size, w // size, side, side, c).swapaxes(3, 4)
    return x.reshape(b, -1, side * side, c)


def _with_neighbours(x: Array, overlap: int) -> Array:
    """Lengthens strips `b strips size ...` by the ends of those before and after."""
    before = jnp.pad(
        x[:, :-1, x.shape[2] - overlap :], ((0, 0), (1, 0)) + ((0, 0),) * (x.ndim - 2)
    )
    after = jnp.pad(x[:, 1:, :overlap], ((0, 0), (0, 1)) + ((0, 0),) * (x.ndim - 2))
    return jnp.concatenate([before, x, after], axis=2)


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
        regions: for shifted windows (which hold as many keys as queries), the region
            of the map each token comes from: see `shift_regions`.

    Returns:
        The attended values, in the type of `v`.
    """
    heads = bias.shape[0]
    q, k, v = (x.reshape(*x.shape[:3], heads, -1) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bwqnd,bwknd->bwnqk", q * scale, k, preferred_element_type=jnp.float32
    )
    logits += bias
    if regions is not None:
        # Compared here, inside the softmax's fusion: a stored mask would hold
        # tokens² values for each window of the map.
        apart = regions[:, None, :, None] != regions[:, None, None, :]
        logits += jnp.where(apart, -100.0, 0.0)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bwnqk,bwknd->bwqnd", weights, v)
    return out.reshape(*out.shape[:3], -1)


def shift_regions(
    height: int, width: int, size: int, shift: int
) -> Int[Array, "windows tokens"]:
    """Numbers the parts of a map that a cyclic shift brought into one window.

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

    def thirds(length: int) -> np.ndarray:
        return np.digitize(np.arange(length), [length - size, length - shift])

    regions = 3 * thirds(height)[:, None] + thirds(width)[None, :]
    regions = regions.reshape(height // size, size, width // size, size)
    regions = regions.swapaxes(1, 2).reshape(-1, size * size)
    return jnp.asarray(regions, jnp.int8)
