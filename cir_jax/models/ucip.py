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
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Int

from cir_jax.errors import UserError, unknown
from cir_jax.models.layers import (
    Block,
    DepthwiseConv,
    LayerNorm,
    Linear,
    RestorationModel,
    normal,
    uniform,
)
from cir_jax.models.pooling import Pool
from cir_jax.ops.axial_sample import axial_sample
from cir_jax.ops.enlarge import enlarge
from cir_jax.ops.gelu import gelu
from cir_jax.ops.layer_norm import EPSILON
from cir_jax.ops.prompt_mixing import mix_prompts

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
WIDTH_AXIS, HEIGHT_AXIS = 2, 1


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
        self.patch_embed = _conv(channels, width, 5, **options)
        self.prompts = nnx.List(DPM(width, *bank, mixing, **options) for _ in depths)
        self.pos_blocks = nnx.List(PEG(width, **options) for _ in depths)
        self.blocks = nnx.List(
            PTMB(depth, offset_every, *shape, **options) for depth in depths
        )
        self.norm = LayerNorm(width, **options)
        self.conv_after_body = _conv(width, width, **options)
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


def _conv(
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
        self.mlp_shared = _conv(prompt_dim, hidden, **options)
        self.mlp_gamma = _conv(hidden, channels, **options)
        self.mlp_beta = _conv(hidden, channels, **options)

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
        self.conv_before_up = _conv(inputs, width, **options)
        self.conv_up1 = _conv(width, width, **options) if scale == 4 else None
        self.conv_up2 = _conv(width, width, **options) if scale == 4 else None
        self.conv_hr = _conv(width, width, **options)
        last = nnx.initializers.zeros if starts_at_zero else None
        self.conv_last = _conv(width, channels, kernel_init=last, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W o"]:
        x = jax.nn.leaky_relu(self.conv_before_up(x), 0.01)
        for conv in (self.conv_up1, self.conv_up2):
            if conv is not None:
                twice = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = jax.nn.leaky_relu(conv(twice), 0.2)
        return self.conv_last(jax.nn.leaky_relu(self.conv_hr(x), 0.2))
