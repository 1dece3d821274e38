from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from cir_jax import Restorer, image_io, restore, weights
from cir_jax.errors import UserError
from cir_jax.models import build_model


@pytest.fixture(scope="module")
def restorer():
    return Restorer(tiny.Filter())


@pytest.mark.parametrize("shape", [(16, 16), (13, 9), (1, 1), (3, 16)])
def test_any_size_comes_back_in_its_size(restorer, shape):
    image = np.random.default_rng(0).random((*shape, 3), np.float32)
    restored = restorer(image)
    assert restored.shape == image.shape and restored.dtype == np.float32
    eight_bit = restorer(image_io.to_uint8(image))
    assert eight_bit.shape == image.shape and eight_bit.dtype == np.uint8


def test_what_needs_no_padding_is_the_networks_own_output(restorer):
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    expected = tiny.Filter()(jnp.asarray(image[None]))
    np.testing.assert_allclose(restorer(image), expected[0], atol=1e-6)


def test_padding_mirrors_at_the_bottom_and_right(restorer):
    image = np.random.default_rng(0).random((13, 9, 3), np.float32)
    padded = np.concatenate([image, image[:-4:-1]], axis=0)
    padded = np.concatenate([padded, padded[:, :-8:-1]], axis=1)
    assert padded.shape == (16, 16, 3)
    np.testing.assert_array_equal(restorer(image), restorer(padded)[:13, :9])


def test_eight_bits_are_rounded_once(restorer):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    expected = image_io.to_uint8(restorer(np.float32(image) / 255))
    np.testing.assert_array_equal(restorer(image), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float64),
    ],
    ids=lambda image: f"{image.shape}-{image.dtype}",
)
def test_other_arrays_are_refused(restorer, image):
    with pytest.raises(Exception, match=r"image|Type-check"):
        restorer(image)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint8])
def test_strength_is_how_much_of_the_correction_is_applied(dtype):
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    none, half, whole = (
        Restorer(tiny.Filter(), strength=strength)(image)
        for strength in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(none, image, atol=1e-7)
    np.testing.assert_allclose(half, (image + whole) / 2, atol=1e-6)
    pixels = (image * np.iinfo(dtype).max).astype(dtype)
    unchanged = Restorer(tiny.Filter(), strength=0.0)(pixels)
    np.testing.assert_array_equal(unchanged, pixels)


@pytest.mark.parametrize("size", [(16, 16), (13, 40), (150, 70)])
def test_self_ensemble_does_not_mind_how_an_image_is_turned(size):
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    restorer = Restorer(tiny.Filter(), self_ensemble=True, tile=64)
    restored = restorer(image)
    single = Restorer(tiny.Filter(), tile=64)
    assert np.abs(restored - single(image)).max() > 1e-3
    if size == (16, 16):  # no padding, no tiles: nothing else is different
        turned = [np.rot90(image, k)[:, ::f] for k in range(4) for f in (1, -1)]
        back = [
            np.rot90(single(np.ascontiguousarray(x))[:, ::f], -k)
            for x, (k, f) in zip(
                turned, [(k, f) for k in range(4) for f in (1, -1)], strict=True
            )
        ]
        np.testing.assert_allclose(restored, np.mean(back, axis=0), atol=1e-6)
        again = restorer(np.ascontiguousarray(image.swapaxes(0, 1)))
        np.testing.assert_allclose(again, restored.swapaxes(0, 1), atol=1e-6)


@pytest.mark.parametrize("tile", [None, 64])
def test_a_grey_network_restores_the_luma_of_colour(photographs, tile):
    image = np.ascontiguousarray(photographs["coffee"][:100, :136])
    restorer = Restorer(tiny.GreyFilter(), tile=tile)
    values = np.float32(image) / 255
    change = restorer(values) - values
    np.testing.assert_allclose(change[..., :1].repeat(3, -1), change, atol=1e-6)
    y = values @ np.float32([65.481, 128.553, 24.966]) / 255 + np.float32(16 / 255)
    expected = restorer(y[..., None])
    assert expected.shape == (100, 136, 1)
    after = values + change
    y_after = after @ np.float32([65.481, 128.553, 24.966]) / 255 + 16 / 255
    np.testing.assert_allclose(y_after, expected[..., 0], atol=1e-5)
    assert restorer(image).dtype == np.uint8


def test_a_colour_network_takes_no_single_channel(restorer):
    with pytest.raises(UserError, match=r"\[h, w, 3\], got \(8, 8, 1\)"):
        restorer(np.zeros((8, 8, 1), np.uint8))


def test_threads_may_share_a_restorer(restorer):
    images = [
        np.random.default_rng(seed).random((8 * (1 + seed % 3), 16, 3), np.float32)
        for seed in range(12)
    ]
    expected = [restorer(image) for image in images]
    fresh = Restorer(tiny.Filter())
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(fresh, images), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 1.5}, "strength 1.5 is not in 0 to 1"),
        ({"tile": 0}, "tile 0: give at least 1 pixel"),
        ({"device": "tpu:7"}, r"unknown device 'tpu:7': .*known are cpu:0"),
        ({"device": "cpu:99"}, "did you mean 'cpu:0'"),
    ],
)
def test_options_that_make_no_sense_are_named(options, words):
    with pytest.raises(UserError, match=words):
        Restorer(tiny.Filter(), **options)


