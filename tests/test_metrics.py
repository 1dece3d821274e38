import math

import numpy as np
import pytest
from skimage import color
from skimage import metrics as reference

from cir_jax import metrics
from cir_jax.codecs import get_codec


@pytest.fixture(params=[("coffee", 10), ("astronaut", 40), ("brushes", 20)])
def pair(request, photographs):
    """A photograph of odd size and its JPEG."""
    name, quality = request.param
    clean = np.ascontiguousarray(photographs[name][:251, 3:380])
    codec = get_codec("jpeg")
    return clean, codec.decode(codec.encode(clean, quality))


def slow_blocking_effect(image: np.ndarray) -> float:
    """Border by border, from the words of the paper and the published counts."""
    image = image.astype(float)
    height, width = image.shape
    at_border, elsewhere = [], []
    for x in range(width - 1):
        (at_border if x % 8 == 7 else elsewhere).append(image[:, x + 1] - image[:, x])
    for y in range(height - 1):
        (at_border if y % 8 == 7 else elsewhere).append(image[y + 1] - image[y])
    count = height * (width // 8 - 1) + width * (height // 8 - 1)
    total = height * (width - 1) + width * (height - 1)
    border = sum((step**2).sum() for step in at_border) / count
    other = sum((step**2).sum() for step in elsewhere) / (total - count)
    return max(0.0, (border - other) * 3 / math.log2(min(height, width)))


def test_psnr_agrees_with_scikit_image(pair):
    expected = reference.peak_signal_noise_ratio(*pair, data_range=255)
    assert metrics.psnr(*pair) == pytest.approx(expected, abs=1e-9)


def test_ssim_agrees_with_scikit_image(pair):
    expected = reference.structural_similarity(
        *pair,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.ssim(*pair) == pytest.approx(expected, abs=1e-9)


def test_luma_agrees_with_scikit_image(pair):
    expected = np.round(color.rgb2ycbcr(pair[0])[..., :1])
    np.testing.assert_array_equal(metrics.luma(pair[0]), expected)


def test_luma_has_limited_range():
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    np.testing.assert_array_equal(metrics.luma(ends)[..., 0], [[16, 235]])


def test_psnr_b_agrees_with_the_slow_twin(pair):
    clean, restored = pair
    luma = color.rgb2ycbcr(restored)[..., 0].round()
    error = np.mean((clean.astype(float) - restored) ** 2) + slow_blocking_effect(luma)
    expected = 10 * math.log10(255**2 / error)
    assert metrics.psnr_b(clean, restored) == pytest.approx(expected, abs=1e-9)
    assert metrics.psnr_b(clean, restored) < metrics.psnr(clean, restored)


def test_blocking_counts_where_blocks_are():
    blocks = np.zeros((32, 40), np.uint8)
    blocks[:, 8:16] = blocks[:, 24:32] = 10
    assert metrics.blocking_effect(blocks) == pytest.approx(
        slow_blocking_effect(blocks)
    )
    assert metrics.blocking_effect(blocks) > 1
    assert metrics.blocking_effect(np.roll(blocks, 4, axis=1)) == 0


def test_equal_images_are_infinitely_similar(photographs):
    image = photographs["coffee"]
    assert metrics.psnr(image, image) == math.inf
    assert metrics.ssim(image, image) == pytest.approx(1)


def test_ssim_refuses_what_its_window_does_not_fit():
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(np.zeros((10, 40, 3), np.uint8), np.zeros((10, 40, 3), np.uint8))
