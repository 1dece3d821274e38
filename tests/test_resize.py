import numpy as np
import pytest

from cir_jax.resize import downscale, upscale

# MATLAB's weights at 1/4 of the 8 pixels on a side of a small pixel's centre: Keys'
# cubic, 1.5|x|^3 - 2.5|x|^2 + 1 up to 1 and -0.5|x|^3 + 2.5|x|^2 - 4|x| + 2 up to 2, at
# 1/8, 3/8, ... 15/8, over 4; worked out by hand.
SIDE = [987, 745, 399, 93, -49, -75, -45, -7]
WEIGHTS = np.array(SIDE[::-1] + SIDE) / 4096


def imresize(image, factor):
    """MATLAB's algorithm, pixel by pixel: weights, mirrored indices, rows first."""
    stretch = max(1, 1 / factor)

    def cubic(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    def along_rows(image):
        size = len(image)
        mirror = [*range(size), *reversed(range(size))]
        rows = []
        for row in range(round(factor * size)):
            centre = (row + 0.5) / factor - 0.5
            first = int(np.floor(centre - 2 * stretch))
            taps = range(first, first + int(4 * stretch) + 2)
            weights = np.array([cubic((tap - centre) / stretch) for tap in taps])
            pixels = image[[mirror[tap % (2 * size)] for tap in taps]]
            rows.append(np.tensordot(weights / weights.sum(), pixels, 1))
        return np.array(rows)

    resized = along_rows(image.astype(np.float64)).swapaxes(0, 1)
    resized = along_rows(resized).swapaxes(0, 1)
    return np.floor(np.clip(resized, 0, 255) + 0.5)


def assert_same(resized, expected):
    """Equal but for rounding: Pillow keeps floats between the passes, and where a value
    falls on one half, one bit of them decides."""
    assert resized.shape == expected.shape
    difference = np.abs(resized - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002


@pytest.mark.parametrize("phase", range(4))
def test_an_impulse_gives_matlabs_weights(phase):
    """A grey image with one brighter column: the small one holds every 4th weight."""
    image = np.full((64, 64, 1), 100, np.uint8)
    image[:, 32 + phase] = 228
    # Small pixel k is centred between large pixels 4k + 1 and 4k + 2.
    expected = 100 + 128 * np.array(
        [WEIGHTS[32 + phase - (4 * k - 6)] for k in range(7, 10)]
    )
    row = downscale(image, 4)[5, :, 0]
    np.testing.assert_array_equal(row[7:10], np.floor(expected + 0.5))
    assert (row[:6] == 100).all() and (row[11:] == 100).all()


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(12, 24), (48, 60)], ids=str)
def test_downscaling_is_matlabs_also_at_the_borders(photographs, shape, scale):
    image = photographs["coffee"][100:, 100:][: shape[0], : shape[1]]
    assert_same(downscale(image, scale), imresize(image, 1 / scale))


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("shape", [(1, 1), (7, 12)], ids=str)
def test_upscaling_is_matlabs_also_at_the_borders(photographs, shape, scale):
    image = photographs["coffee"][100:, 100:][: shape[0], : shape[1]]
    assert_same(upscale(image, scale), imresize(image, scale))


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="10x8 pixels are no multiple of 4"):
        downscale(np.zeros((8, 10, 3), np.uint8), 4)
