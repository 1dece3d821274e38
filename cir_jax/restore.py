"""Using a model: `Restorer`, a function from arrays to restored arrays."""

import copy
import functools
import itertools
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from flax import nnx
from jaxtyping import Float32, UInt8, UInt16

from cir_jax import image_io, tiling, weights
from cir_jax.device_metrics import luma
from cir_jax.encoders.dinov2 import DINOv2
from cir_jax.errors import UserError, unknown
from cir_jax.image_arrays import rows_of
from cir_jax.models.layers import RestorationModel
from cir_jax.models.pooling import RecordingPool
from cir_jax.ops.enlarge import enlarge
from cir_jax.semantics import SemanticEncoder
from cir_jax.symmetries import TURNS, turned, turned_back

Pixels = UInt8[np.ndarray, "_ _ _"] | UInt16[np.ndarray, "_ _ _"]
Image = Pixels | Float32[np.ndarray, "_ _ _"]
LEAST_TILE = 64
"""Pixels a side; a device without memory for that cannot be helped."""
SHARE = 0.5
"""Of the free memory, what a program may take."""
BATCH_AXES = {"codec": 0, "semantics": 1}
"""Of what models are told beside the images."""


class Restorer:
    """A function from images to restored images, of any size.

    What is at most a tile large is padded at the bottom and right by mirroring to the
    model's multiple, only when needed, restored in one piece, and cropped. Larger
    images are restored in tiles (see tiling.py), in memory that does not grow with
    them. One program is compiled per padded size, and one for all images that are cut
    alike. Threads may share a restorer.

    Args:
        model: a shipped name, a weights file, a workdir, or a model; by default the
            weights that ship.
        codec: name or number of the codec that made the images, for models that can be
            told.
        tile: largest side in pixels of what is restored in one piece; None for images
            of any size in one piece, as measuring wants it. By default the model's, or
            less where the device's free memory asks for that.
        strength: how much of the correction is applied, 0 to 1.
        self_ensemble: restore the 8 flips and rotations of an image and average what
            they give; takes 8 times as long.
        device: "cpu", "gpu" or "tpu", or one of several such as "gpu:1"; JAX's default
            when None.
        dinov2: what models that are guided by a DINOv2 are told of each image: its
            weights file, the network, or a function from an image to [4, 1, d] tokens.

    Raises:
        UserError: there is no such model or device, the model does not know the codec,
            wants a DINOv2 that is not given or is given one that does not fit, or a
            number is out of range.
    """

    def __init__(
        self,
        model: str | os.PathLike | RestorationModel = "default",
        codec: str | int | None = None,
        *,
        tile: int | Literal["default"] | None = "default",
        strength: float = 1.0,
        self_ensemble: bool = False,
        device: str | None = None,
        dinov2: str | os.PathLike | DINOv2 | Callable | None = None,
    ):
        if not isinstance(model, nnx.Module):
            model = weights.load(model)
        if not 0 <= strength <= 1:
            raise UserError(f"strength {strength} is not in 0 to 1")
        if tile not in (None, "default") and tile < 1:
            raise UserError(f"tile {tile}: give at least 1 pixel")
        self.scale, self.multiple = model.scale, model.multiple
        self.channels = model.channels
        self.known_codecs, self.self_ensemble = model.known_codecs, self_ensemble
        self.codec, self._codec_index = codec, model.codec_index
        self._semantics = SEMANTICS.get(getattr(model, "semantics", ""))
        self._told = {"codec": np.zeros(1, np.int32)} if self.known_codecs else {}
        if codec is not None:
            self._told = self.telling(codec)._told
        self._encoder = None
        if dinov2 is not None:
            given = isinstance(dinov2, (str, os.PathLike, DINOv2))
            self._encoder = SemanticEncoder(dinov2, model) if given else dinov2
        elif model.semantic_dim:
            raise UserError(
                f"these weights are guided by a DINOv2 of width {model.semantic_dim}, "
                "which is no part of them: give its file, --dinov2 model.safetensors "
                "(facebook/dinov2-base on Hugging Face for 768)"
            )
        if model.semantic_dim:
            tokens = np.zeros((4, 1, model.semantic_dim), np.float32)
            self._told = self._told | {"semantics": tokens}
        self._asked_tile = tile
        self.tile = model.tile if tile == "default" else tile
        graphdef, params = nnx.split(model, nnx.Param)
        self._params = nnx.to_pure_dict(params)
        self._device = None if device is None else find_device(device)
        if self._device:
            self._params = jax.device_put(self._params, self._device)
        platform = self._device.platform if self._device else jax.default_backend()
        self.batch = 1 if platform == "cpu" else 4  # one keeps a CPU busy
        self._programs: dict[tuple[Any, ...], Any] = {}

        def apply(params, told, images, means, use_means):
            model = nnx.merge(graphdef, params)
            known = {
                name: jnp.repeat(value, len(images), axis=BATCH_AXES[name])
                for name, value in told.items()
            }
            pool = RecordingPool(means, use_means)
            pools = {"pool": pool} if model.pools else {}
            grey = images.shape[-1] > model.channels
            seen = luma(images, rounded=False) if grey else images
            restored = model(seen, **known, **pools).astype(jnp.float32)
            if grey:  # of colour only the luma is restored: as much for R, G and B
                change = (restored - enlarge(seen, model.scale)) * (255 / 219)
                restored = enlarge(images, model.scale) + change
            if strength != 1:
                start = enlarge(images, model.scale)
                restored = start + strength * (restored - start)
            return restored, pool.means

        self._apply = jax.jit(apply)
        self._no_means = []
        if model.pools:
            side = self.multiple
            smallest = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
            given = (self._told, smallest, self._no_means, False)
            _, means = jax.eval_shape(apply, self._params, *given)
            self._no_means = [np.zeros(mean.shape, mean.dtype) for mean in means]

    @property
    def settings(self) -> dict[str, str]:
        """How images are restored, in words, for an evaluation's protocol."""
        return {
            "padding": "bottom and right, mirrored, to the network's multiple",
            "tiling": str(self.tile or "none"),
            "self-ensemble": "8 flips and rotations" if self.self_ensemble else "no",
        } | ({"semantics": self._semantics} if self._semantics else {})

    def with_params(self, params: Mapping[str, Any]) -> "Restorer":
        """The same model with other parameters; compiled programs are shared."""
        other = copy.copy(self)
        other._params = params
        return other

    def telling(self, codec: str | int) -> "Restorer":
        """The same for images of another codec; compiled programs are shared.

        Raises:
            UserError: the model does not know the codec, or cannot be told any.
        """
        other = copy.copy(self)
        other.codec = codec
        number = np.array([self._codec_index(codec)], np.int32)
        other._told = self._told | {"codec": number}
        return other

    def on(self, device: jax.Device) -> "Restorer":
        """The same on another device; programs are compiled for each."""
        other = self.with_params(jax.device_put(self._params, device))
        other._device = device
        return other

    def grid(self, height: int, width: int) -> tiling.Grid | None:
        """How an image of a size is cut into tiles; None if it is not cut."""
        if self.tile is None or max(height, width) <= self.tile:
            return None
        return self.common_grid(height, width)

    def common_grid(self, height: int, width: int) -> tiling.Grid:
        """One grid for all images up to a size, as large as the device's memory allows.

        Its program is compiled. Unless the tile was asked for, it is halved until the
        program fits into half of the memory that is free.
        """
        while True:
            tile = self.tile or max(height, width)
            grid = tiling.grid(self.multiple, tile, height, width)
            if self._asked_tile != "default":
                return grid
            needed = _memory_of(self._program(self.batch, grid.height, grid.width))
            if needed <= SHARE * self._free_memory() or not self.shrink():
                return grid

    def shrink(self) -> bool:
        """Halves what is restored at a time, and says so; False if it is the least."""
        if self.batch > 1:
            self.batch //= 2
        elif self.tile and self.tile // 2 >= LEAST_TILE:
            self.tile //= 2
        else:
            return False
        tiles = f"{self.batch} tile(s) of {self.tile} pixels"
        print(f"not enough memory: {tiles} at a time now", file=sys.stderr)
        return True

    def compile(self, height: int, width: int, channels: int = 3) -> None:
        """Makes the program for images of a size, so that the first call is fast."""
        grid = self.grid(height, width)
        if grid:
            self._program(self.batch, grid.height, grid.width, channels)
        else:
            padded = (size + -size % self.multiple for size in (height, width))
            self._program(1, *padded, channels)

    def __call__(self, image: Image, grid: tiling.Grid | None = None) -> Image:
        """Restores one image.

        Args:
            image: uint8, uint16, or float32 in [0, 1]; [h, w, 3], RGB, of which a grey
                network restores the luma (BT.601); or [h, w, 1] for a grey network.
            grid: how to cut it; by default `grid` of its size.

        Returns:
            [scale * h, scale * w, c] in the dtype that came in: integers clipped and
            rounded, float32 unclipped.

        Raises:
            UserError: the array is no such image.
            jax.errors.JaxRuntimeError: above all, the device's memory is too small.
        """
        check_image(image, self.channels)
        grid = grid or self.grid(*image.shape[:2])
        finished = FINISHED[image.dtype]
        return self._seeing(image)._restored(image, grid, finished)

    def _seeing(self, image: Image) -> "Restorer":
        """The same for what one image shows, where the model is guided by that."""
        if self._encoder is None:
            return self
        other = copy.copy(self)
        other._told = self._told | {"semantics": self._encoder(image)}
        return other

    def _restored(
        self, image: Image, grid: tiling.Grid | None, finished: Callable
    ) -> Image:
        """Restores an image that has been checked; see `tiling.restore_in_tiles`."""
        height, width, _ = image.shape
        turns = TURNS if self.self_ensemble else TURNS[:1]
        if not grid:
            padding = [(0, -size % self.multiple) for size in (height, width)]
            padded = np.pad(image, [*padding, (0, 0)], mode="symmetric")
            restored = np.asarray(self._run(dict.fromkeys(turns), padded[None]))[0]
            return finished(restored[: self.scale * height, : self.scale * width])
        means = dict.fromkeys(turns)
        if self._no_means and (height > grid.height or width > grid.width):
            # As large a batch as of tiles, so that their program does.
            sample = np.stack([tiling.sample(image, grid)] * self.batch)
            means = {turn: self._start(turned(sample, turn), None)[1] for turn in turns}
        run = functools.partial(self._run, means)
        return tiling.restore_in_tiles(
            run, image, grid, self.scale, self.batch, finished
        )

    def _run(self, means: Mapping[int, Any], images: np.ndarray) -> Any:
        """Restores a batch of one size, turned in all ways that `means` has."""
        if len(means) == 1:
            return self._start(images, means[0])[0]
        total: Any = 0.0
        for turn, given in means.items():
            restored = np.asarray(self._start(turned(images, turn), given)[0])
            total = total + turned_back(restored, turn)
        return total / np.float32(len(means))

    def _start(self, images: np.ndarray, means: Any) -> tuple[jax.Array, Any]:
        """Starts the program; `means` of a whole image in place of the batch's own."""
        if images.dtype != np.float32:
            images = np.float32(images) / np.float32(np.iinfo(images.dtype).max)
        program = self._program(*images.shape)
        use = np.bool_(means is not None)
        given = self._no_means if means is None else means
        return program(self._params, self._told, images, given, use)

    def _program(
        self, batch: int, height: int, width: int, channels: int = 3
    ) -> Callable:
        shape = (batch, height, width, channels)
        key = (self._device, *shape)
        if key not in self._programs:
            images = jax.ShapeDtypeStruct(shape, jnp.float32)
            given = (images, self._no_means, np.bool_(False))
            lowered = self._apply.lower(self._params, self._told, *given)
            self._programs[key] = lowered.compile()
        return self._programs[key]

    def _free_memory(self) -> int:
        """Bytes on the device; of the machine's memory for a CPU."""
        (device, *_) = jax.tree.leaves(self._params)[0].devices()
        statistics = device.memory_stats() or {}
        if "bytes_limit" not in statistics:
            return psutil.virtual_memory().available
        return statistics["bytes_limit"] - statistics["bytes_in_use"]


