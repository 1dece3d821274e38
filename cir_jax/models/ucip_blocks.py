# ruff: noqa: D102  (what a layer does when called is its class docstring)
"""UCIP's parts: prompts for each pixel, the mixing of tokens, the modulation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float

from cir_jax.models.layers import (
    Block,
    DepthwiseConv,
    LayerNorm,
    Linear,
    normal,
    uniform,
)
from cir_jax.models.pooling import Pool
from cir_jax.ops.axial_sample import axial_sample
from cir_jax.ops.gelu import gelu
from cir_jax.ops.layer_norm import EPSILON
from cir_jax.ops.prompt_mixing import mix_prompts

WIDTH_AXIS, HEIGHT_AXIS = 2, 1


def conv(
    inputs: int,
    outputs: int,
    size: int = 3,
    *,
    kernel_init: Initializer | None = None,
    rngs: nnx.Rngs,
    dtype: Dtype,
) -> nnx.Conv:
    """A convolution that keeps the size; zeros outside."""
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        padding=((size // 2, size // 2),) * 2,
        kernel_init=kernel_init or _conv_init(size * size * outputs),
        dtype=dtype,
        rngs=rngs,
    )


def _depthwise(
    channels: int, size: int, *, rngs: nnx.Rngs, dtype: Dtype
) -> DepthwiseConv:
    return DepthwiseConv(
        channels,
        size,
        bias=True,
        kernel_init=_conv_init(size * size),
        bias_init=nnx.initializers.zeros,
        rngs=rngs,
        dtype=dtype,
    )


def _conv_init(fan_out: int) -> Initializer:
    return normal((2 / fan_out) ** 0.5)


def _linear(inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Dtype) -> Linear:
    return Linear(inputs, outputs, kernel_init=normal(0.02), dtype=dtype, rngs=rngs)


class MLP(nnx.Module):
    """Two linear layers with a GELU between."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, rngs: nnx.Rngs, dtype: Dtype
    ):
        self.fc1 = _linear(inputs, hidden, rngs=rngs, dtype=dtype)
        self.fc2 = _linear(hidden, outputs, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        return self.fc2(gelu(self.fc1(x)))


class DPM(nnx.Module):
    """Dynamic prompt module: a prompt for each pixel, mixed from a learnt bank.

    The bases are weighted per pixel; the codecs by `mixture` (a weight for each image
    and codec), or as predicted where that is None.
    """

    def __init__(
        self,
        channels: int,
        codecs: int,
        bases: int,
        width: int,
        mixing: str,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.mixing = mixing
        bank = uniform(0.0, 1.0)(rngs.params(), (codecs, bases, width))
        self.prompt = nnx.Param(bank)
        self.basis_mlp = MLP(channels, bases, bases, **options)
        blind = mixing != "codec"
        self.codec_mlp = MLP(channels, codecs, codecs, **options) if blind else None

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        pool: Pool,
        mixture: Float[Array, "b t"] | None = None,
    ) -> Float[Array, "b h w width"]:
        bases = _softmax(self.basis_mlp(x)).astype(x.dtype)
        if mixture is None:
            mixture = self.predicted_mixture(x, pool)
        bank = self.prompt[...]
        if mixture.ndim == 4:
            return mix_prompts(mixture.astype(x.dtype), bases, bank.astype(x.dtype))
        # In full precision: accelerators would round a chosen codec's prompts.
        bank = jnp.einsum("bt,tnc->bnc", mixture, bank, precision="highest")
        return jnp.einsum("bhwn,bnc->bhwc", bases, bank.astype(x.dtype))

    def predicted_mixture(
        self, x: Float[Array, "b h w c"], pool: Pool
    ) -> Float[Array, "b h w t"] | Float[Array, "_ t"]:
        """The weights of the codecs' prompts, which sum to 1; float32."""
        if self.mixing == "image":
            x = pool(x)[:, 0, 0]
        return _softmax(self.codec_mlp(x))


def _softmax(x: Float[Array, "*b k"]) -> Float[Array, "*b k"]:
    return jax.nn.softmax(x.astype(jnp.float32), axis=-1)


class PEG(nnx.Module):
    """Position encoding: a depthwise convolution, which feels the borders."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: Dtype):
        self.proj = _depthwise(channels, 3, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.proj(x)


class PTMB(nnx.Module):
    """A group of prompt-guided token mixing modules.

    One in `offset_every` of them encodes the position and makes new offsets, but never
    the last one; the others use the offsets of the one before.
    """

    def __init__(
        self,
        depth: int,
        offset_every: int,
        channels: int,
        prompt_dim: int,
        mlp_ratio: float,
        share: int,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        shape = (channels, prompt_dim, mlp_ratio)
        self.blocks = nnx.List(
            PTMM(*shape, share if new else None, rngs=rngs, dtype=dtype)
            for new in makes_offsets(depth, offset_every)
        )

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        prompt: Float[Array, "b h w p"],
        peg: PEG,
        pool: Pool,
    ) -> Float[Array, "b h w c"]:
        offsets = None
        for block in self.blocks:
            if block.offset_layer is not None:
                x = peg(x)
                offsets = block.offset_layer(jnp.concatenate([x, prompt], axis=-1))
            x = block(x, prompt, offsets, pool)
        return x


def makes_offsets(depth: int, offset_every: int) -> list[bool]:
    """Which blocks of a group make new offsets."""
    return [j % offset_every == 0 and j < depth - 1 for j in range(depth)]


class PTMM(Block):
    """Prompt-guided token mixing module: ATM, feed-forward network, modulation."""

    def __init__(
        self,
        channels: int,
        prompt_dim: int,
        mlp_ratio: float,
        share: int | None,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.offset_layer = (
            _offset_layer(channels + prompt_dim, 2 * channels // share, rngs)
            if share
            else None
        )
        self.norm1 = LayerNorm(channels, **options)
        self.atm = ATM(channels, **options)
        self.norm2 = LayerNorm(channels, **options)
        self.mlp = MLP(channels, round(channels * mlp_ratio), channels, **options)
        self.spade = SPADE(channels, prompt_dim, **options)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        prompt: Float[Array, "b h w p"],
        offsets: Float[Array, "b h w o"],
        pool: Pool,
    ) -> Float[Array, "b h w c"]:
        x = x + self.atm(self.norm1(x), offsets, pool)
        x = x + self.mlp(self.norm2(x))
        return self.spade(x, prompt, pool)


def _offset_layer(inputs: int, offsets: int, rngs: nnx.Rngs) -> nnx.Sequential:
    # In float32: a bfloat16 offset of four pixels is off by up to 1/64 pixel.
    options: Mapping[str, Any] = {"rngs": rngs, "dtype": jnp.float32}
    return nnx.Sequential(
        LayerNorm(inputs, **options), _linear(inputs, offsets, **options)
    )


class ATM(nnx.Module):
    """Active token mixing: three ways to look around, weighted per channel.

    The first half of the offsets is along the width, the second along the height.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.atm_w = AxialMixing(channels, WIDTH_AXIS, **options)
        self.atm_h = AxialMixing(channels, HEIGHT_AXIS, **options)
        self.atm_local = _depthwise(channels, 5, **options)
        self.fusion = MLP(channels, channels // 4, 3 * channels, **options)
        self.proj = _linear(channels, channels, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], offsets: Float[Array, "b h w o"], pool: Pool
    ) -> Float[Array, "b h w c"]:
        along_width, along_height = jnp.split(offsets, 2, axis=-1)
        w = self.atm_w(x, along_width)
        h = self.atm_h(x, along_height)
        local = self.atm_local(x)

        pooled = pool(w + h + local)
        shares = self.fusion(pooled)  # b 1 1 3*c
        shares = _softmax(shares.reshape(*pooled.shape, 3)).astype(x.dtype)
        mixed = w * shares[..., 0] + h * shares[..., 1] + local * shares[..., 2]
        return self.proj(mixed)


class AxialMixing(Linear):
    """Shifts channels along one axis, each by its own offset, then mixes them."""

    def __init__(self, channels: int, axis: int, *, rngs: nnx.Rngs, dtype: Dtype):
        super().__init__(
            channels, channels, kernel_init=normal(0.02), rngs=rngs, dtype=dtype
        )
        self.axis = axis

    def __call__(
        self, x: Float[Array, "b h w c"], offset: Float[Array, "b h w g"]
    ) -> Float[Array, "b h w c"]:
        return super().__call__(axial_sample(x, offset, self.axis))


class SPADE(nnx.Module):
    """Spatially adaptive modulation: the prompt scales and shifts the normalised map.

    Normalised per image and channel over the whole map, and not added to its input.
    """

    def __init__(self, channels: int, prompt_dim: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        hidden = prompt_dim // 2
        self.mlp_shared = conv(prompt_dim, hidden, **options)
        self.mlp_gamma = conv(hidden, channels, **options)
        self.mlp_beta = conv(hidden, channels, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], prompt: Float[Array, "b h w p"], pool: Pool
    ) -> Float[Array, "b h w c"]:
        shared = jax.nn.relu(self.mlp_shared(prompt))
        gamma, beta = self.mlp_gamma(shared), self.mlp_beta(shared)
        return (_instance_norm(x, pool) * (1 + gamma) + beta).astype(x.dtype)


def _instance_norm(x: Float[Array, "b h w c"], pool: Pool) -> Float[Array, "b h w c"]:
    x = x.astype(jnp.float32)
    centred = x - pool(x)
    variance = pool(jnp.square(centred))
    return centred * jax.lax.rsqrt(variance + EPSILON)
