import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from twins import arrays

from cir_jax import Restorer, tiling
from cir_jax.models import build_model
from cir_jax.models.pooling import Pool, RecordingPool


def test_means_are_recorded_and_given_in_order():
    x, y = arrays((2, 5, 4, 3), (2, 5, 4, 6))
    recording = RecordingPool()
    for value in (x, y):
        np.testing.assert_allclose(recording(value), value.mean((1, 2), keepdims=True))
        np.testing.assert_array_equal(recording(value), Pool()(value))
    assert [mean.shape for mean in recording.means[::2]] == [(1, 1, 1, 3), (1, 1, 1, 6)]
    for use in (True, False):
        pool = RecordingPool([jnp.ones((1, 1, 1, 3))], use)
        np.testing.assert_array_equal(pool(x) == 1, use)
        np.testing.assert_allclose(pool.means[0], x[:1].mean((1, 2), keepdims=True))


@pytest.mark.parametrize("mixing", ["pixel", "image"])
def test_an_images_own_means_change_nothing(mixing):
    (image,) = arrays((1, 9, 7, 3))
    model = build_model(tiny.UCIP | {"mixing": mixing}, nnx.Rngs(0))
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, image, means, use):
        pool = RecordingPool(means, use)
        return nnx.merge(graph, state)(image, pool=pool), pool.means

    expected, means = run(state, image, [], False)
    again, _ = run(state, image, means, True)
    np.testing.assert_allclose(again, expected, atol=1e-5)
    other, _ = run(state, image, [mean + 0.1 for mean in means], True)
    assert np.abs(other - expected).max() > 1e-3


def test_a_sample_has_the_means_of_its_image(photographs):
    """Much closer to them than its tiles have: here each is of a photograph or two."""
    first, second, third, last = map(np.float32, photographs.values())
    image = np.vstack([np.hstack([first, second]), np.hstack([third, last])]) / 255
    model = build_model(tiny.UCIP | {"scale": 1, "mixing": "pixel"}, nnx.Rngs(0))
    graph, state = nnx.split(model)

    @jax.jit
    def means(state, image):
        pool = RecordingPool()
        nnx.merge(graph, state)(image[None], pool=pool)
        return jnp.concatenate([mean.ravel() for mean in pool.means])

    whole = means(state, image)
    grid = tiling.Grid(256, 256, 32, 8)

    def error(part):
        return float(jnp.abs(means(state, part) - whole).mean())

    corners = [(y, x) for y in (0, 256) for x in (0, 256, 512)]
    tiles = [error(image[y : y + 256, x : x + 256]) for y, x in corners]
    assert error(tiling.sample(image, grid)) < 0.4 * np.mean(tiles)


def test_tiles_take_their_means_from_the_sample(photographs):
    """An image of one texture has the same means everywhere; a seam would not."""
    image = np.tile(photographs["coffee"][:64, :64], (4, 5, 1))
    model = build_model(tiny.UCIP | {"scale": 1, "mixing": "pixel"}, nnx.Rngs(0))
    together = Restorer(model, tile=128)(image)
    model.pools = False
    alone = Restorer(model, tile=128)(image)
    inside = np.s_[80:-80, 80:-80]
    difference = np.abs(np.float32(together[inside]) - alone[inside])
    assert 0 < difference.mean() < 8
