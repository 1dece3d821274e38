"""Restormer: Efficient Transformer for High-Resolution Image Restoration (2111.09881).

Zamir et al., CVPR 2022. A four-level U-Net that predicts what to add to the image, of
blocks that attend across channels (MDTA) and so cost no more than linearly in pixels.
The backbone of PromptIR and of PromptCIR's lower levels.

This is the released network; maps stay NHWC throughout, sizes are free (`VARIANTS`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from cir_jax.models.layers import (
    Conv3x3,
    Downsample,
    Guide,
    PointwiseConv,
    RestorationModel,
    Upsample,
    join,
    transformer_blocks,
    unguided,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},  # as released
    "S": {"dim": 24},  # 6.7 M parameters
    "T": {  # 1.6 M
        "dim": 16,
        "num_blocks": (2, 2, 2, 4),
        "num_refinement_blocks": 2,
    },
    "XT": {  # 0.24 M: trains on a CPU
        "dim": 8,
        "num_blocks": (1, 1, 1, 2),
        "num_refinement_blocks": 1,
        "ffn_expansion": 2.0,
    },
}


class Restormer(RestorationModel):
    """The whole network; its defaults are the released one's, 26,126,644 parameters."""

    scale = 1
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
            norm: "with_bias", or "bias_free" as released for denoising.
            channels: of the images: 3 for RGB, 1 for grey.
            rngs: where the initial parameters come from.
            dtype: type to compute in.

        Raises:
            UserError: an unknown norm, or sizes that do not go together.
        """
        self.dim = dim
        self.num_blocks = tuple(num_blocks)
        self.num_refinement_blocks = num_refinement_blocks
        self.heads = tuple(heads)
        self.ffn_expansion = ffn_expansion
        self.bias = bias
        self.norm = norm
        self.channels = channels

        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        biased: Mapping[str, Any] = {"bias": bias, **options}
        widths = [dim, 2 * dim, 4 * dim, 8 * dim]
        self.guided_widths = (widths[1], *widths[1:])

        def blocks(width: int, depth: int, heads: int) -> nnx.Sequential:
            return transformer_blocks(
                width, depth, heads, ffn_expansion, norm=norm, **biased
            )

        self.patch_embed = Conv3x3(channels, dim, **options)
        self.encoder_level1 = blocks(widths[0], num_blocks[0], heads[0])
        self.down1_2 = Downsample(widths[0], **options)
        self.encoder_level2 = blocks(widths[1], num_blocks[1], heads[1])
        self.down2_3 = Downsample(widths[1], **options)
        self.encoder_level3 = blocks(widths[2], num_blocks[2], heads[2])
        self.down3_4 = Downsample(widths[2], **options)
        self.latent = blocks(widths[3], num_blocks[3], heads[3])

        self.up4_3 = Upsample(widths[3], **options)
        self.reduce_chan_level3 = PointwiseConv(widths[3], widths[2], **biased)
        self.decoder_level3 = blocks(widths[2], num_blocks[2], heads[2])
        self.up3_2 = Upsample(widths[2], **options)
        self.reduce_chan_level2 = PointwiseConv(widths[2], widths[1], **biased)
        self.decoder_level2 = blocks(widths[1], num_blocks[1], heads[1])
        self.up2_1 = Upsample(widths[1], **options)
        self.decoder_level1 = blocks(widths[1], num_blocks[0], heads[0])

        self.refinement = blocks(widths[1], num_refinement_blocks, heads[0])
        self.output = Conv3x3(widths[1], channels, **biased)

    def __call__(
        self, image: Float[Array, "b h w c"], guide: Guide = unguided
    ) -> Float[Array, "b h w c"]:
        """Restores images.

        Args:
            image: in [0, 1]; height and width are multiples of 8.
            guide: see `layers.Guide`.

        Returns:
            The restored images, about [0, 1], not clipped.

        Raises:
            UserError: the size is no multiple of 8.
        """
        self.check_size(image)
        encoded1 = self.encoder_level1(self.patch_embed(image))
        encoded2 = self.encoder_level2(self.down1_2(encoded1))
        encoded3 = self.encoder_level3(self.down2_3(encoded2))
        x = self.latent(guide(self.down3_4(encoded3), 4))

        x = self.reduce_chan_level3(join(self.up4_3(x), encoded3))
        x = self.decoder_level3(guide(x, 3))
        x = self.reduce_chan_level2(join(self.up3_2(x), encoded2))
        x = self.decoder_level2(guide(x, 2))
        x = self.decoder_level1(guide(join(self.up2_1(x), encoded1), 1))

        x = self.output(self.refinement(x))
        return image + x.astype(image.dtype)


Model = Restormer
