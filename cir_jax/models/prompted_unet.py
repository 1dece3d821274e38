"""The four-level U-Net that PromptIR and PromptCIR share: prompts guide its decoder."""

from collections.abc import Callable, Mapping, Sequence
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
    TransformerBlock,
    Upsample,
    join,
    transformer_blocks,
    unguided,
)
from cir_jax.ops.pixel_shuffle import pixel_shuffle, pixel_unshuffle


class PromptedUNet(RestorationModel):
    """A U-Net that predicts what to add to the image.

    Before each step up, a prompt that was made of the features is joined to them, and
    a Restormer block and a 1x1 convolution take in what it says.

    Args:
        stage: makes the blocks of a level, given their width and the level.
        prompt_block: makes what makes a level's prompts, given the width of the
            features and the level.
        unshuffle: side of the cells of pixels that the image's are folded into, as
            FFDNet does (1710.04026): level 1 is at that much less resolution. Above 1
            the last convolution starts at zero: an untrained network changes nothing.
        bias: whether Restormer blocks, 1x1 convolutions and the last one have biases.
        norm: of the Restormer blocks.
        others: the hyper-parameters that the networks have in common, see there.
    """

    scale = 1

    def __init__(
        self,
        dim: int,
        num_blocks: Sequence[int],
        num_refinement_blocks: int,
        heads: Sequence[int],
        ffn_expansion: float,
        prompt_dims: Sequence[int],
        prompt_heads: int,
        channels: int,
        stage: Callable[[int, int], nnx.Module],
        prompt_block: Callable[[int, int], nnx.Module],
        *,
        unshuffle: int = 1,
        bias: bool = False,
        norm: str = "with_bias",
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        self.dim = dim
        self.num_blocks = tuple(num_blocks)
        self.num_refinement_blocks = num_refinement_blocks
        self.heads = tuple(heads)
        self.ffn_expansion = ffn_expansion
        self.prompt_dims = tuple(prompt_dims)
        self.prompt_heads = prompt_heads
        self.channels = channels
        self.unshuffle = unshuffle

        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        biased: Mapping[str, Any] = {"bias": bias, **options}
        block: Mapping[str, Any] = {"norm": norm, **biased}
        widths = [dim, 2 * dim, 4 * dim, 8 * dim]
        self.guided_widths = (widths[1], *widths[1:])

        def prompt(level: int) -> tuple[nnx.Module, TransformerBlock, PointwiseConv]:
            # What comes out has the width that the next "up" layer expects.
            inputs, outputs = widths[level], widths[min(level, 2)]
            joint = inputs + prompt_dims[level - 1]
            return (
                prompt_block(inputs, level),
                TransformerBlock(joint, prompt_heads, ffn_expansion, **block),
                PointwiseConv(joint, outputs, **biased),
            )

        folded = channels * unshuffle**2
        self.patch_embed_input = Conv3x3(folded, dim, **options)
        self.encoder_level1 = stage(widths[0], 1)
        self.down1_2 = Downsample(widths[0], **options)
        self.encoder_level2 = stage(widths[1], 2)
        self.down2_3 = Downsample(widths[1], **options)
        self.encoder_level3 = stage(widths[2], 3)
        self.down3_4 = Downsample(widths[2], **options)
        self.latent = stage(widths[3], 4)

        self.prompt3, self.noise_level3, self.reduce_noise_level3 = prompt(3)
        self.up4_3 = Upsample(widths[2], **options)
        self.reduce_chan_level3 = PointwiseConv(6 * dim, widths[2], **biased)
        self.decoder_level3 = stage(widths[2], 3)

        self.prompt2, self.noise_level2, self.reduce_noise_level2 = prompt(2)
        self.up3_2 = Upsample(widths[2], **options)
        self.reduce_chan_level2 = PointwiseConv(4 * dim, widths[1], **biased)
        self.decoder_level2 = stage(widths[1], 2)

        self.prompt1, self.noise_level1, self.reduce_noise_level1 = prompt(1)
        self.up2_1 = Upsample(widths[1], **options)
        self.decoder_level1 = stage(widths[1], 1)

        self.refinement = transformer_blocks(
            widths[1], num_refinement_blocks, heads[0], ffn_expansion, **block
        )
        self.output = Conv3x3(widths[1], folded, **biased)
        if unshuffle > 1:
            self.output.kernel[...] = jnp.zeros_like(self.output.kernel[...])

    def __call__(
        self, image: Float[Array, "b h w c"], guide: Guide = unguided
    ) -> Float[Array, "b h w c"]:
        """Restores images.

        Args:
            image: in [0, 1]; height and width are multiples of `multiple`.
            guide: see `layers.Guide`.

        Returns:
            The restored images, about [0, 1], not clipped.

        Raises:
            UserError: the size is no multiple of `multiple`.
        """
        self.check_size(image)
        folded = pixel_unshuffle(image, self.unshuffle)
        encoded1 = self.encoder_level1(self.patch_embed_input(folded))
        encoded2 = self.encoder_level2(self.down1_2(encoded1))
        encoded3 = self.encoder_level3(self.down2_3(encoded2))
        x = self.latent(guide(self.down3_4(encoded3), 4))

        x = self.noise_level3(join(x, self.prompt3(x)))
        x = self.up4_3(self.reduce_noise_level3(x))
        x = self.reduce_chan_level3(join(x, encoded3))
        x = self.decoder_level3(guide(x, 3))

        x = self.noise_level2(join(x, self.prompt2(x)))
        x = self.up3_2(self.reduce_noise_level2(x))
        x = self.reduce_chan_level2(join(x, encoded2))
        x = self.decoder_level2(guide(x, 2))

        x = self.noise_level1(join(x, self.prompt1(x)))
        x = self.up2_1(self.reduce_noise_level1(x))
        x = self.decoder_level1(guide(join(x, encoded1), 1))

        x = pixel_shuffle(self.output(self.refinement(x)), self.unshuffle)
        return image + x.astype(image.dtype)
