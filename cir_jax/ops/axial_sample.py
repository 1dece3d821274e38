"""Sampling a map at fractional positions along one axis (UCIP, 2407.13108).

Position p with offset o reads x at p + o, between pixels i = floor(p + o) and i + 1.
Value and gradients are sums over source pixels j, weighted by a function of the
distance t = p + o - j:

    value               max(0, 1 - |t|), the tent of linear interpolation
    gradient to x       the same weights, summed over p instead
    gradient to offset  x[i + 1] - x[i]

and an implementation is one way of taking such sums. A pixel outside the map is a zero.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Weigh = Callable[[Array], Array]

# The tent form takes n multiply-adds a sample on an axis of n pixels; the shift form as
# many as the range of the offsets, after some passes over the map. They meet about here
# by the cycles that the TPU compiler estimates (v5e, 16x64x64x128: 5.4 million against
# 3.5 million for a range of 8 pixels and 1.6 million for every further 8), not timed.
LONGEST_TENT = 64
SHIFTS_PER_STEP = 8


def axial_sample(
    x: Float[Array, "b h w c"],
    offset: Float[Array, "b h w g"],
    axis: int,
    implementation: str | None = None,
) -> Float[Array, "b h w c"]:
    """Samples each channel at p + offset along one axis; the map is zero outside.

    Interpolation is linear, and each of the two neighbours counts as zero when it lies
    outside. Sums are taken in float32. The gradient keeps `x` and `offset` only; that
    to the offset is the right-hand derivative where there are two, at whole numbers.

    Args:
        x: input map.
        offset: by how many pixels to move, any real number. Offset i serves the c / g
            consecutive channels from i * c / g on.
        axis: 1 along the height, 2 along the width.
        implementation: one of `IMPLEMENTATIONS` to insist on it: "gather" (two look-ups
            a sample), "tent" (a contraction over the whole axis; not for large maps
            on CPU, where XLA writes its weights to memory: b h w c times the length of
            the axis) or "shift" (a loop over the whole shifts that occur, so its time
            depends on the data). By default "gather", but on TPU, where look-ups are
            slow, "tent" up to `LONGEST_TENT` pixels and "shift" beyond.

    Returns:
        The sampled map, in the type of `x`.

    Raises:
        ValueError: no such axis or implementation, or offsets that do not fit the map.
    """
    if axis not in (1, 2):
        raise ValueError(f"axis is {axis}: expected 1 (height) or 2 (width)")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"unknown implementation {implementation!r}: "
            f"known are {', '.join(IMPLEMENTATIONS)}"
        )
    if x.shape[:3] != offset.shape[:3] or x.shape[3] % offset.shape[3]:
        raise ValueError(
            f"offsets of shape {offset.shape} for a map of shape {x.shape}: expected "
            "the same batch, height and width, and a number that divides the channels"
        )
    return _sample(x, offset, axis, implementation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _sample(x: Array, offset: Array, axis: int, implementation: str | None) -> Array:
    y = _choose("contract", implementation, axis, _tent)(x, _bounded(offset, x, axis))
    return y.astype(x.dtype)


def _forward(
    x: Array, offset: Array, axis: int, implementation: str | None
) -> tuple[Array, tuple[Array, Array]]:
    return _sample(x, offset, axis, implementation), (x, offset)


def _backward(
    axis: int, implementation: str | None, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, offset = residuals
    bounded = _bounded(offset, x, axis)
    d_x = _choose("transpose", implementation, axis)(g, bounded)
    # The floor makes every distance whole, also that of an offset just below a whole
    # number, whose distance to i would be rounded to 1.
    slope = _choose("contract", implementation, axis, _step)(x, jnp.floor(bounded))
    d_offset = (slope * g).reshape(*offset.shape, -1).sum(-1)
    return d_x.astype(x.dtype), d_offset.astype(offset.dtype)


_sample.defvjp(_forward, _backward)


def _bounded(offset: Array, x: Array, axis: int) -> Array:
    """Brings offsets that lead outside from everywhere to one that just does."""
    n = x.shape[axis]
    return jnp.clip(offset.astype(jnp.float32), -n - 1, n)


def _choose(operation: str, implementation: str | None, *static) -> Callable:
    """The operation of an implementation, or of what suits platform and length."""

    def of(name: str) -> Callable:
        chosen = getattr(_IMPLEMENTATIONS[name], operation)
        return lambda x, offset: chosen(x, offset, *static)

    def by_platform(x: Array, offset: Array) -> Array:
        tpu = "tent" if x.shape[static[0]] <= LONGEST_TENT else "shift"
        return jax.lax.platform_dependent(x, offset, tpu=of(tpu), default=of("gather"))

    return of(implementation) if implementation else by_platform


def _tent(t: Array) -> Array:
    """Weights of linear interpolation, by distance."""
    return jnp.maximum(0, 1 - jnp.abs(t))


def _step(t: Array) -> Array:
    """Weights of x[i + 1] - x[i], by distance in whole pixels."""
    return (t == -1).astype(t.dtype) - (t == 0).astype(t.dtype)


def _per_channel(offset: Array, x: Array) -> Array:
    return jnp.repeat(offset, x.shape[-1] // offset.shape[-1], axis=-1)


def _left(offset: Array, axis: int) -> Array:
    """The pixel i = floor(p + offset), which may lie outside."""
    p = jax.lax.broadcasted_iota(jnp.int32, offset.shape, axis)
    return p + jnp.floor(offset).astype(jnp.int32)


def _gather(x: Array, offset: Array, axis: int, weigh: Weigh) -> Array:
    n = x.shape[axis]
    offset = _per_channel(offset, x)
    left, t = _left(offset, axis), offset - jnp.floor(offset)

    def at(i: Array) -> Array:
        pixel = jnp.take_along_axis(
            x, jnp.clip(i, 0, n - 1), axis, mode="promise_in_bounds"
        )
        return jnp.where((i >= 0) & (i < n), pixel, 0)

    return weigh(t) * at(left) + weigh(t - 1) * at(left + 1)


def _gather_transposed(g: Array, offset: Array, axis: int) -> Array:
    # One scatter of pairs, by hand: the automatic transpose makes two of single values,
    # and a CPU goes through a scatter's indices one after the other.
    n = g.shape[axis]
    t = (offset - jnp.floor(offset))[..., None]
    grouped = g.reshape(*offset.shape, -1)
    pairs = jnp.stack([_tent(t) * grouped, _tent(t - 1) * grouped], axis=4)
    # Two more pixels at either end take what falls outside.
    start = jnp.clip(_left(offset, axis), -2, n) + 2
    shape = list(grouped.shape)
    shape[axis] = n + 4
    batch = (0, 3 - axis, 3)
    dimensions = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(4, 5),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=(axis,),
        operand_batching_dims=batch,
        scatter_indices_batching_dims=batch,
    )
    sums = jax.lax.scatter_add(
        jnp.zeros(shape, jnp.float32),
        start[..., None],
        pairs,
        dimensions,
        mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return jax.lax.slice_in_dim(sums, 2, n + 2, axis=axis).reshape(g.shape)


def _contraction(x: Array, offset: Array, axis: int, weigh: Weigh) -> Array:
    weights = weigh(_distances(_per_channel(offset, x), axis))
    return (weights * jnp.expand_dims(x, axis)).sum(axis + 1)


def _contraction_transposed(g: Array, offset: Array, axis: int) -> Array:
    weights = _tent(_distances(_per_channel(offset, g), axis))
    return (weights * jnp.expand_dims(g, axis + 1)).sum(axis)


def _distances(offset: Array, axis: int) -> Array:
    """All t, with p along `axis` and j along a new axis after it."""
    shape = list(offset.shape)
    shape.insert(axis + 1, offset.shape[axis])
    p = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    j = jax.lax.broadcasted_iota(jnp.int32, shape, axis + 1)
    return jnp.expand_dims(offset, axis + 1) - (j - p)


def _shift(x: Array, offset: Array, axis: int, weigh: Weigh) -> Array:
    n = x.shape[axis]
    padded = _padded(x, axis, n, n + SHIFTS_PER_STEP)
    spread = _per_channel(offset, x)

    def add(first: Array, y: Array) -> Array:
        window = _window(padded, n + first, n, axis)
        for k in range(SHIFTS_PER_STEP):
            pixel = jax.lax.slice_in_dim(window, k, k + n, axis=axis)
            y += weigh(spread - (first + k)) * pixel
        return y

    return _over_shifts(add, x, offset, axis)


def _shift_transposed(g: Array, offset: Array, axis: int) -> Array:
    n, last = g.shape[axis], SHIFTS_PER_STEP - 1
    padded = [
        _padded(a, axis, n + SHIFTS_PER_STEP, n) for a in (g, _per_channel(offset, g))
    ]

    def add(first: Array, d_x: Array) -> Array:
        # Pixel j gets what j - shift took from it.
        start = n + SHIFTS_PER_STEP - first - last
        windows = [_window(a, start, n, axis) for a in padded]
        for k in range(SHIFTS_PER_STEP):
            pixel, moved = (
                jax.lax.slice_in_dim(a, last - k, last - k + n, axis=axis)
                for a in windows
            )
            d_x += _tent(moved - (first + k)) * pixel
        return d_x

    return _over_shifts(add, g, offset, axis)


def _over_shifts(
    add: Callable[[Array, Array], Array], x: Array, offset: Array, axis: int
) -> Array:
    """Sums over every shift j - p that a sample inside the map needs, in steps."""
    n = x.shape[axis]
    left = _left(offset, axis)
    inside = (left >= -1) & (left < n)
    whole = jnp.floor(offset).astype(jnp.int32)
    first = jnp.where(inside, whole, n).min()
    last = jnp.where(inside, whole + 1, -n).max()
    _, total = jax.lax.while_loop(
        lambda state: state[0] <= last,
        lambda state: (state[0] + SHIFTS_PER_STEP, add(*state)),
        (first, jnp.zeros(x.shape, jnp.float32)),
    )
    return total


def _padded(x: Array, axis: int, before: int, after: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return jnp.pad(x, widths)


def _window(x: Array, start: Array, n: int, axis: int) -> Array:
    """The part of a padded map that `SHIFTS_PER_STEP` successive shifts read."""
    return jax.lax.dynamic_slice_in_dim(x, start, n + SHIFTS_PER_STEP - 1, axis)


class _Implementation(NamedTuple):
    """How to take the sums: float32 results of a map of any type, bounded offsets."""

    contract: Callable[[Array, Array, int, Weigh], Array]
    transpose: Callable[[Array, Array, int], Array]


_IMPLEMENTATIONS = {
    "gather": _Implementation(_gather, _gather_transposed),
    "tent": _Implementation(_contraction, _contraction_transposed),
    "shift": _Implementation(_shift, _shift_transposed),
}
IMPLEMENTATIONS = tuple(_IMPLEMENTATIONS)