def test_the_tile_follows_the_memory_that_is_free(monkeypatch, capsys):
    image = np.random.default_rng(0).random((300, 400, 3), np.float32)
    free = {"bytes": 10**12}
    monkeypatch.setattr(Restorer, "_free_memory", lambda self: free["bytes"])
    restorer = Restorer(tiny.Filter())
    expected = restorer(image)
    assert restorer.common_grid(300, 400).width == 400

    grid = restorer.common_grid(300, 400)
    program = restorer._program(1, grid.height, grid.width)
    free["bytes"] = 3 * restore._memory_of(program) // 2  # of which half may be taken
    restorer = Restorer(tiny.Filter())
    assert restorer.common_grid(300, 400).width == 256
    assert "tiles of" not in capsys.readouterr().out
    np.testing.assert_allclose(restorer(image), expected, atol=2e-2)
    free["bytes"] = 1
    assert restorer.common_grid(300, 400).width == restore.LEAST_TILE
    asked = Restorer(tiny.Filter(), tile=304)
    assert asked.common_grid(300, 400).width == 304


def test_severity_is_the_mean_correction_in_levels():
    before = np.full((8, 6, 3), 100, np.uint8)
    after = np.full((8, 6, 3), 104, np.uint8)
    assert restore.severity(before, after) == pytest.approx(4)
    enlarged = np.full((32, 24, 3), 97, np.uint8)
    enlarged[::4] = 109  # on average 100
    assert restore.severity(before, enlarged) == pytest.approx(0)
    deep = before.astype(np.uint16) * 257
    assert restore.severity(deep, deep + 257) == pytest.approx(1)


def test_the_mean_of_several_weights(tmp_path):
    paths = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    model = build_model(tiny.UCIP, nnx.Rngs(0))
    weights.save(paths[0], model, {})
    before = jax.tree.leaves(nnx.state(model, nnx.Param))
    nnx.update(model, jax.tree.map(lambda p: 3 * p + 1, nnx.state(model, nnx.Param)))
    weights.save(paths[1], model, {})
    mean = jax.tree.leaves(nnx.state(weights.load_average(paths), nnx.Param))
    for value, first in zip(mean, before, strict=True):
        np.testing.assert_allclose(value, 2 * first + 0.5, rtol=1e-6, atol=1e-6)

    wider = tmp_path / "wider.safetensors"
    weights.save(wider, build_model(tiny.UCIP | {"bases": 3}, nnx.Rngs(0)), {})
    with pytest.raises(UserError, match="are weights of different models"):
        weights.load_average([paths[0], wider])
