"""The metrics of `cir_jax.metrics` in float32 for the training loop, to be jitted.

All take batches of images in [0, 1] and give one number an image. They come in two
kinds, told apart by `rounded`:

* True, the default: values are clipped to [0, 1] and rounded to 8 bits, as restored
  images are before the host measures them. The numbers are the host's, PSNR to 1e-4 dB
  and SSIM to 1e-5. The gradient is zero.
* False: values are taken as they are, nothing is clipped and luma stays unrounded: for
  losses. Gradients are finite everywhere, at equal images too.

Not-a-number comes out where it went in, which is how a training that diverged shows.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cir_jax.metrics import BLOCK, PEAK, SSIM_C1, SSIM_C2, SSIM_SIGMA, SSIM_WINDOW

LUMA_WEIGHTS = (65_481, 128_553, 24_966)
LUMA_ONE, LUMA_BLACK = 255_000, 16
"""BT.601 in limited range: luma in 8-bit units is the weighted sum / 255000 + 16."""


def luma(
    image: Float[Array, "b h w 3"], *, rounded: bool = True
) -> Float[Array, "b h w 1"]:
    """Y of BT.601 in limited range, 16/255 to 235/255: see `cir_jax.metrics.luma`.

    Args:
        image: RGB in [0, 1].
        rounded: see the top of this module; then a multiple of 1/255 and the host's,
            but for the 136 colours of 2^24 whose luma is an exact half: here it is
            rounded up.
    """
    levels = _levels(image, rounded)
    if rounded:
        # In whole numbers: float32 would round what lies near a half the other way.
        total = sum(
            weight * levels[..., i].astype(jnp.int32)
            for i, weight in enumerate(LUMA_WEIGHTS)
        )
        y = ((total + LUMA_ONE // 2) // LUMA_ONE + LUMA_BLACK).astype(jnp.float32)
        # Whole numbers know no not-a-number.
        y = jnp.where(jnp.isnan(levels).any(axis=-1), jnp.nan, y)
    else:
        # No matrix product, for which an accelerator may take fewer bits.
        weights = [weight / LUMA_ONE for weight in LUMA_WEIGHTS]
        y = sum(w * levels[..., i] for i, w in enumerate(weights)) + LUMA_BLACK
    return y[..., None] / PEAK


def psnr(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], *, rounded: bool = True
) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio in dB, all channels jointly.

    Args:
        a: images in [0, 1].
        b: of the same shape; either way round.
        rounded: see the top of this module.

    Returns:
        One number an image, float32; infinite (and its gradient 0) if equal.
    """
    return _decibels(_mean((_levels(a, rounded) - _levels(b, rounded)) ** 2))


def psnr_b(
    clean: Float[Array, "b h w c"],
    restored: Float[Array, "b h w c"],
    *,
    rounded: bool = True,
) -> Float[Array, " b"]:
    """PSNR with the blocking effect factor added to the error, in dB.

    See `cir_jax.metrics.psnr_b`.

    Args:
        clean: images in [0, 1], RGB or grey.
        restored: those whose blocking counts.
        rounded: see the top of this module.

    Returns:
        One number an image, float32; infinite (and its gradient 0) if equal and free of
        blocking.
    """
    y = luma(restored, rounded=rounded) if restored.shape[-1] == 3 else restored
    error = _mean((_levels(clean, rounded) - _levels(restored, rounded)) ** 2)
    return _decibels(error + _blocking_effect(_levels(y[..., :1], rounded)))


def _blocking_effect(image: Float[Array, "b h w 1"]) -> Float[Array, " b"]:
    """Blocking effect factor in 8-bit units squared: see `cir_jax.metrics`."""
    _, height, width, _ = image.shape
    borders = height * (width // BLOCK - 1) + width * (height // BLOCK - 1)
    others = height * (width - 1) + width * (height - 1) - borders
    if borders <= 0 or others <= 0:
        return jnp.zeros(len(image), jnp.float32)
    excess = 0.0
    for axis in (1, 2):
        steps = jnp.diff(image, axis=axis) ** 2
        at_border = np.arange(steps.shape[axis]) % BLOCK == BLOCK - 1
        # One weighted mean, so that no two large sums are subtracted.
        weights = np.where(at_border, 1 / borders, -1 / others) * steps[0].size
        shape = [-1 if axis == i else 1 for i in range(4)]
        excess += _mean(steps * weights.reshape(shape).astype(np.float32))
    scale = math.log2(BLOCK) / math.log2(min(height, width))
    return jnp.maximum(excess * scale, 0)


def ssim(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], *, rounded: bool = True
) -> Float[Array, " b"]:
    """Structural similarity, averaged over the valid area and then over channels.

    Wang et al. (TIP 2004), eq. 13, as in `cir_jax.metrics.ssim`.

    Args:
        a: images in [0, 1].
        b: of the same shape; either way round.
        rounded: see the top of this module.

    Returns:
        One number an image, float32, at most 1; 1 to 1e-6 if equal.

    Raises:
        ValueError: a side is shorter than the window of 11 pixels.
    """
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs sides of at least {SSIM_WINDOW} pixels, not {a.shape[1:3]}"
        )
    a, b = _levels(a, rounded), _levels(b, rounded)
    # All three in one array: one program of a third of the size. The variance of a - b
    # is var(a) + var(b) - 2 cov(a, b), without the rounding error of that sum. Columns
    # last, because devices run along the last axis.
    means, variances = _local(jnp.concatenate([a, b, a - b]).transpose(0, 3, 1, 2))
    (mean_a, mean_b, mean_difference) = jnp.split(means, 3)
    (variance_a, variance_b, variance_difference) = jnp.split(variances, 3)
    # What the two factors miss to 1, because the mean of small numbers loses less.
    luminance_loss = mean_difference**2 / (mean_a**2 + mean_b**2 + SSIM_C1)
    structure_loss = variance_difference / (variance_a + variance_b + SSIM_C2)
    return 1 - _mean(luminance_loss + structure_loss - luminance_loss * structure_loss)


