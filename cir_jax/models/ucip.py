# ruff: noqa: D102  (what a layer does when called is its class docstring)
"""UCIP: Universal Compressed Image Super-Resolution using Dynamic Prompt (2407.13108).

Li et al., ECCV 2024. Images that one of several codecs has compressed, enlarged four
times. Tokens are mixed as in ActiveMLP (2203.06108), along the width and the height at
learnt distances and in a small neighbourhood; prompts, mixed per pixel from a learnt
bank, steer the distances and modulate what comes out (SPADE, 1903.07291).

This is the network of the released code (`UCIP_Middle`, its own `mixing` being
"codec"): each codec has prompts of its own, and the caller says which to use. What
differs from that code: maps stay NHWC throughout; shifted sampling is no deformable
convolution; sizes are free (`VARIANTS`); and four things are added, all off by default:

* blind mixing: where the caller names no codec, a small network predicts the mixture of
  the codecs' prompts, per pixel as PromptCIR does or per image;
* `skip`: the network adds to the bicubically enlarged image. Its last convolution then
  starts at zero, so that an untrained network is bicubic enlargement;
* scale 1, the removal of artefacts: the head loses its two enlarging steps, each with
  its convolution;
* `head_width`: the head works at full resolution and would dominate small networks.

Instance norms and the shares of the three mixings see the whole image: in tiles the
means come from a sample of it (pooling.py), so that it is restored as one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from cir_jax.errors import UserError, unknown
from cir_jax.models.layers import LayerNorm, RestorationModel
from cir_jax.models.pooling import Pool
from cir_jax.models.ucip_blocks import DPM, PEG, PTMB, conv
from cir_jax.ops.enlarge import enlarge

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},  # as released
    "S": {  # 4.4 M parameters
        "width": 96,
        "depths": (6, 6, 6, 6),
        "prompt_dim": 48,
        "head_width": 48,
        "skip": True,
        "mixing": "pixel",
    },
    "T": {  # 1.0 M
        "width": 64,
        "depths": (4, 4, 4),
        "prompt_dim": 32,
        "head_width": 32,
        "skip": True,
        "mixing": "pixel",
    },
    "XT": {  # 0.12 M: trains on a CPU
        "width": 32,
        "depths": (3, 3),
        "prompt_dim": 16,
        "mlp_ratio": 2.0,
        "head_width": 16,
        "skip": True,
        "mixing": "pixel",
    },
}

MIXINGS = ("codec", "image", "pixel")


class UCIP(RestorationModel):
    """The whole network; its defaults are the released one's, 11,424,291 parameters."""

    multiple = 1  # nothing shrinks or windows the map
    pools = True
    tile = 1024  # the larger, the better the sample that the means come from

    def __init__(
        self,
        width: int = 128,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        prompt_dim: int = 64,
        bases: int = 8,
        mlp_ratio: float = 4.0,
        share: int = 2,
        offset_every: int = 2,
        head_width: int = 64,
        scale: int = 4,
        skip: bool = False,
        mixing: str = "codec",
        codecs: Sequence[str | int] = ("0", "1", "2", "3", "4", "5"),
        channels: int = 3,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
    ):
        """Builds the network.

        Args:
            width: channels.
            depths: blocks (PTMM) of each group (PTMB).
            prompt_dim: width of the prompts.
            bases: basis prompts of each codec, in each group.
            mlp_ratio: hidden width of the feed-forward networks, in channels.
            share: consecutive channels that are shifted alike.
            offset_every: how many blocks use the same offsets.
            head_width: channels of the reconstruction head.
            scale: 4 enlarges four times, 1 keeps the size.
            skip: whether the output is added to the bicubically enlarged image.
            mixing: where the mixture of the codecs' prompts comes from: "codec" if the
                caller says it; "pixel" or "image" if it is predicted, and how finely.
            codecs: names of the codecs, in the order of their prompts. The released
                weights' order is not known, so that numbers stand for their names;
                and where the mixture is predicted, only how many there are counts.
            channels: of the images: 3 for RGB, 1 for grey.
            rngs: where the initial parameters come from.
            dtype: type to compute in.

        Raises:
            UserError: values that do not go together or are not known.
        """
        _check(width, depths, share, scale, mixing, codecs)
        self.width = width
        self.depths = tuple(depths)
        self.prompt_dim = prompt_dim
        self.bases = bases
        self.mlp_ratio = mlp_ratio
        self.share = share
        self.offset_every = offset_every
        self.head_width = head_width
        self.scale = scale
        self.skip = skip
        self.mixing = mixing
        self.codecs = tuple(map(str, codecs))
        self.channels = channels

        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        shape = (width, prompt_dim, mlp_ratio, share)
        bank = (len(self.codecs), bases, prompt_dim)
        self.patch_embed = conv(channels, width, 5, **options)
        self.prompts = nnx.List(DPM(width, *bank, mixing, **options) for _ in depths)
        self.pos_blocks = nnx.List(PEG(width, **options) for _ in depths)
        self.blocks = nnx.List(
            PTMB(depth, offset_every, *shape, **options) for depth in depths
        )
        self.norm = LayerNorm(width, **options)
        self.conv_after_body = conv(width, width, **options)
        self.head = Reconstruction(width, head_width, channels, scale, skip, **options)

    @property
    def known_codecs(self) -> tuple[str, ...]:
        """The codecs that a call may name; () if the mixture is predicted."""
        return self.codecs if self.mixing == "codec" else ()

    def __call__(
        self,
        image: Float[Array, "b h w c"],
        codec: Int[Array, " b"] | None = None,
        pool: Pool | None = None,
    ) -> Float[Array, "b H W c"]:
        """Restores images.

        Args:
            image: in [0, 1], of any size.
            codec: which codec compressed each image, as `codec_index` gives it; 0 for
                all by default, which is what the released evaluation passes. Only if
                the mixing is "codec".
            pool: where the means over the whole image come from.

        Returns:
            The restored images, `scale` times as large, about [0, 1], not clipped.
        """
        pool = pool or Pool()
        told = None
        if self.mixing == "codec":
            codec = jnp.zeros(image.shape[0], jnp.int32) if codec is None else codec
            told = jax.nn.one_hot(codec, len(self.codecs))
        elif codec is not None:
            raise UserError(f"mixing {self.mixing!r} predicts the codec: give none")

        x = shallow = self.patch_embed(image)
        groups = zip(self.prompts, self.pos_blocks, self.blocks, strict=True)
        for prompts, peg, group in groups:
            x = x + group(x, prompts(x, pool, told), peg, pool)
        x = shallow + self.conv_after_body(self.norm(x))

        x = self.head(x).astype(image.dtype)
        return x + enlarge(image, self.scale) if self.skip else x


