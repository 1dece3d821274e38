import itertools

import numpy as np
import pytest
import tiny

from cir_jax import Restorer, image_io, tiling

GRID = tiling.Grid(height=48, width=64, overlap=16, step=8)
SIZES = [(1, 1), (7, 5), (48, 64), (49, 65), (1, 400), (131, 127), (300, 40)]


def enlarged(tiles, scale):
    return tiles.repeat(scale, axis=1).repeat(scale, axis=2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("scale", "batch"), [(1, 1), (4, 1), (1, 3)])
def test_what_each_tile_gives_back_is_put_where_it_belongs(size, scale, batch):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    shapes = set()

    def run(tiles):
        shapes.add(tiles.shape)
        return np.float32(enlarged(tiles, scale)) / 255

    result = tiling.restore_in_tiles(run, image, GRID, scale, batch, image_io.to_uint8)
    np.testing.assert_array_equal(result, enlarged(image[None], scale)[0])
    assert shapes == {(batch, 48, 64, 3)}


@pytest.mark.parametrize("size", [1, 5, 47, 48, 49, 80, 81, 97, 128, 1000, 4099])
def test_spans_cover_an_axis(size):
    spans = tiling.spans(size, 48, 16, 8)
    assert spans[0].start == 0 and spans[-1].stop == size
    assert not spans[0].fades_in and not spans[-1].fades_out
    for span in spans:
        assert span.origin % 8 == 0 and 0 <= span.origin <= span.start
        assert span.start < span.stop <= span.origin + 48
        assert len(spans) == 1 or span.origin + 48 < size + 8
    for left, right in itertools.pairwise(spans):
        assert left.fades_out and right.fades_in
        assert left.stop - right.start == 16


def test_tiles_that_disagree_fade_into_each_other():
    """Each tile is restored to a grey of its own: no step is left between them."""
    greys = itertools.cycle([0.2, 0.6])

    def run(tiles):
        return np.full(tiles.shape, next(greys), np.float32)

    image = np.zeros((40, 400, 3), np.float32)
    result = tiling.restore_in_tiles(run, image, GRID, 1, 1, lambda x: x)
    assert (result.min(), result.max()) == pytest.approx((0.2, 0.6))
    largest = 0.4 * np.pi / 2 / 16  # the cosine's steepest step
    assert np.abs(np.diff(result, axis=1)).max() <= 1.01 * largest
    np.testing.assert_array_equal(result, np.broadcast_to(result[:1], result.shape))


@pytest.mark.parametrize(
    ("multiple", "tile", "sizes", "expected"),
    [
        (1, 100, (999, 999), (104, 104, 32, 8)),
        (64, 100, (999, 999), (128, 128, 64, 64)),
        (16, 512, (30, 700), (32, 512, 32, 16)),
        (1, 1, (999, 999), (64, 64, 32, 8)),
    ],
)
def test_the_grid_fits_the_network_and_the_images(multiple, tile, sizes, expected):
    assert tiling.grid(multiple, tile, *sizes) == tiling.Grid(*expected)


@pytest.mark.parametrize("size", [(70, 90), (40, 300), (200, 131)])
def test_a_network_that_sees_its_surroundings_alone_is_the_same_in_tiles(size):
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    model = tiny.Filter()
    whole, tiled = (Restorer(model, tile=tile)(image) for tile in (None, 64))
    # Two pixels at a tile's border feel the zeros behind it, with next to no weight.
    np.testing.assert_allclose(tiled, whole, atol=5e-3)
    assert (np.abs(tiled - whole) > 1e-5).mean() < 0.15
    np.testing.assert_array_equal(Restorer(model, tile=304)(image), whole)