SEMANTICS = {
    "dinov2": "DINOv2's class tokens",
    "none": "none: the reduced form of Perceive-IR, not the paper's network",
}
"""What guides a network, as tables say it."""
FINISHED = {
    np.dtype(np.uint8): image_io.to_uint8,
    np.dtype(np.uint16): image_io.to_uint16,
    np.dtype(np.float32): lambda values: values,
}
"""What makes pixels of a type from restored values."""


def check_image(image: Image, channels: int) -> None:
    """Refuses what is no image for a network.

    Args:
        image: see `Restorer.__call__`.
        channels: of the network's images.

    Raises:
        UserError: its shape or type is another one; says which is expected.
    """
    fit = image.ndim == 3 and image.shape[-1] in (3, channels)
    if not fit or 0 in image.shape:
        expected = "[h, w, 3]" + " or [h, w, 1]" * (channels == 1)
        raise UserError(f"expected an image of shape {expected}, got {image.shape}")
    if image.dtype not in FINISHED:
        raise UserError(f"expected uint8, uint16 or float32 pixels, got {image.dtype}")


def find_device(name: str) -> jax.Device:
    """The device of a name, such as "gpu:1".

    Raises:
        UserError: there is none; lists those that there are.
    """
    platform, _, number = name.partition(":")
    try:
        return jax.devices(platform)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        found = [f"{device.platform}:{device.id}" for device in jax.devices()]
        raise unknown("device", name, found) from error


def _memory_of(program: jax.stages.Compiled) -> int:
    """Bytes that a program takes on its device while it runs, parameters included."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
    )


def severity(before: Pixels, after: Pixels) -> float:
    """How much an image was corrected: an estimate of how badly it was compressed.

    Args:
        before: the image as it came, integers; [h, w, 3].
        after: restored, of the same dtype; [scale * h, scale * w, 3]. It is compared
            at the size of the first, by the means of its blocks.

    Returns:
        The root mean square of the difference, in levels of 8 bits.
    """
    scale = after.shape[0] // before.shape[0]
    total = 0.0
    for rows in rows_of(*before.shape[:2]):  # floats of a whole image take too much
        block = after[scale * rows.start : scale * rows.stop]
        sums = np.zeros(before[rows].shape, np.float32)
        for y, x in itertools.product(range(scale), repeat=2):
            sums += block[y::scale, x::scale]
        total += float(np.square(before[rows] - sums / scale**2).sum())
    levels = np.iinfo(before.dtype).max / 255
    return math.sqrt(total / before.size) / levels
