import numpy as np
import pytest
from scipy import ndimage
from skimage.feature import peak_local_max

from cir_jax import features, metrics
from cir_jax.codecs import get_codec

MEASURES = [features.corner_repeatability, features.edge_agreement]


def luma(image):
    return metrics.luma(image)[..., 0].astype(float)


def slopes(image):
    return np.gradient(ndimage.gaussian_filter(luma(image), 1.0))


def square(size=64, top=16, left=16, value=200):
    image = np.full((size, size, 3), 50, np.uint8)
    image[top : size - 16, left : size - 16] = value
    return image


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (features.corner_repeatability, (0.4, 0.92)),
        (features.edge_agreement, (0.855, 0.987)),
    ],
)
def test_it_falls_as_photographs_are_compressed(photographs, measure, expected):
    codec, means = get_codec("jpeg"), []
    for quality in (10, 20, 40, 80):
        means.append(
            np.mean(
                [
                    measure(image, codec.decode(codec.encode(image, quality)))
                    for image in photographs.values()
                ]
            )
        )
    assert means == sorted(means)
    assert (means[0], means[-1]) == pytest.approx(expected, abs=0.02)
    assert means[1] - means[0] > 0.05 and means[3] - means[2] > 0.02
    assert {measure(image, image) for image in photographs.values()} == {1.0}


def test_the_response_is_that_of_scipy(photographs):
    down, right = slopes(photographs["coffee"])
    a, b, c = (
        ndimage.gaussian_filter(each, 2.0)
        for each in (down * down, right * right, down * right)
    )
    expected = a * b - c**2 - 0.04 * (a + b) ** 2
    found = features.harris(luma(photographs["coffee"]))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-6)


def test_corners_are_the_highest_peaks(photographs):
    image = photographs["astronaut"]
    height, width, _ = image.shape
    marks = features.corners(image)
    peaks = peak_local_max(
        features.harris(luma(image)),
        min_distance=1,
        exclude_border=False,
        num_peaks=height * width // 256,
    )
    assert {*zip(*np.nonzero(marks), strict=True)} == {*map(tuple, peaks)}


def test_repeatability_counts_corners_within_reach(photographs):
    clean, image = photographs["brushes"], np.roll(photographs["brushes"], 1, axis=1)
    places, others = (np.argwhere(features.corners(each)) for each in (clean, image))
    distances = np.linalg.norm(places[:, None] - others[None], axis=-1)
    expected = np.mean(distances.min(axis=1) <= 1.5)
    assert features.corner_repeatability(clean, image) == pytest.approx(expected)
    assert expected > 0.95  # all but those at the seam
    mirrored = np.ascontiguousarray(clean[:, ::-1])
    assert features.corner_repeatability(clean, mirrored) < 0.1


def test_a_square_has_four_corners_and_four_edges():
    image = square()
    corners = np.argwhere(features.corners(image))
    assert len(corners) == 4
    for corner in corners:
        distance = np.abs(corner[:, None] - [16, 47]).min(axis=1)
        assert distance.max() <= 3
    assert features.edge_agreement(image, square(left=17)) > 0.9
    assert 0.4 < features.edge_agreement(image, square(left=26)) < 0.9


@pytest.mark.parametrize("measure", MEASURES)
def test_where_nothing_is_there_to_find(measure):
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert measure(flat, flat) == 1
    assert measure(square(), flat) == 0
    assert features.edge_agreement(flat, square()) == 0
    assert features.corner_repeatability(flat, square()) == 1
    noisy = flat + np.uint8(np.arange(64) % 2)[:, None, None]
    assert measure(flat, noisy) == 1  # slopes of less than a level
