import numpy as np
from twins import arrays

from cir_jax.ops.pixel_shuffle import pixel_shuffle, pixel_unshuffle


def test_channels_come_in_the_order_of_pytorch():
    (x,) = arrays((2, 4, 6, 3))
    y = pixel_unshuffle(x)
    assert y.shape == (2, 2, 3, 12)
    for channel in range(3):
        for row in range(2):
            for column in range(2):
                np.testing.assert_array_equal(
                    y[..., channel * 4 + row * 2 + column],
                    x[:, row::2, column::2, channel],
                )


def test_shuffle_undoes_unshuffle():
    (x,) = arrays((1, 6, 9, 2))
    np.testing.assert_array_equal(pixel_shuffle(pixel_unshuffle(x, 3), 3), x)
