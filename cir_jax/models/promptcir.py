# ruff: noqa: D102  (what a layer does when called is its class docstring)
"""PromptCIR: Blind Compressed Image Restoration with Prompt Learning (2404.17433).

Li et al., winner of the NTIRE 2024 challenge on blind compressed image enhancement. A
four-level U-Net (prompted_unet.py) that predicts what to add to the image: hybrid
attention groups (HAT, 2205.04437) where the resolution is high, Restormer blocks
(2111.09881) where it is low, and prompts, mixed per pixel from a learnt bank, that tell
the decoder how the image was compressed.

This is the network of the released code, which goes beyond the paper's formula: the
prompt bank has a second, seven-way axis ("tasks"), softly chosen per pixel too. What
differs from that code: maps stay NHWC throughout; widths, depths and the prompt bank
are free (`VARIANTS`); the mask of shifted windows and the mixed bank are never stored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from cir_jax.errors import UserError
from cir_jax.models.layers import (
    GDFN,
    Block,
    Conv3x3,
    LayerNorm,
    Linear,
    PointwiseConv,
    check_heads,
    normal,
    transformer_blocks,
    uniform,
)
from cir_jax.models.prompted_unet import PromptedUNet
from cir_jax.ops.attend_windows import attend_overlapping_windows, attend_windows
from cir_jax.ops.gelu import gelu
from cir_jax.ops.prompt_mixing import mix_prompts
from cir_jax.ops.window_attention import relative_position_index

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},  # as released
    "S": {"dim": 24, "prompt_dims": (32, 64, 160)},  # 8.9 M parameters
    "T": {  # 2.2 M
        "dim": 16,
        "num_blocks": (2, 2, 2, 4),
        "num_refinement_blocks": 2,
        "num_bases": (16, 16, 16),
        "prompt_dims": (16, 32, 64),
        "window_size": 8,
    },
    "XT": {  # 0.36 M: trains on a CPU, hence the small windows
        "dim": 8,
        "num_blocks": (1, 1, 1, 2),
        "num_refinement_blocks": 1,
        "ffn_expansion": 2.0,
        "num_bases": (8, 8, 8),
        "prompt_dims": (8, 16, 32),
        "window_size": 4,
    },
    "half": {  # 3.1 M, at half the resolution: what ships, for CPUs
        "dim": 24,
        "num_blocks": (2, 2, 2, 2),
        "num_refinement_blocks": 2,
        "ffn_expansion": 2.0,
        "num_bases": (8, 8, 8),
        "prompt_dims": (24, 32, 64),
        "window_size": 8,
        "unshuffle": 2,
    },
}

CAB_WEIGHT = 0.01  # HAT keeps the convolutions' share of a block small


class PromptCIR(PromptedUNet):
    """The whole network; its defaults are the released one's, 34,754,927 parameters."""

    def __init__(
        self,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion: float = 2.66,
        window_size: int = 16,
        num_tasks: int = 7,
        num_bases: Sequence[int] = (64, 32, 16),
        prompt_dims: Sequence[int] = (64, 128, 320),
        prompt_heads: int = 4,
        channels: int = 3,
        unshuffle: int = 1,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
    ):
        """Builds the network.

        Args:
            dim: channels at full resolution; they double with each level.
            num_blocks: blocks of each level, full resolution first.
            num_refinement_blocks: Restormer blocks behind the decoder.
            heads: attention heads of each level; the last decoder level, of twice
                `dim` channels, has as many as the first encoder level.
            ffn_expansion: hidden width of the feed-forward networks, in channels.
            window_size: side of the attention windows, in pixels, a multiple of 4, at
                most 64: what windows take grows with its fourth power.
            num_tasks: length of the prompt bank's second axis.
            num_bases: basis prompts of levels 1, 2, 3.
            prompt_dims: width of the prompts of levels 1, 2, 3.
            prompt_heads: attention heads of the prompt interaction blocks.
            channels: of the images: 3 for RGB, 1 for grey.
            unshuffle: 2 folds each 2 x 2 pixels into channels first, so that the whole
                network works at half the resolution, and starts with an output of
                zero; 1, as released, does not.
            rngs: where the initial parameters come from.
            dtype: type to compute in.

        Raises:
            UserError: sizes that do not go together.
        """
        if window_size % 4 or not 0 < window_size <= 64:
            raise UserError(f"window_size {window_size} is no multiple of 4 up to 64")
        if unshuffle < 1:
            raise UserError(f"unshuffle {unshuffle}: give 1 or more")
        self.window_size = window_size
        self.num_tasks = num_tasks
        self.num_bases = tuple(num_bases)
        # Level 4 has an eighth of the resolution, level 2 windows on half of it.
        self.multiple = unshuffle * max(8, 2 * window_size)

        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}

        def stage(width: int, level: int) -> nnx.Module:
            depth, h = num_blocks[level - 1], heads[level - 1]
            if level > 2:
                return transformer_blocks(width, depth, h, ffn_expansion, **options)
            return RHAG(width, depth, h, window_size, ffn_expansion, **options)

        def prompt_block(width: int, level: int) -> DPM:
            bank = (num_tasks, num_bases[level - 1], prompt_dims[level - 1])
            return DPM(width, *bank, **options)

        super().__init__(
            dim,
            num_blocks,
            num_refinement_blocks,
            heads,
            ffn_expansion,
            prompt_dims,
            prompt_heads,
            channels,
            stage,
            prompt_block,
            unshuffle=unshuffle,
            **options,
        )


Model = PromptCIR


