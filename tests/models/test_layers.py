import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from twins import arrays

from cir_jax.models import layers

OPTIONS = {"bias": True, "dtype": jnp.float32}


@pytest.mark.parametrize(
    ("make", "fan_in"),
    [
        (lambda rngs: layers.Conv3x3(40, 50, rngs=rngs, **OPTIONS), 360),
        (
            lambda rngs: layers.PointwiseConv(40, 50, rngs=rngs, **OPTIONS),
            40,
        ),
        (lambda rngs: layers.DepthwiseConv(500, rngs=rngs, **OPTIONS), 9),
    ],
)
def test_convolutions_start_as_in_pytorch(make, fan_in):
    layer = make(nnx.Rngs(0))
    for parameter in (layer.kernel[...], layer.bias[...]):
        assert np.abs(parameter).max() <= fan_in**-0.5
        deviation = (3 * fan_in) ** -0.5  # of a uniform within ±1 / sqrt(fan_in)
        assert np.std(parameter) == pytest.approx(deviation, rel=0.2)


def test_down_and_up_change_size_and_width():
    (x,) = arrays((1, 4, 6, 8))
    rngs = nnx.Rngs(0)
    down = layers.Downsample(8, rngs=rngs, dtype=jnp.float32)(x)
    assert down.shape == (1, 2, 3, 16)
    assert layers.Upsample(16, rngs=rngs, dtype=jnp.float32)(down).shape == x.shape
