import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import metrics as reference

from cir_jax import device_metrics, metrics
from cir_jax.codecs import get_codec

TOLERANCES = {"psnr": 1e-4, "psnr_b": 1e-4, "ssim": 1e-5}
CUTS = {"coffee": 1, "astronaut": 40, "brushes": 20}
JITTED = {name: jax.jit(getattr(device_metrics, name)) for name in TOLERANCES}
LUMA = jax.jit(device_metrics.luma)


@pytest.fixture(scope="module")
def cleans(photographs):
    """Parts of odd size of three photographs."""
    return [np.ascontiguousarray(photographs[name][:123, 3:140]) for name in CUTS]


@pytest.fixture(scope="module")
def restoreds(cleans):
    """Their JPEGs, of qualities 1, 40 and 20."""
    codec = get_codec("jpeg")
    return [
        codec.decode(codec.encode(clean, quality))
        for clean, quality in zip(cleans, CUTS.values(), strict=True)
    ]


def batch(images):
    return jnp.asarray(np.stack(images), jnp.float32) / 255


@pytest.mark.parametrize(
    ("name", "channels"), [("psnr", 3), ("ssim", 3), ("psnr_b", 3), ("psnr_b", 1)]
)
def test_each_image_gets_the_number_of_the_host(name, channels, cleans, restoreds):
    cleans, restoreds = (
        [image[..., :channels] for image in images] for images in (cleans, restoreds)
    )
    host = [
        getattr(metrics, name)(*pair) for pair in zip(cleans, restoreds, strict=True)
    ]
    got = JITTED[name](batch(cleans), batch(restoreds))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, host, rtol=0, atol=TOLERANCES[name])


def test_values_agree_with_scikit_image(cleans, restoreds):
    pairs = list(zip(cleans, restoreds, strict=True))
    psnrs = [reference.peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs]
    ssims = [
        reference.structural_similarity(
            *pair,
            data_range=255,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for pair in pairs
    ]
    images = batch(cleans), batch(restoreds)
    np.testing.assert_allclose(JITTED["psnr"](*images), psnrs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(JITTED["ssim"](*images), ssims, rtol=0, atol=1e-5)


def test_ssim_keeps_its_digits_where_images_are_flat_and_bright():
    clean = np.full((3, 123, 137, 3), 250, np.uint8)
    restored = clean.copy()
    restored[:, ::7, ::5] -= 1
    expected = metrics.ssim(clean[0], restored[0])
    got = JITTED["ssim"](batch(clean), batch(restored))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_luma_is_the_host_s_to_the_last_bit():
    # But for 136 of the 2^24 colours, whose luma is an exact half: not among these.
    colours = np.random.default_rng(0).integers(0, 256, (123, 137, 3), np.uint8)
    got = LUMA(batch([colours]))[0]
    np.testing.assert_array_equal(np.round(got * 255), metrics.luma(colours))
    unrounded = device_metrics.luma(batch([colours]), rounded=False)[0]
    assert 0.4 < np.abs(unrounded - got).max() * 255 < 0.501


def test_what_is_restored_is_clipped_and_rounded_as_when_it_is_written(
    cleans, restoreds
):
    clean, restored = batch(cleans), batch(restoreds)
    noise = np.random.default_rng(0).uniform(-0.49 / 255, 0.49 / 255, clean.shape)
    noisy = jnp.asarray(restored + noise, jnp.float32)
    beyond = jnp.where(restored == 1, 1.5, jnp.where(restored == 0, -0.5, noisy))
    for metric in JITTED.values():
        np.testing.assert_array_equal(metric(clean, beyond), metric(clean, restored))
    unrounded = device_metrics.psnr(clean, beyond, rounded=False)
    assert (unrounded < JITTED["psnr"](clean, restored) - 0.1).any()


@pytest.mark.parametrize("name", ["psnr", "psnr_b"])
def test_gradients_are_finite_and_point_uphill(name, cleans, restoreds):
    clean, restored = batch(cleans)[:, :40, :48], batch(restoreds)[:, :40, :48]

    @jax.jit
    def score_and_gradient(x):
        metric = getattr(device_metrics, name)
        return jax.value_and_grad(lambda x: metric(clean, x, rounded=False).sum())(x)

    score, gradient = score_and_gradient(restored)
    step = 1e-3 * gradient / jnp.linalg.norm(gradient)
    gain = score_and_gradient(restored + step)[0] - score
    assert float(gain) == pytest.approx(
        float(jnp.linalg.norm(gradient) * 1e-3), rel=0.02
    )
    assert np.isfinite(score_and_gradient(clean)[1]).all()  # equal images


def test_ssim_s_gradient_is_that_of_the_definition(cleans, restoreds):
    clean, restored = batch(cleans[:1])[:, :19, :23], batch(restoreds[:1])[:, :19, :23]

    @jax.jit
    def gradient(x):
        return jax.grad(lambda x: device_metrics.ssim(clean, x, rounded=False)[0])(x)

    weights = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    window = np.outer(weights, weights)[..., None] / weights.sum() ** 2
    at = np.arange(9)[:, None, None, None] + np.arange(11)[:, None]
    across = np.arange(13)[:, None, None] + np.arange(11)

    def mean(x):
        return (window * x).sum(axis=(2, 3), keepdims=True)

    def plain(x):
        """Each window cut out, and two passes over it."""
        a, b = clean[0, at, across], x[0, at, across]
        off_a, off_b = a - mean(a), b - mean(b)
        luminance = (2 * mean(a) * mean(b) + 1e-4) / (
            mean(a) ** 2 + mean(b) ** 2 + 1e-4
        )
        structure = (2 * mean(off_a * off_b) + 9e-4) / (
            mean(off_a**2) + mean(off_b**2) + 9e-4
        )
        return jnp.mean(luminance * structure)

    expected = jax.jit(jax.grad(plain))(restored)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(gradient(restored), expected, rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(gradient(clean), 0, atol=1e-4 * scale)


def test_equal_images_and_not_a_number(cleans):
    images = batch(cleans)
    broken = images.at[1, 5, 5, 1].set(jnp.nan)
    for name, metric in JITTED.items():
        same = 1 if name == "ssim" else math.inf
        if name != "psnr_b":  # a photograph has some blocking itself
            np.testing.assert_allclose(metric(images, images), same, rtol=1e-6)
        got = metric(images, broken)
        assert np.isnan(got).tolist() == [False, True, False]
    assert np.isnan(LUMA(broken)).sum() == 1
    flat = jnp.full_like(images, 0.5)
    assert np.isinf(JITTED["psnr_b"](flat, flat)).all()


def test_ssim_refuses_what_its_window_does_not_fit():
    with pytest.raises(ValueError, match="at least 11"):
        device_metrics.ssim(jnp.zeros((1, 10, 40, 3)), jnp.zeros((1, 10, 40, 3)))
