# ruff: noqa: D102  (what a layer does when called is its class docstring)
"""The transformer of vision and language models: tokens that attend to one another.

Dosovitskiy et al., An Image is Worth 16x16 Words (2010.11929), after Vaswani et al.
(1706.03762); norms stand before what they feed. Parameters are float32; `dtype` is the
type that a layer computes in, but norms and softmax are float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float


def layer_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm over channels, in float32.

    `cir_jax.ops.layer_norm` is for 1e-5 and saves memory of gradients to weights.
    """
    return nnx.LayerNorm(
        width, epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32, rngs=rngs
    )


def patch_embedding(
    width: int, patch: int, *, bias: bool, rngs: nnx.Rngs, dtype: Dtype
) -> nnx.Conv:
    """A linear map of each patch of `patch` x `patch` RGB pixels to a token."""
    return nnx.Conv(
        3,
        width,
        (patch, patch),
        strides=(patch, patch),
        padding="VALID",
        use_bias=bias,
        dtype=dtype,
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Attention between tokens; `causal` is each to itself and those before it."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: Dtype):
        self.query = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(
        self, x: Float[Array, "b n c"], causal: bool = False
    ) -> Float[Array, "b n c"]:
        b, n, c = x.shape
        q, k, v = (
            project(x).reshape(b, n, self.heads, c // self.heads)
            for project in (self.query, self.key, self.value)
        )
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
        return self.output(mixed.reshape(b, n, c))


class MLP(nnx.Module):
    """Two linear layers on each token, with an activation between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Callable[[Array], Array],
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        self.fc1 = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.fc2(self.activation(self.fc1(x)))


class Block(nnx.Module):
    """Adds attention, then an MLP, each of the norm of what there is.

    With `gains`, a learnt factor for each channel comes before each addition (CaiT's
    LayerScale, 2103.17239).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        activation: Callable[[Array], Array],
        epsilon: float,
        gains: bool,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        self.norm1 = layer_norm(width, epsilon, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs, dtype=dtype)
        self.gain1 = nnx.Param(jnp.ones(width, jnp.float32)) if gains else None
        self.norm2 = layer_norm(width, epsilon, rngs=rngs)
        self.mlp = MLP(width, hidden, activation, rngs=rngs, dtype=dtype)
        self.gain2 = nnx.Param(jnp.ones(width, jnp.float32)) if gains else None

    def __call__(
        self, x: Float[Array, "b n c"], causal: bool = False
    ) -> Float[Array, "b n c"]:
        x = x + _scaled(self.attention(self.norm1(x), causal), self.gain1)
        return x + _scaled(self.mlp(self.norm2(x)), self.gain2)


def blocks(depth: int, *shape: int, **options: Any) -> Sequence[Block]:
    """`depth` blocks, each of the shape and with the options of `Block`."""
    return nnx.List(Block(*shape, **options) for _ in range(depth))


def _scaled(x: Float[Array, "b n c"], gain: nnx.Param | None) -> Float[Array, "b n c"]:
    return x if gain is None else x * gain[...].astype(x.dtype)


def quick_gelu(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """The approximation of GELU that CLIP was trained with: x sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)
