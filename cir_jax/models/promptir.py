# ruff: noqa: D102  (what a layer does when called is its class docstring)
"""PromptIR: Prompting for All-in-One Blind Image Restoration (2306.13090).

Potlapalli et al., NeurIPS 2023. Restormer's blocks in a four-level U-Net
(prompted_unet.py); before each step up, a prompt tells the decoder how the image was
degraded: a weighted sum of learnt maps, the weights read off the mean of the features.

This is the released network with its decoder prompts on, without which its layers do
not fit together; maps stay NHWC throughout, sizes are free (`VARIANTS`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from cir_jax.models.layers import (
    Conv3x3,
    PointwiseConv,
    linear,
    transformer_blocks,
    uniform,
)
from cir_jax.models.prompted_unet import PromptedUNet

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},  # as released
    "S": {"dim": 24, "prompt_dims": (32, 64, 160)},  # 9.7 M parameters
    "T": {  # 2.2 M
        "dim": 16,
        "num_blocks": (2, 2, 2, 4),
        "num_refinement_blocks": 2,
        "prompt_sizes": (32, 16, 8),
        "prompt_dims": (16, 32, 64),
    },
    "XT": {  # 0.35 M: trains on a CPU
        "dim": 8,
        "num_blocks": (1, 1, 1, 2),
        "num_refinement_blocks": 1,
        "ffn_expansion": 2.0,
        "prompt_sizes": (16, 8, 4),
        "prompt_dims": (8, 16, 32),
    },
}


class PromptIR(PromptedUNet):
    """The whole network; its defaults are the released one's, 35,592,263 parameters.

    That counts 215,296 in 1x1 convolutions that nothing uses.
    """

    multiple = 8

    def __init__(
        self,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion: float = 2.66,
        bias: bool = False,
        norm: str = "with_bias",
        prompt_length: int = 5,
        prompt_sizes: Sequence[int] = (64, 32, 16),
        prompt_dims: Sequence[int] = (64, 128, 320),
        prompt_heads: int = 4,
        channels: int = 3,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
    ):
        """Builds the network.

        Args:
            dim: channels at full resolution; they double with each level.
            num_blocks: blocks of each level, full resolution first.
            num_refinement_blocks: blocks behind the decoder.
            heads: attention heads of each level; the last decoder level, of twice
                `dim` channels, has as many as the first encoder level.
            ffn_expansion: hidden width of the feed-forward networks, in channels.
            bias: whether blocks, 1x1 convolutions and the last one have biases.
            norm: "with_bias" or "bias_free".
            prompt_length: how many maps each prompt is a weighted sum of.
            prompt_sizes: sides of these maps at levels 1, 2, 3, in pixels.
            prompt_dims: width of the prompts of levels 1, 2, 3.
            prompt_heads: attention heads of the prompt interaction blocks.
            channels: of the images: 3 for RGB, 1 for grey.
            rngs: where the initial parameters come from.
            dtype: type to compute in.

        Raises:
            UserError: an unknown norm, or sizes that do not go together.
        """
        self.bias = bias
        self.norm = norm
        self.prompt_length = prompt_length
        self.prompt_sizes = tuple(prompt_sizes)

        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        biased: Mapping[str, Any] = {"bias": bias, **options}

        def stage(width: int, level: int) -> nnx.Sequential:
            depth, h = num_blocks[level - 1], heads[level - 1]
            return transformer_blocks(
                width, depth, h, ffn_expansion, norm=norm, **biased
            )

        def prompt_block(width: int, level: int) -> PromptBlock:
            bank = (prompt_length, prompt_sizes[level - 1], prompt_dims[level - 1])
            return PromptBlock(width, *bank, **options)

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
            norm=norm,
            **biased,
        )

        # Never used, but official state dicts hold them, and are to come back whole.
        # Officially 64, 128 and 256 channels lie between the two; for other sizes the
        # rule is: as many as level 1's prompt, twice as many with each further level.
        def unused(level: int) -> tuple[PointwiseConv, PointwiseConv]:
            times = 2 ** (level - 1)
            width, between = times * dim, times * prompt_dims[0]
            return (
                PointwiseConv(prompt_dims[level - 1], between, **biased),
                PointwiseConv(width + between, width, **biased),
            )

        self.chnl_reduce1, self.reduce_noise_channel_1 = unused(1)
        self.chnl_reduce2, self.reduce_noise_channel_2 = unused(2)
        self.chnl_reduce3, self.reduce_noise_channel_3 = unused(3)


Model = PromptIR


class PromptBlock(nnx.Module):
    """Makes an image's prompt: learnt maps, weighted by what the features' mean says.

    Maps are as large as in the images that the network was trained on: they are resized
    to the features, bilinearly, and skip pixels where they shrink, as in PyTorch.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        size: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        bank = uniform(0.0, 1.0)(rngs.params(), (length, size, size, width))
        self.prompt_param = nnx.Param(bank)
        self.linear_layer = linear(channels, length, **options)
        self.conv3x3 = Conv3x3(width, width, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w width"]:
        b, h, w, _ = x.shape
        mean = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        weights = jax.nn.softmax(self.linear_layer(mean).astype(jnp.float32), axis=-1)
        bank = self.prompt_param[...].astype(x.dtype)
        prompt = jnp.einsum("bl,lijc->bijc", weights.astype(x.dtype), bank)
        shape = (b, h, w, prompt.shape[-1])
        return self.conv3x3(
            jax.image.resize(prompt, shape, "bilinear", antialias=False)
        )
