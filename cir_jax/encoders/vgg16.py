"""VGG16's features, in which images are compared by perceptual losses.

Simonyan and Zisserman (1409.1556), the convolutions up to relu3_3: those that
Perceive-IR's difficulty-adaptive perceptual loss (2408.15994) looks at.
"""

import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from cir_jax import weights
from cir_jax.encoders import published
from cir_jax.encoders.pixels import IMAGENET
from cir_jax.models import abstract
from cir_jax.models.layers import Conv3x3

PUBLISHED = published.Encoder(
    "VGG16",
    "download vgg16-397923af.pth of torchvision, or make a file by python -m "
    "cir_jax.lpips OUT.safetensors --net vgg",
)
WIDTHS = (64, 64, 128, 128, 256, 256, 256)
POOLED = (2, 4)
"""Before which convolutions the map is halved."""
COMPARED = (1, 3, 4, 6)
"""Whose rectified output is a feature: relu1_2, relu2_2, relu3_1 and relu3_3."""
TORCHVISION = (0, 2, 5, 7, 10, 12, 14)
"""Where torchvision has the convolutions in its list of layers."""


class VGG16(nnx.Module):
    """The network, frozen: its parameters are `nnx.Param`, but nothing trains them.

    Args:
        rngs: where the initial parameters come from.
        dtype: type that it computes in.
    """

    def __init__(self, *, rngs: nnx.Rngs, dtype: Dtype = jnp.float32):
        inputs = (3, *WIDTHS)
        self.convs = nnx.List(
            Conv3x3(i, o, bias=True, rngs=rngs, dtype=dtype)
            for i, o in zip(inputs, WIDTHS, strict=False)
        )

    def features(
        self, image: Float[Array | np.ndarray, "b h w 3"]
    ) -> list[Float[Array, "b _ _ _"]]:
        """The features of images.

        Args:
            image: RGB in [0, 1], not clipped here; sides of at least 4 pixels.

        Returns:
            Maps with 64, 128, 256 and 256 channels at 1, 1/2, 1/4 and 1/4 of the
            resolution, rounded down, in the type that the network computes in.
        """
        x = IMAGENET.normalised(image)
        maps = []
        for i, conv in enumerate(self.convs):
            if i in POOLED:
                x = nnx.max_pool(x, (2, 2), (2, 2))
            x = jax.nn.relu(conv(x))
            if i in COMPARED:
                maps.append(x)
        return maps


def load(path: str | os.PathLike, *, dtype: Dtype = jnp.float32) -> VGG16:
    """Builds the network with the weights of a file; deeper layers are left aside.

    Args:
        path: torchvision's state dict (as published it is of before torch 1.6, and
            reading it takes the extra `convert`); or a weights file of LPIPS with
            VGG16, which has torchvision's weights, see cir_jax/lpips.py.
        dtype: type that it computes in; its parameters are float32.

    Raises:
        UserError: there is no such file, it cannot be read, or it is of another
            network.
    """

    def build(rngs: nnx.Rngs) -> VGG16:
        return VGG16(rngs=rngs, dtype=dtype)

    tensors = published.read(path, PUBLISHED)
    if "conv0.kernel" in tensors:  # of LPIPS, in our layout
        names = itertools.product(range(len(WIDTHS)), ("kernel", "bias"))
        ours = {
            f"convs.{i}.{leaf}": tensors[f"conv{i}.{leaf}"]
            for i, leaf in names
            if f"conv{i}.{leaf}" in tensors
        }
        return weights.filled(abstract(build), ours, Path(path))
    official = {
        f"features.{i}.{leaf}" for i in TORCHVISION for leaf in ("weight", "bias")
    }
    return published.filled(
        build,
        {name: tensor for name, tensor in tensors.items() if name in official},
        {"convs": "features"} | {str(i): str(j) for i, j in enumerate(TORCHVISION)},
        PUBLISHED,
        path,
    )
