"""Tiles: images of any size, restored in bounded memory by one compiled program.

An image is cut into overlapping tiles of one shape. Where two tiles overlap their
results fade into each other; each finished pixel goes to the canvas at once, so that
beside the image and the canvas only single tiles and a strip are ever in memory.
"""

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

BLOCK = 8
"""Tiles start where the 8x8 blocks of most codecs do."""
LEAST_OVERLAP = 32
"""Pixels of the degraded image in which two tiles fade into each other."""
SQUARE = 64
"""Side of the squares of a sample, pixels."""

Run = Callable[[np.ndarray], Any]
"""Tiles [b, h, w, 3] to an array, NumPy's or JAX's, of floats [b, H, W, 3]."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """How images are cut: the sizes are pixels of the degraded image.

    Attributes:
        height: of a tile.
        width: of a tile.
        overlap: of neighbours; the tiles' sides are twice as large at least.
        step: what tiles start at multiples of.
    """

    height: int
    width: int
    overlap: int
    step: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, overlap {self.overlap}"

    def side(self, height: int, width: int) -> int | None:
        """The tiles' longer side, for an image of a size; None if it is not cut."""
        cut = height > self.height or width > self.width
        return max(self.height, self.width) if cut else None


def grid(multiple: int, tile: int, height: int, width: int) -> Grid:
    """The grid for a network and images of at most a size.

    Args:
        multiple: what the network needs sides to be a multiple of.
        tile: largest side of a tile; rounded up to what fits the network.
        height: of the highest image; less than a tile makes the tiles as low.
        width: of the widest image.
    """
    step = math.lcm(multiple, BLOCK)
    overlap = _rounded(LEAST_OVERLAP, step)
    tile = max(_rounded(tile, step), 2 * overlap)
    sides = (min(tile, _rounded(largest, step)) for largest in (height, width))
    return Grid(*sides, overlap, step)


def _rounded(size: int, step: int) -> int:
    """The next multiple."""
    return size + -size % step


@dataclasses.dataclass(frozen=True)
class Span:
    """A tile along one axis.

    Attributes:
        origin: where the tile starts.
        start: where its part in the result starts.
        stop: where that ends; the image may end before.
        fades_in: whether the result fades from the tile before into this one.
        fades_out: whether it fades from this one into the next.
    """

    origin: int
    start: int
    stop: int
    fades_in: bool
    fades_out: bool


def spans(size: int, tile: int, overlap: int, step: int) -> list[Span]:
    """Cuts an axis into tiles.

    Args:
        size: of the image, 1 or more.
        tile: a multiple of `step`.
        overlap: a multiple of `step`.
        step: what the origins are multiples of.

    Returns:
        The tiles in order. Each shares `overlap` pixels of the result with the next.
        The last one starts early enough to end less than a step behind the image, so
        that it sees image and little padding.
    """
    stride = tile - overlap
    count = math.ceil((size - overlap) / stride) if size > tile else 1
    latest = _rounded(max(size - tile, 0), step)
    return [
        Span(
            min(number * stride, latest),
            number * stride,
            min(number * stride + tile, size),
            fades_in=number > 0,
            fades_out=number < count - 1,
        )
        for number in range(count)
    ]


