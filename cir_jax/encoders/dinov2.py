"""DINOv2, the vision transformer whose class tokens say what is in an image.

Oquab et al., DINOv2: Learning Robust Visual Features without Supervision (2304.07193);
the small, base and large ones, as Hugging Face publishes them. The giant one has
another feed-forward network and those with registers have more tokens: neither is here.
Perceive-IR (2408.15994) is guided by four layers of the base one.
"""

import os
from math import isqrt
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from cir_jax.encoders import published
from cir_jax.encoders.pixels import IMAGENET
from cir_jax.encoders.transformer import blocks, layer_norm, patch_embedding
from cir_jax.errors import UserError
from cir_jax.hyper_parameters import Shapes, count
from cir_jax.ops.bicubic import resize_bicubic
from cir_jax.ops.gelu import gelu

PUBLISHED = published.Encoder(
    "DINOv2", "download model.safetensors of facebook/dinov2-base from Hugging Face"
)
SIDE = 224
"""Of the images whose semantics are asked for, pixels."""
LAYERS = (1, 4, 8, 12)
"""Perceive-IR's, of the base network."""
EPSILON = 1e-6

_RENAMED = {
    "cls_token": "embeddings.cls_token",
    "position_embeddings": "embeddings.position_embeddings",
    "patches": "embeddings.patch_embeddings.projection",
    "blocks": "encoder.layer",
    "gain1": "layer_scale1.lambda1",
    "gain2": "layer_scale2.lambda1",
    "norm": "layernorm",
}
_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
# What was released has a module inside the module; files of newer programs do not.
_RELEASED_ATTENTION = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "output": "output.dense",
}
_PREFIX = "dinov2."


class DINOv2(nnx.Module):
    """The network, frozen: its parameters are `nnx.Param`, but nothing trains them.

    Args:
        width: channels of a token.
        depth: number of layers.
        heads: of each layer's attention.
        hidden: channels inside the feed-forward networks.
        patch: side of the patches that become tokens, pixels.
        grid: side of the square of patches that there are position embeddings for.
        rngs: where the initial parameters come from.
        dtype: type that it computes in.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        patch: int,
        grid: int,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
    ):
        self.patch = patch
        self.grid = grid
        self.dtype = dtype
        self.patches = patch_embedding(width, patch, bias=True, rngs=rngs, dtype=dtype)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.position_embeddings = nnx.Param(jnp.zeros((1, 1 + grid**2, width)))
        self.blocks = blocks(
            depth,
            width,
            heads,
            hidden,
            activation=gelu,
            epsilon=EPSILON,
            gains=True,
            rngs=rngs,
            dtype=dtype,
        )
        self.norm = layer_norm(width, EPSILON, rngs=rngs)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.cls_token.shape[-1]

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float32[Array, "b n c"]:
        """The last layer's tokens, normalised; see `hidden`."""
        return self.norm(self.hidden(image)[-1])

    def hidden(self, image: Float[Array, "b h w 3"]) -> list[Float[Array, "b n c"]]:
        """The tokens, then what each layer makes of them; the class token is the first.

        Args:
            image: RGB with ImageNet's mean taken off and its deviation divided by;
                sides are multiples of the patches'.

        Returns:
            depth + 1 sequences, one token for each patch, row by row, and one more.

        Raises:
            UserError: the image cannot be cut into patches.
        """
        b, h, w, _ = image.shape
        rows, columns = h // self.patch, w // self.patch
        if h % self.patch or w % self.patch or not rows or not columns:
            raise UserError(
                f"image of height {h} and width {w}: DINOv2 takes multiples of "
                f"{self.patch}"
            )
        tokens = self.patches(image).reshape(b, rows * columns, -1)
        first = jnp.broadcast_to(self.cls_token[...], (b, 1, tokens.shape[-1]))
        x = jnp.concatenate([first, tokens], axis=1) + self._positions(rows, columns)
        states = [x.astype(self.dtype)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states

    def semantics(
        self,
        image: Float[Array | np.ndarray, "b h w 3"],
        layers: tuple[int, ...] = LAYERS,
    ) -> Float32[Array, "l b d"]:
        """What Perceive-IR is told of an image: class tokens of some layers.

        Args:
            image: RGB in [0, 1], of any size; it is resized to 224x224.
            layers: which of `hidden`'s sequences; those are before the last norm.

        Returns:
            A vector for each layer and image.

        Raises:
            UserError: the network has fewer layers.
        """
        if not all(0 <= layer <= len(self.blocks) for layer in layers):
            raise UserError(
                f"class tokens of layers {layers} were asked for: this DINOv2 has "
                f"{len(self.blocks)} layers"
            )
        small = resize_bicubic(image, SIDE, SIDE)
        states = self.hidden(IMAGENET.normalised(small))
        tokens = jnp.stack([states[layer][:, 0] for layer in layers])
        return tokens.astype(jnp.float32)

    def _positions(self, rows: int, columns: int) -> Float32[Array, "1 n c"]:
        """Position embeddings; where the patches are no such square, interpolated."""
        first, square = jnp.split(self.position_embeddings[...], [1], axis=1)
        if (rows, columns) != (self.grid, self.grid):
            square = square.reshape(1, self.grid, self.grid, -1)
            square = resize_bicubic(square, rows, columns)
            square = square.reshape(1, rows * columns, -1)
        return jnp.concatenate([first, square], axis=1)


def load(
    path: str | os.PathLike, *, heads: int | None = None, dtype: Dtype = jnp.float32
) -> DINOv2:
    """Builds the network of a published file; its sizes are those of the tensors.

    Args:
        path: Hugging Face's `model.safetensors` or `pytorch_model.bin`.
        heads: of each layer's attention; by default one for every 64 channels, as in
            all that were published.
        dtype: type that it computes in; its parameters are float32.

    Raises:
        UserError: there is no such file, it cannot be read, or it is of another
            network.
    """
    tensors = published.read(path, PUBLISHED, drop=("*mask_token",))
    if any(name.startswith(_PREFIX) for name in tensors):
        # Beside the network there is a classifier.
        tensors = {
            name.removeprefix(_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(_PREFIX)
        }
    sizes = published.sizes(tensors, _sizes, PUBLISHED, path)
    sizes["heads"] = published.heads_of(sizes["width"], heads)
    released = any(".attention.attention." in name for name in tensors)
    return published.filled(
        lambda rngs: DINOv2(**sizes, rngs=rngs, dtype=dtype),
        tensors,
        _RENAMED | (_RELEASED_ATTENTION if released else _ATTENTION),
        PUBLISHED,
        path,
    )


def _sizes(shapes: Shapes) -> dict[str, Any]:
    _, positions, width = shapes["embeddings.position_embeddings"]
    return {
        "width": width,
        "depth": count(shapes, "encoder.layer"),
        "hidden": shapes["encoder.layer.0.mlp.fc1.weight"][0],
        "patch": shapes["embeddings.patch_embeddings.projection.weight"][3],
        "grid": isqrt(positions - 1),
    }
