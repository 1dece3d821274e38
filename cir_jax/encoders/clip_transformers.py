"""CLIP's two transformers: of words and of image patches."""

import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from cir_jax.encoders.transformer import (
    blocks,
    layer_norm,
    patch_embedding,
    quick_gelu,
)
from cir_jax.errors import UserError

EPSILON = 1e-5


class TextTransformer(nnx.Module):
    """Embedded tokens to what each means after those before it; frozen, see `CLIP`.

    Args:
        vocabulary: how many tokens there are.
        positions: of the longest sequence.
        width: channels of an embedded token.
        depth: number of layers.
        heads: of each layer's attention.
        hidden: channels inside the feed-forward networks.
        rngs: where the initial parameters come from.
        dtype: type that it computes in.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        positions: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        self.dtype = dtype
        self.token_embedding = nnx.Param(jnp.zeros((vocabulary, width)))
        self.position_embedding = nnx.Param(jnp.zeros((positions, width)))
        self.blocks = blocks(
            depth,
            width,
            heads,
            hidden,
            activation=quick_gelu,
            epsilon=EPSILON,
            gains=False,
            rngs=rngs,
            dtype=dtype,
        )
        self.final_layer_norm = layer_norm(width, EPSILON, rngs=rngs)

    def __call__(self, tokens: Float[Array, "b n c"]) -> Float32[Array, "b n c"]:
        """The last layer's output, normalised.

        Raises:
            UserError: the sequence is longer than the network's.
        """
        n, most = tokens.shape[1], self.position_embedding.shape[0]
        if n > most:
            raise UserError(
                f"{n} tokens, start and end among them: this CLIP reads at most {most}"
            )
        x = (tokens + self.position_embedding[:n]).astype(self.dtype)
        for block in self.blocks:
            x = block(x, causal=True)
        return self.final_layer_norm(x)


class ImageTransformer(nnx.Module):
    """Normalised images to tokens, the class token first; frozen, see `CLIP`.

    Args:
        grid: patches on a side of an image.
        patch: side of a patch, pixels.
        width: channels of a token.
        depth: number of layers.
        heads: of each layer's attention.
        hidden: channels inside the feed-forward networks.
        rngs: where the initial parameters come from.
        dtype: type that it computes in.
    """

    def __init__(
        self,
        *,
        grid: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        self.side = grid * patch
        self.dtype = dtype
        self.class_embedding = nnx.Param(jnp.zeros(width))
        self.patches = patch_embedding(width, patch, bias=False, rngs=rngs, dtype=dtype)
        self.position_embedding = nnx.Param(jnp.zeros((grid**2 + 1, width)))
        self.pre_layernorm = layer_norm(width, EPSILON, rngs=rngs)
        self.blocks = blocks(
            depth,
            width,
            heads,
            hidden,
            activation=quick_gelu,
            epsilon=EPSILON,
            gains=False,
            rngs=rngs,
            dtype=dtype,
        )
        self.post_layernorm = layer_norm(width, EPSILON, rngs=rngs)

    def __call__(
        self, image: Float[Array, "b {self.side} {self.side} 3"]
    ) -> Float[Array, "b n c"]:
        """The last layer's output, before `post_layernorm`."""
        b, width = image.shape[0], self.class_embedding.shape[0]
        tokens = self.patches(image).reshape(b, -1, width)
        first = jnp.broadcast_to(self.class_embedding[...], (b, 1, width))
        x = jnp.concatenate([first, tokens], axis=1) + self.position_embedding[...]
        x = self.pre_layernorm(x).astype(self.dtype)
        for block in self.blocks:
            x = block(x)
        return x
