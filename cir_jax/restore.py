"""Using a model: `Restorer`, arrays in and arrays out, and the folder job on top."""

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, UInt8
from rich.console import Console
from rich.progress import track

from cir_jax import image_io, weights
from cir_jax.errors import UserError

Image = UInt8[np.ndarray, "_ _ 3"] | Float32[np.ndarray, "_ _ 3"]


class Restorer:
    """A function from images to restored images, of any size.

    The image is padded at the bottom and right by mirroring to the model's multiple,
    only when needed, restored in one piece, and cropped. One program is compiled per
    padded size.

    Args:
        model: a shipped name, a weights file, a workdir, or a model.
        codec: name or number of the codec that made the images, for models that can be
            told; by default they find out.

    Raises:
        UserError: there is no such model, or it does not know the codec.
    """

    def __init__(
        self, model: str | os.PathLike | nnx.Module, codec: str | int | None = None
    ):
        if not isinstance(model, nnx.Module):
            model = weights.load(model)
        self.scale, self.multiple = model.scale, model.multiple
        known = {}
        if codec is not None:
            known["codec"] = jnp.array([model.codec_index(codec)])
        graphdef, params = nnx.split(model, nnx.Param)
        self._params = nnx.to_pure_dict(params)
        self._programs: dict[tuple[int, ...], Any] = {}

        def apply(params, image):
            model = nnx.merge(graphdef, params)
            return model(image[None], **known)[0].astype(jnp.float32)

        self._apply = jax.jit(apply)

    def with_params(self, params: Mapping[str, Any]) -> "Restorer":
        """The same model with other parameters; compiled programs are shared."""
        other = copy.copy(self)
        other._params = params
        return other

    def compile(self, height: int, width: int) -> None:
        """Makes the program for images of a size, so that the first call is fast."""
        shape = (*(size + -size % self.multiple for size in (height, width)), 3)
        if shape not in self._programs:
            image = jax.ShapeDtypeStruct(shape, jnp.float32)
            self._programs[shape] = self._apply.lower(self._params, image).compile()

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
        self.compile(height, width)
        exact = image if image.dtype == np.float32 else np.float32(image) / 255
        padding = [(0, -size % self.multiple) for size in (height, width)]
        padded = np.pad(exact, [*padding, (0, 0)], mode="symmetric")
        restored = np.asarray(self._programs[padded.shape](self._params, padded))
        restored = restored[: self.scale * height, : self.scale * width]
        return restored if image.dtype == np.float32 else image_io.to_uint8(restored)


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