Model = UCIP


def _check(
    width: int,
    depths: Sequence[int],
    share: int,
    scale: int,
    mixing: str,
    codecs: Sequence[str | int],
) -> None:
    if mixing not in MIXINGS:
        raise unknown("mixing", mixing, MIXINGS)
    if scale not in (1, 4):
        raise UserError(f"scale {scale}: expected 1 or 4")
    if min(depths, default=0) < 2:
        raise UserError(
            f"depths {tuple(depths)}: each group needs 2 blocks or more, because its "
            "last block makes no offsets"
        )
    if width % share:
        raise UserError(f"share {share} does not divide width {width}")
    if (
        isinstance(codecs, str)
        or not codecs
        or len(set(map(str, codecs))) < len(codecs)
    ):
        raise UserError(f"codecs {codecs!r}: expected a list of different names")


class Reconstruction(nnx.Module):
    """The head: convolutions, at scale 4 with two steps of nearest enlargement."""

    def __init__(
        self,
        inputs: int,
        width: int,
        channels: int,
        scale: int,
        starts_at_zero: bool,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.conv_before_up = conv(inputs, width, **options)
        self.conv_up1 = conv(width, width, **options) if scale == 4 else None
        self.conv_up2 = conv(width, width, **options) if scale == 4 else None
        self.conv_hr = conv(width, width, **options)
        last = nnx.initializers.zeros if starts_at_zero else None
        self.conv_last = conv(width, channels, kernel_init=last, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W o"]:
        x = jax.nn.leaky_relu(self.conv_before_up(x), 0.01)
        for enlarging in (self.conv_up1, self.conv_up2):
            if enlarging is not None:
                twice = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = jax.nn.leaky_relu(enlarging(twice), 0.2)
        return self.conv_last(jax.nn.leaky_relu(self.conv_hr(x), 0.2))