def _local(x: Float[Array, "n c h w"]) -> tuple[Array, Array]:
    """Mean and variance in the Gaussian window, at every place where it fits.

    The usual E[x^2] - E[x]^2 loses in float32 what there is in flat areas. Here rows
    are filtered first, then columns, each about its own mean: the variance in the
    window is the mean of the rows' variances plus the variance of the rows' means.
    """
    means, of_rows = _moments(x, 3)
    means, of_means = _moments(means, 2)
    return means, _blur(of_rows, 2) + of_means


_REACH = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
_WEIGHTS = np.exp(-(_REACH**2) / (2 * SSIM_SIGMA**2))
_WEIGHTS = (_WEIGHTS / _WEIGHTS.sum()).astype(np.float32)


def _taps(x: Array, axis: int) -> list[tuple[np.float32, Array]]:
    """The window's weights, each with the array as it sees it along an axis."""
    size = x.shape[axis] - SSIM_WINDOW + 1
    return [
        (weight, jax.lax.slice_in_dim(x, start, start + size, axis=axis))
        for start, weight in enumerate(_WEIGHTS)
    ]


def _weighted_sum(x: Array, axis: int) -> Array:
    return sum(weight * tap for weight, tap in _taps(x, axis))


# The gradients are written out because XLA compiles the automatic ones for minutes and
# they run ten times as long on CPU. The window is symmetric: the gradient filters with
# the same one.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _blur(x: Array, axis: int) -> Array:
    """The windows' means along an axis."""
    return _weighted_sum(x, axis)


def _blur_forward(x: Array, axis: int) -> tuple[Array, None]:
    return _weighted_sum(x, axis), None


def _blur_backward(axis: int, _: None, gradient: Array) -> tuple[Array]:
    return (_weighted_sum(_padded(gradient, axis), axis),)


_blur.defvjp(_blur_forward, _blur_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _moments(x: Array, axis: int) -> tuple[Array, Array]:
    """The windows' means and variances along an axis."""
    # The barrier keeps XLA from summing the mean anew for every tap.
    means = jax.lax.optimization_barrier(_weighted_sum(x, axis))
    return means, sum(weight * (tap - means) ** 2 for weight, tap in _taps(x, axis))


def _moments_forward(x: Array, axis: int) -> tuple[tuple[Array, Array], tuple]:
    means, variances = _moments(x, axis)
    return (means, variances), (x, means)


def _moments_backward(axis: int, residuals: tuple, gradients: tuple) -> tuple[Array]:
    # Through the mean the variance has no gradient: it is the least there.
    x, means = residuals
    taps = (
        _taps(_padded(array, axis), axis)
        for array in (means, gradients[0], gradients[1])
    )
    return (
        sum(
            weight * (to_mean + 2 * to_variance * (x - mean))
            for (weight, mean), (_, to_mean), (_, to_variance) in zip(
                *taps, strict=True
            )
        ),
    )


_moments.defvjp(_moments_forward, _moments_backward)


def _padded(x: Array, axis: int) -> Array:
    """With zeros, so that the window fits wherever it touches."""
    return jnp.pad(
        x, [(SSIM_WINDOW - 1,) * 2 if i == axis else (0, 0) for i in range(4)]
    )


def _levels(image: Float[Array, "b h w c"], rounded: bool) -> Float[Array, "b h w c"]:
    """In 8-bit units, float32: whole numbers if rounded."""
    levels = image.astype(jnp.float32) * PEAK
    return jnp.round(jnp.clip(levels, 0, PEAK)) if rounded else levels


def _mean(x: Float[Array, "b _ _ _"]) -> Float[Array, " b"]:
    """The mean of each image, in two steps so that float32 sums stay small."""
    return x.mean(axis=(2, 3)).mean(axis=1)


def _decibels(error: Float[Array, " b"]) -> Float[Array, " b"]:
    """PSNR in dB of mean squared errors in 8-bit units; infinite for 0."""
    is_zero = error == 0
    # The inner choice keeps the gradient of what is not chosen finite.
    return jnp.where(
        is_zero, jnp.inf, -10 * jnp.log10(jnp.where(is_zero, 1, error) / PEAK**2)
    )
