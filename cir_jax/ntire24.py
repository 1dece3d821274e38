"""How PromptCIR's official code restored images for the NTIRE 2024 challenge.

Every checkpoint restores the image and its transpose. These predictions are clipped to
[0, 1] and averaged, all with the same weight, and what comes out is rounded once. Each
is made of square tiles of the padded image, averaged uniformly where they overlap.
"""

import dataclasses
import functools
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Shaped

from cir_jax import tiling, weights
from cir_jax.errors import UserError
from cir_jax.models.layers import RestorationModel
from cir_jax.restore import Image, Restorer

NAME = "promptcir-ntire24"
"""Of the protocol, for the commands' `--protocol`."""
TILE, OVERLAP, MULTIPLE = 384, 96, 32
"""Sides of tiles and of what they share, and what images are padded to; pixels."""


def refuse(flags: Mapping[str, bool]) -> None:
    """Refuses what changes the protocol.

    Args:
        flags: of a command, and whether they are given.

    Raises:
        UserError: one is.
    """
    for flag, given in flags.items():
        if given:
            raise UserError(f"{flag} does not go with --protocol {NAME}: leave one out")


class Ntire24Restorer(Restorer):
    """A `Restorer` that follows the protocol.

    The official code fails where a side of the padded image is at most 96 pixels: such
    an image is restored in one piece, and stderr is told once. One program is compiled
    for each size of tiles. Images are cut by their own size, whatever a call says.

    Args:
        models: shipped names, weights files or workdirs, or models, of one network; two
            in the challenge.
        codec: see `Restorer`.
        device: see `Restorer`.

    Raises:
        UserError: see `Restorer`; or the network is not one that the protocol fits, or
            the files are of different ones.
    """

    def __init__(
        self,
        models: Sequence[str | os.PathLike | RestorationModel],
        codec: str | int | None = None,
        *,
        device: str | None = None,
    ):
        if not all(isinstance(model, nnx.Module) for model in models):
            models = weights.load_alike(models)
        first, *others = models
        super().__init__(first, codec, tile=TILE, device=device)
        if self.scale != 1 or TILE % self.multiple:
            raise UserError(
                f"{NAME} takes networks that keep an image's size and fit tiles of "
                f"{TILE} pixels, not one of scale {self.scale} and multiple "
                f"{self.multiple}: leave the protocol out"
            )
        states = [nnx.to_pure_dict(nnx.state(other, nnx.Param)) for other in others]
        self._others = jax.device_put(states, self._device)
        self._grid = Squares(TILE, TILE, OVERLAP, math.lcm(MULTIPLE, self.multiple))

    @property
    def settings(self) -> dict[str, str]:
        """See `Restorer`."""
        return {
            "padding": "bottom and right, mirrored, to the next multiple of "
            f"{self._grid.step}, by {self._grid.step} where it is one",
            "tiling": f"squares of {TILE} or the padded image's shorter side, overlap "
            f"{OVERLAP}, averaged uniformly; in one piece where that side is at most "
            f"{OVERLAP}, on which the official code fails",
            "self-ensemble": f"{NAME}: every checkpoint x {{identity, transpose}}, "
            "each clipped to [0, 1], averaged, rounded once",
        }

    def on(self, device: jax.Device) -> "Ntire24Restorer":
        """The same on another device; programs are compiled for each."""
        other = super().on(device)
        other._others = jax.device_put(self._others, device)
        return other

    def grid(self, height: int, width: int) -> "Squares":
        """How any image is cut."""
        return self._grid

    common_grid = grid

    def shrink(self) -> bool:
        """Halves how many tiles are restored at a time; False if it is one."""
        return self.batch > 1 and super().shrink()

    def compile(self, height: int, width: int, channels: int = 3) -> None:
        """Makes the programs for images of a size, so that the first call is fast."""
        tile = self._grid.tile(height, width)
        batch = self._batch(height, width)
        for sides in {tile, tile[::-1]}:
            self._program(batch, *sides, channels)

    def _batch(self, height: int, width: int) -> int:
        """How many of an image's tiles are restored at a time."""
        return self.batch if self._grid.side(height, width) else 1

    def _restored(
        self, image: Image, grid: tiling.Grid | None, finished: Callable
    ) -> Image:
        height, width, channels = image.shape
        if min(self._grid.tile(height, width)) <= OVERLAP:
            _tell_of_one_piece()
        predictions = 2 + 2 * len(self._others)
        rows = averaged_rows(
            self._predictions,
            image,
            self._grid,
            self._batch(height, width),
            predictions * channels,
        )
        canvas = np.empty_like(image)
        for y, row in enumerate(rows):
            clipped = np.clip(row.reshape(width, predictions, channels), 0, 1)
            mean = np.einsum("wpc->wc", clipped) / predictions  # faster than np.mean
            canvas[y : y + 1] = finished(mean[None])
        return canvas

    def _predictions(self, tiles: np.ndarray) -> jax.Array:
        """What every checkpoint makes of tiles and of their transposes, as channels."""
        found = []
        for params in (self._params, *self._others):
            checkpoint = self.with_params(params)
            upright, _ = checkpoint._start(tiles, None)
            transposed, _ = checkpoint._start(tiles.swapaxes(1, 2), None)
            found += [upright, transposed.swapaxes(1, 2)]
        return jnp.concatenate(found, axis=-1)