def restore_in_tiles(
    run: Run,
    image: Shaped[np.ndarray, "_ _ _"],
    grid: Grid,
    scale: int,
    batch: int,
    finished: Callable[[np.ndarray], np.ndarray],
) -> Shaped[np.ndarray, "_ _ _"]:
    """Restores an image tile by tile.

    Args:
        run: restores tiles [batch, grid.height, grid.width, 3] of the image's dtype to
            floats that are `scale` times as large. It may return before it is done, as
            JAX's programs do: the next batch is then given before this one is fetched.
        image: of any size; mirrored where a tile goes beyond it.
        grid: how it is cut.
        scale: how much larger the result is.
        batch: tiles in one run; the last run is filled up.
        finished: turns restored values into pixels of the canvas, of the image's dtype.

    Returns:
        The restored image, [scale * h, scale * w, 3], in the image's dtype.
    """
    height, width, channels = image.shape
    rows = spans(height, grid.height, grid.overlap, grid.step)
    columns = spans(width, grid.width, grid.overlap, grid.step)
    tiles = (_cut(image, row, column, grid) for row in rows for column in columns)
    restored = results(run, tiles, batch)
    canvas = np.empty((scale * height, scale * width, channels), image.dtype)
    fade = _fade(scale * grid.overlap)
    above: list[np.ndarray] = []  # of every column, what the row above fades out with
    for row in rows:
        below = []
        left = None
        for number, column in enumerate(columns):
            tile = _used(next(restored), row, column, scale)
            if column.fades_in:
                tile[:, : len(fade)] *= fade[:, None]
                tile[:, : len(fade)] += left
            if column.fades_out:
                left = tile[:, -len(fade) :] * (1 - fade)[:, None]
                tile = tile[:, : -len(fade)]
            if row.fades_in:
                tile[: len(fade)] *= fade[:, None, None]
                tile[: len(fade)] += above[number]
            if row.fades_out:
                below.append(tile[-len(fade) :] * (1 - fade)[:, None, None])
                tile = tile[: -len(fade)]
            y, x = scale * row.start, scale * column.start
            canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = finished(tile)
        above = below
    return canvas


def sample(
    image: Shaped[np.ndarray, "_ _ _"], grid: Grid
) -> Shaped[np.ndarray, "_ _ _"]:
    """A tile's worth of an image that is larger than a tile, from all over it.

    Small squares from an even grid, put side by side: means over them are close to
    those of the whole image.
    """
    rows = _sampled(image.shape[0], grid.height, grid.step)
    columns = _sampled(image.shape[1], grid.width, grid.step)
    return image[np.ix_(rows, columns)]


def _sampled(size: int, tile: int, step: int) -> np.ndarray:
    """Which rows, or columns, are in the sample."""
    if size <= tile:
        return np.pad(np.arange(size), (0, tile - size), mode="symmetric")
    origins = np.linspace(0, size - SQUARE, math.ceil(tile / SQUARE)) // step * step
    return np.int64(origins[:, None] + np.arange(SQUARE)).ravel()[:tile]


def _cut(image: np.ndarray, row: Span, column: Span, grid: Grid) -> np.ndarray:
    """A tile of an image, mirrored at the bottom and right where the image ends."""
    rows = slice(row.origin, row.origin + grid.height)
    columns = slice(column.origin, column.origin + grid.width)
    tile = image[rows, columns]
    missing = [(0, grid.height - tile.shape[0]), (0, grid.width - tile.shape[1])]
    return np.pad(tile, [*missing, (0, 0)], mode="symmetric")


def _used(tile: np.ndarray, row: Span, column: Span, scale: int) -> np.ndarray:
    """The part of a restored tile that the result is made of."""
    rows, columns = (
        slice(scale * (span.start - span.origin), scale * (span.stop - span.origin))
        for span in (row, column)
    )
    return tile[rows, columns]


def _fade(length: int) -> Float32[np.ndarray, " length"]:
    """The weight of the later of two tiles: half a period of a raised cosine."""
    phase = (np.arange(length) + 0.5) / length
    return np.float32(np.sin(np.pi / 2 * phase) ** 2)


def results(
    run: Run, tiles: Iterable[np.ndarray], batch: int
) -> Iterator[Float32[np.ndarray, "_ _ _"]]:
    """The restored tiles, one by one; one run is under way while another is used."""
    tiles = iter(tiles)
    running: deque[tuple[int, Any]] = deque()
    while group := list(itertools.islice(tiles, batch)):
        filler = [group[0]] * (batch - len(group))
        running.append((len(group), run(np.stack(group + filler))))
        if len(running) > 1:
            yield from _fetched(*running.popleft())
    if running:
        yield from _fetched(*running.popleft())


def _fetched(count: int, restored: Any) -> list[Float32[np.ndarray, "_ _ _"]]:
    """The first results of a run, in memory that may be written to."""
    return list(np.array(restored)[:count])
