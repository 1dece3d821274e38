import jax.numpy as jnp
import numpy as np
import pytest
from twins import arrays, assert_twins

from cir_jax.ops.bicubic import resize_bicubic


def slow_resize(image, height, width):
    """Row by row, then column by column: 4 neighbours, weighted by their distance."""

    def cubic(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def along_rows(image, new):
        old, rows = image.shape[1], []
        for i in range(new):
            centre = (i + 0.5) * old / new - 0.5
            first = int(np.floor(centre)) - 1
            rows.append(
                sum(
                    image[:, min(max(p, 0), old - 1)] * cubic(centre - p)
                    for p in range(first, first + 4)
                )
            )
        return jnp.stack(rows, axis=1)

    tall = along_rows(image, height)
    return along_rows(tall.swapaxes(1, 2), width).swapaxes(1, 2)


@pytest.mark.parametrize("size", [(3, 2), (4, 11)], ids=str)
def test_equals_the_slow_twin(size):
    (image,) = arrays((2, 4, 5, 2))
    assert_twins(
        lambda x: resize_bicubic(x, *size), lambda x: slow_resize(x, *size), image
    )
    from_numpy = resize_bicubic(np.asarray(image), *size)
    np.testing.assert_allclose(from_numpy, resize_bicubic(image, *size), atol=1e-6)


@pytest.mark.parametrize(
    ("new", "weights"),
    [
        # Worked out by hand: the cubic at 1.75, 1.25, 0.75, 0.25 and at 1.5, 0.5.
        (24, {9: -0.03515625, 10: -0.10546875, 11: 0.26171875, 12: 0.87890625}),
        (6, {2: -0.09375, 3: 0.59375}),
    ],
    ids=["twice", "half, not antialiased"],
)
def test_an_impulse_gives_torchs_weights(new, weights):
    image = np.zeros((1, 12, 12, 1), np.float32)
    image[:, 6] = 1
    column = resize_bicubic(image, new, 12)[0, :, 5, 0]
    for row, weight in weights.items():
        assert column[row] == pytest.approx(weight, abs=1e-7)


def test_the_same_size_is_the_same_image():
    (image,) = arrays((1, 6, 7, 3))
    np.testing.assert_array_equal(resize_bicubic(image, 6, 7), image)


def test_a_huge_numpy_image_is_not_copied():
    """This one would take 30 GB; its pixels all lie in the same place."""
    image = np.broadcast_to(np.float32([0.2, 0.5, 0.9]), (1, 50_000, 50_000, 3))
    resized = resize_bicubic(image, 8, 6)
    np.testing.assert_allclose(resized, image[:, :8, :6], rtol=1e-6)