def _linear(inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Dtype) -> Linear:
    return Linear(inputs, outputs, kernel_init=normal(0.02), dtype=dtype, rngs=rngs)


class DPM(nnx.Module):
    """Dynamic prompt module: a prompt for each pixel, mixed from a learnt bank."""

    def __init__(
        self,
        channels: int,
        tasks: int,
        bases: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.prompt = nnx.Param(uniform(0.0, 1.0)(rngs.params(), (tasks, bases, width)))
        self.basis_mlp = MLP(channels, bases, **options)
        self.task_mlp = MLP(channels, tasks, **options)
        self.conv3x3 = Conv3x3(width, width, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w width"]:
        tasks, bases = (
            jax.nn.softmax(mlp(x).astype(jnp.float32), axis=-1).astype(x.dtype)
            for mlp in (self.task_mlp, self.basis_mlp)
        )
        return self.conv3x3(mix_prompts(tasks, bases, self.prompt.astype(x.dtype)))


class MLP(nnx.Module):
    """Two linear layers, the hidden one as wide as the output."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Dtype):
        self.fc1 = _linear(inputs, outputs, rngs=rngs, dtype=dtype)
        self.fc2 = _linear(outputs, outputs, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        return self.fc2(gelu(self.fc1(x)))


class RHAG(nnx.Module):
    """Residual hybrid attention group (HAT): blocks, overlapping attention, a conv."""

    def __init__(
        self,
        channels: int,
        depth: int,
        heads: int,
        window_size: int,
        expansion: float,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        shape = (channels, heads, window_size)
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        shifts = [window_size // 2 if i % 2 else 0 for i in range(depth)]
        self.blocks = nnx.List(HAB(*shape, s, expansion, **options) for s in shifts)
        self.overlap_attn = OCAB(*shape, expansion, **options)
        self.conv = Conv3x3(channels, channels, bias=True, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = x
        for block in self.blocks:
            y = block(y)
        return x + self.conv(self.overlap_attn(y))


class HAB(Block):
    """Hybrid attention block (HAT): windows and channels attended side by side.

    The feed-forward network is Restormer's, with biases, where HAT has an MLP.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window_size: int,
        shift: int,
        expansion: float,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.norm1 = LayerNorm(channels, **options)
        self.attn = WindowAttention(channels, heads, window_size, shift, **options)
        self.conv_block = CAB(channels, **options)
        self.norm2 = LayerNorm(channels, **options)
        self.ffn = GDFN(channels, expansion, bias=True, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        n = self.norm1(x)
        x = x + self.attn(n) + CAB_WEIGHT * self.conv_block(n)
        return self.ffn(x, self.norm2)


class WindowAttention(nnx.Module):
    """Window attention with relative-position bias; with a shift, Swin's shifted one.

    The windows are shifted even where the map is a single window wide, as released.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window_size: int,
        shift: int,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        check_heads(channels, heads)
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.window_size = window_size
        self.shift = shift
        self.relative_position_bias_table = _bias_table(window_size, 0, heads, rngs)
        self.qkv = _linear(channels, 3 * channels, **options)
        self.proj = _linear(channels, channels, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        size = self.window_size
        bias = _relative_position_bias(self.relative_position_bias_table, size, 0)
        affines = (self.qkv.affine, bias, self.proj.affine)
        return attend_windows(x, *affines, size, self.shift)


class CAB(nnx.Module):
    """Channel attention block (HAT): two convolutions and a gate per channel."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"bias": True, "rngs": rngs, "dtype": dtype}
        hidden, gate = max(1, channels // 3), max(1, channels // 16)
        self.compress = Conv3x3(channels, hidden, **options)
        self.expand = Conv3x3(hidden, channels, **options)
        self.gate_in = PointwiseConv(channels, gate, **options)
        self.gate_out = PointwiseConv(gate, channels, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = self.expand(gelu(self.compress(x)))
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        return x * jax.nn.sigmoid(self.gate_out(jax.nn.relu(self.gate_in(pooled))))


class OCAB(Block):
    """Overlapping cross-attention block (HAT): keys from windows half as large again.

    Keys and values beyond the map are zeros that are not masked: they take their share
    of the softmax.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window_size: int,
        expansion: float,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        check_heads(channels, heads)
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.window_size = window_size
        self.overlap = window_size // 4
        self.relative_position_bias_table = _bias_table(
            window_size, self.overlap, heads, rngs
        )
        self.norm1 = LayerNorm(channels, **options)
        self.qkv = _linear(channels, 3 * channels, **options)
        self.proj = _linear(channels, channels, **options)
        self.norm2 = LayerNorm(channels, **options)
        self.ffn = GDFN(channels, expansion, bias=True, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        sizes = (self.window_size, self.overlap)
        bias = _relative_position_bias(self.relative_position_bias_table, *sizes)
        affines = (self.qkv.affine, bias, self.proj.affine)
        x = x + attend_overlapping_windows(self.norm1(x), *affines, *sizes)
        return self.ffn(x, self.norm2)


def _bias_table(size: int, overlap: int, heads: int, rngs: nnx.Rngs) -> nnx.Param:
    init = normal(0.02)
    entries = (2 * size + 2 * overlap - 1) ** 2
    return nnx.Param(init(rngs.params(), (entries, heads), jnp.float32))


def _relative_position_bias(
    table: nnx.Param, size: int, overlap: int
) -> Float[Array, "heads q k"]:
    # Head by head: what is looked up of all heads at once would have to be transposed.
    index = relative_position_index(size, overlap)
    return jnp.stack([entries[index] for entries in table[...].T])