@functools.cache
def _tell_of_one_piece() -> None:
    """Says, once, what the protocol does not have."""
    print(
        f"{NAME} fails on images of which a side is at most {OVERLAP} pixels when "
        "padded: they are restored in one piece",
        file=sys.stderr,
    )


@dataclasses.dataclass(frozen=True)
class Squares(tiling.Grid):
    """The protocol's tiles: squares, or all of an image that is too narrow for them.

    `height` and `width` are their largest sides, `step` is what images are padded to
    the next multiple of.
    """

    def __str__(self) -> str:
        return f"at most {super().__str__()}"

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size of a padded image: larger than the image's, always."""
        return tuple(size + self.step - size % self.step for size in (height, width))

    def tile(self, height: int, width: int) -> tuple[int, int]:
        """The size of an image's tiles."""
        padded = self.padded(height, width)
        side = min(self.height, *padded)
        return (side, side) if side > self.overlap else padded

    def side(self, height: int, width: int) -> int | None:
        """See `Grid`."""
        tile = self.tile(height, width)
        return None if tile == self.padded(height, width) else tile[0]


def averaged_rows(
    run: tiling.Run,
    image: Shaped[np.ndarray, "h w _"],
    grid: Squares,
    batch: int,
    channels: int,
) -> Iterator[Float32[np.ndarray, "w channels"]]:
    """Restores an image tile by tile, and averages where tiles overlap.

    Only as many rows as a tile has are in memory.

    Args:
        run: see `tiling.restore_in_tiles`; what it gives has `channels`.
        image: of any size.
        grid: how it is padded and cut.
        batch: tiles in one run.
        channels: of what is restored.

    Yields:
        The rows of the restored image from the top.
    """
    height, width, _ = image.shape
    tile = grid.tile(height, width)
    rows, columns = (
        np.pad(np.arange(size), (0, padded - size), mode="symmetric")
        for size, padded in zip(
            (height, width), grid.padded(height, width), strict=True
        )
    )
    tops, over_rows = _starts(len(rows), tile[0], grid.overlap)
    lefts, over_columns = _starts(len(columns), tile[1], grid.overlap)
    tiles = (
        image[np.ix_(rows[top : top + tile[0]], columns[left : left + tile[1]])]
        for top in tops
        for left in lefts
    )
    results = tiling.results(run, tiles, batch)
    sums = np.zeros((tile[0], len(columns), channels), np.float32)
    for top, following in itertools.pairwise([*tops, len(rows)]):
        for left in lefts:
            sums[:, left : left + tile[1]] += next(results)
        done = following - top
        for y in range(top, min(following, height)):
            yield (sums[y - top] / (over_rows[y] * over_columns[:, None]))[:width]
        sums[:-done] = sums[done:]
        sums[-done:] = 0


def _starts(
    size: int, tile: int, overlap: int
) -> tuple[list[int], Float32[np.ndarray, " size"]]:
    """Where tiles start along an axis, and how many lie over each of its pixels."""
    starts = [0]
    if size > tile:
        starts = [*range(0, size - tile, tile - overlap), size - tile]
    over = np.zeros(size, np.float32)
    for start in starts:
        over[start : start + tile] += 1
    return starts, over
