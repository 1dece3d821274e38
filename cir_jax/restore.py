"""Using a model: `Restorer`, arrays in and arrays out, and the folder job on top."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, UInt8
from rich.console import Console
from rich.progress import track

from cir_jax import image_io, tiling, weights
from cir_jax.errors import UserError
from cir_jax.models.layers import RestorationModel

Image = UInt8[np.ndarray, "_ _ 3"] | Float32[np.ndarray, "_ _ 3"]


class Restorer:
    """A function from images to restored images, of any size.

    What is at most a tile large is padded at the bottom and right by mirroring to the
    model's multiple, only when needed, restored in one piece, and cropped. Larger
    images are restored in tiles (see tiling.py), in memory that does not grow. One
    program is compiled per padded size, and one for all images that need tiles.

    Args:
        model: a shipped name, a weights file, a workdir, or a model.
        codec: name or number of the codec that made the images, for models that can be
            told.
        tile: largest side in pixels of what is restored in one piece; None for images
            of any size in one piece, as measuring wants it; the model's by default.

    Raises:
        UserError: there is no such model, it does not know the codec, or the tile is
            less than 1.
    """

    def __init__(
        self,
        model: str | os.PathLike | RestorationModel,
        codec: str | int | None = None,
        *,
        tile: int | Literal["default"] | None = "default",
    ):
        if not isinstance(model, nnx.Module):
            model = weights.load(model)
        self.scale, self.multiple = model.scale, model.multiple
        self.codec = codec
        self.tile = model.tile if tile == "default" else tile
        if self.tile is not None and self.tile < 1:
            raise UserError(f"tile {self.tile}: give at least 1 pixel")
        known = {}
        if codec is not None:
            known["codec"] = jnp.array([model.codec_index(codec)])
        graphdef, params = nnx.split(model, nnx.Param)
        self._params = nnx.to_pure_dict(params)
        self._programs: dict[tuple[int, ...], Any] = {}

        def apply(params, images):
            model = nnx.merge(graphdef, params)
            return model(images, **known).astype(jnp.float32)

        self._apply = jax.jit(apply)

    def with_params(self, params: Mapping[str, Any]) -> "Restorer":
        """The same model with other parameters; compiled programs are shared."""
        other = copy.copy(self)
        other._params = params
        return other

    def grid(self, height: int, width: int) -> tiling.Grid | None:
        """How an image of a size is cut into tiles; None if it is not cut."""
        if self.tile is None or max(height, width) <= self.tile:
            return None
        return tiling.grid(self.multiple, self.tile, height, width)

    def compile(self, height: int, width: int) -> None:
        """Makes the program for images of a size, so that the first call is fast."""
        grid = self.grid(height, width)
        if grid:
            self._program(grid.height, grid.width)
        else:
            self._program(*(size + -size % self.multiple for size in (height, width)))

    def __call__(self, image: Image) -> Image:
        """Restores one RGB image.

        Args:
            image: uint8, or float32 in [0, 1]; [h, w, 3].

        Returns:
            [scale * h, scale * w, 3] in the dtype that came in: uint8 clipped and
            rounded, float32 unclipped.

        Raises:
            UserError: the array is no RGB image of these dtypes.
        """
        if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
            raise UserError(f"expected an image of shape [h, w, 3], got {image.shape}")
        if image.dtype not in (np.uint8, np.float32):
            raise UserError(f"expected uint8 or float32 pixels, got {image.dtype}")
        height, width, _ = image.shape
        grid = self.grid(height, width)
        finished = (lambda x: x) if image.dtype == np.float32 else image_io.to_uint8
        if grid:
            return tiling.restore_in_tiles(
                self._run, image, grid, self.scale, 1, finished
            )
        padding = [(0, -size % self.multiple) for size in (height, width)]
        padded = np.pad(image, [*padding, (0, 0)], mode="symmetric")
        restored = np.asarray(self._run(padded[None]))[0]
        return finished(restored[: self.scale * height, : self.scale * width])

    def _run(self, images: np.ndarray) -> jax.Array:
        """Starts the program for a batch of one size."""
        exact = images if images.dtype == np.float32 else np.float32(images) / 255
        return self._program(*images.shape[1:3])(self._params, exact)

    def _program(self, height: int, width: int) -> Callable:
        shape = (1, height, width, 3)
        if shape not in self._programs:
            images = jax.ShapeDtypeStruct(shape, jnp.float32)
            self._programs[shape] = self._apply.lower(self._params, images).compile()
        return self._programs[shape]


def restore_files(
    restorer: Restorer, inputs: Sequence[Path], out: Path, overwrite: bool
) -> dict[Path, str]:
    """Restores image files and folders of them into `out`, as PNG.

    Folders keep their tree. Outputs that exist are left alone, so an interrupted job
    goes on where it stopped; one bad file does not stop the others.

    Args:
        restorer: what restores them.
        inputs: image files, and folders that are searched through.
        out: the output folder.
        overwrite: write outputs that exist already again.

    Returns:
        For every input file that failed, why.

    Raises:
        UserError: an input does not exist, a folder holds no image, the output lies
            inside an input folder, or two inputs would share an output.
    """
    jobs = _plan(inputs, out)
    failed: dict[Path, str] = {}
    console = Console(stderr=True)
    for target, source in track(jobs.items(), "restoring", console=console):
        if target.exists() and not overwrite:
            continue
        try:
            image_io.write_png(target, restorer(image_io.read_rgb(source)))
        except UserError as error:
            failed[source] = str(error)
        except jax.errors.JaxRuntimeError as error:  # above all: out of memory
            failed[source] = f"{source} cannot be restored on this device: {error}"
    return failed


def _plan(inputs: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Every output and the input that it is made of."""
    jobs: dict[Path, Path] = {}
    for start in inputs:
        if start.is_dir():
            if out.resolve().is_relative_to(start.resolve()):
                raise UserError(
                    f"the output folder {out} lies inside the input folder {start}: "
                    "give one outside"
                )
            sources = {
                path: path.relative_to(start) for path in image_io.find_images(start)
            }
        elif start.is_file():
            sources = {start: Path(start.name)}
        else:
            raise UserError(f"{start} does not exist: give image files or folders")
        for source, name in sources.items():
            target = out / name.with_suffix(".png")
            if target.resolve() == source.resolve():
                raise UserError(
                    f"{source} would be overwritten by its restored version: give "
                    "another output folder"
                )
            if target in jobs:
                raise UserError(
                    f"{jobs[target]} and {source} would both be written to {target}: "
                    "restore them into different folders"
                )
            jobs[target] = source
    return jobs
