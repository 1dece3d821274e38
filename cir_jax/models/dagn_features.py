# ruff: noqa: D102  (what a layer does when called is its class docstring)
"""What compression does not change in an image, and what it does: two auto-encoders.

The first stage of DAGN (Ma, Zhao, Peng, Tian, "Sensitivity Decouple Learning for Image
Compression Artifacts Reduction", 2405.09291). No code was ever released and only the
abstract's ideas are known here; every width, loss and layer below is a stand-in built
on them, not the paper's network:

* the compression-insensitive auto-encoder makes the original of the compressed image
  and of the original alike, while a discriminator learns to tell their codes apart and
  the encoder learns to let it not;
* the compression-sensitive one makes the compressed image again, and from its code a
  head tells codec and quality.

decoupling.py has the losses. As a restorer it answers with what the insensitive
auto-encoder reconstructs.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from cir_jax.errors import UserError
from cir_jax.models.layers import (
    Block,
    Conv3x3,
    PointwiseConv,
    RestorationModel,
    join,
    linear,
)
from cir_jax.models.pooling import Pool
from cir_jax.ops.pixel_shuffle import pixel_shuffle, pixel_unshuffle

SCALES = 3
"""Of the features: a half, a quarter and an eighth of the image's sides."""
DETAIL_GAIN = JUDGE_GAIN = 10.0
MIDDLE = 0.5
"""Of the images' range: what encoders see is centred."""
NO_CODEC = "none"
"""What an image that no codec has touched is told to be."""

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "XT": {"feature_dim": 16, "feature_blocks": 1},
}

Maps = list[Float[Array, "b _ _ _"]]
"""Features at a half, a quarter and an eighth of an image's height and width."""


class Identified(NamedTuple):
    """What the head tells of images.

    Attributes:
        logits: of no codec, then of each codec that it knows.
        qualities: for each codec, were it that: 0 for its worst picture, 1 for its
            best; not clipped.
    """

    logits: Float32[Array, "b n+1"]
    qualities: Float32[Array, "b n"]


class CodecScale(NamedTuple):
    """A codec's name, and its qualities that count as 0 and 1."""

    name: str
    worst: int
    best: int

    def own(self, share: float) -> float:
        """The codec's quality that counts as a number from 0 to 1."""
        return self.worst + (self.best - self.worst) * share


def codec_scales(texts: Sequence[str]) -> tuple[CodecScale, ...]:
    """Reads the codecs that a head tells apart, such as "jpeg 1 100" or "hevc 51 0".

    Raises:
        UserError: none at all, one twice, or one is not NAME WORST BEST.
    """
    scales = []
    for text in texts:
        try:
            name, *ends = text.split()
            worst, best = map(int, ends)
        except ValueError:
            name, worst, best = "", 0, 0
        if worst == best or name in (NO_CODEC, *(scale.name for scale in scales)):
            raise UserError(
                f"config.model.codecs={list(texts)}: give each codec once, as NAME "
                "WORST BEST with its qualities, such as 'jpeg 1 100' or 'hevc 51 0'"
            )
        scales.append(CodecScale(name, worst, best))
    if not scales:
        raise UserError("config.model.codecs is empty: name one at least")
    return tuple(scales)


class DAGNFeatures(RestorationModel):
    """Both auto-encoders, the quality head and, if wanted, the discriminator."""

    scale = 1
    multiple = 2**SCALES

    def __init__(
        self,
        feature_dim: int = 64,
        feature_blocks: int = 2,
        codecs: Sequence[str] = ("jpeg 1 100",),
        adversarial: bool = True,
        channels: int = 3,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
    ):
        """Builds the networks.

        Args:
            feature_dim: channels of the features at half resolution; twice and four
                times as many at the next.
            feature_blocks: residual blocks at each scale of encoders and decoders.
            codecs: those that the head tells apart, see `codec_scales`.
            adversarial: whether there is a discriminator.
            channels: of the images.
            rngs: where the initial parameters come from.
            dtype: type to compute in.
        """
        self.feature_dim, self.feature_blocks = feature_dim, feature_blocks
        self.codecs = tuple(codecs)
        self.adversarial, self.channels = adversarial, channels
        sizes = (channels, feature_dim, feature_blocks)
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.insensitive = InsensitiveEncoder(*sizes, **options)
        self.insensitive_image = ToImage(channels, feature_dim, **options)
        self.sensitive = SensitiveEncoder(*sizes, self.codecs, **options)
        self.sensitive_decoder = Decoder(feature_dim, feature_blocks, **options)
        self.sensitive_image = ToImage(channels, feature_dim, **options)
        self.discriminator = (
            Discriminator(code_dim(feature_dim), **options) if adversarial else None
        )

    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """What the insensitive auto-encoder takes for the originals of images.

        Args:
            image: in [0, 1]; height and width multiples of 8.

        Raises:
            UserError: height or width is no such multiple.
        """
        self.check_size(image)
        return self.insensitive_image(self.insensitive(image)[0])


class InsensitiveEncoder(nnx.Module):
    """Images to maps of what compression does not change.

    They are what a decoder makes of the code alone, without skips: the encoder's own
    larger maps have seen the artefacts, and no discriminator has seen them.
    """

    def __init__(
        self, channels: int, dim: int, depth: int, *, rngs: nnx.Rngs, dtype: Dtype
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        # Nothing is rectified on the way, or it learns to reconstruct far more slowly.
        down = [
            Down(before, after, **options)
            for before, after in itertools.pairwise([channels, *widths(dim)])
        ]
        self.encoder = Encoder(down, dim, depth, **options)
        width = widths(dim)[-1]
        self.read = PointwiseConv(2 * width, width, bias=True, **options)
        self.decoder = Decoder(dim, depth, **options)

    def __call__(self, image: Float[Array, "b h w c"]) -> Maps:
        return self.decode(self.code(image))

    def code(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h//8 w//8 d"]:
        """What all maps are made of, positive and negative parts side by side.

        So a mean over them tells how strong details are, which is what compression
        takes away, and nothing is lost (concatenated ReLU: Shang et al., 1603.05201).
        """
        x = self.encoder(image - MIDDLE)[-1]
        return join(jax.nn.relu(x), jax.nn.relu(-x))

    def decode(self, code: Float[Array, "b h w d"]) -> Maps:
        """The maps of a code."""
        return self.decoder(self.read(code))


class SensitiveEncoder(nnx.Module):
    """Images to maps of how they were compressed, and its head.

    Beside the image it sees its `detail`, or the head learns far more slowly:
    what compression leaves is small beside what the picture shows.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        depth: int,
        codecs: Sequence[str],
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.stem = Conv3x3(2 * channels, dim, bias=True, **options)
        down = [
            RectifiedDown(before, after, **options)
            for before, after in itertools.pairwise([dim, *widths(dim)])
        ]
        self.encoder = Encoder(down, dim, depth, **options)
        self.head = QualityHead(widths(dim)[-1], len(codec_scales(codecs)), **options)

    def __call__(self, image: Float[Array, "b h w c"]) -> Maps:
        seen = join(image - MIDDLE, detail(image))
        return self.encoder(jax.nn.relu(self.stem(seen)))

    def identify(self, image: Float[Array, "b h w c"]) -> Identified:
        """Codec and quality of images in [0, 1], sides multiples of 8."""
        return self.head(self(image)[-1])


def detail(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """How far pixels are from the mean of the 3x3 around them, ten times enlarged."""
    window, padding = (1, 3, 3, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = jnp.pad(image, padding, mode="edge")
    total = jax.lax.reduce_window(
        padded, 0.0, jax.lax.add, window, (1, 1, 1, 1), "VALID"
    )
    return DETAIL_GAIN * (image - total / 9)


def widths(dim: int, levels: int = SCALES) -> list[int]:
    """Channels at every scale of features, or at so many levels: each twice as many."""
    return [dim << level for level in range(levels)]


def code_dim(dim: int) -> int:
    """Channels of the insensitive code."""
    return 2 * widths(dim)[-1]


class Encoder(nnx.Module):
    """At each scale half the resolution, then residual blocks."""

    def __init__(
        self,
        down: Sequence[nnx.Module],
        dim: int,
        depth: int,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        self.down = nnx.List(down)
        self.blocks = nnx.List(
            residual_blocks(width, depth, rngs=rngs, dtype=dtype)
            for width in widths(dim)
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Maps:
        maps = []
        for down, blocks in zip(self.down, self.blocks, strict=True):
            x = blocks(down(x))
            maps.append(x)
        return maps


class Decoder(nnx.Module):
    """The encoder's mirror image: the smallest map to maps at every scale."""

    def __init__(self, dim: int, depth: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.blocks = nnx.List(
            residual_blocks(width, depth, **options) for width in widths(dim)
        )
        self.up = nnx.List(
            Up(width, width // 2, **options) for width in widths(dim)[1:]
        )

    def __call__(self, code: Float[Array, "b h w d"]) -> Maps:
        maps = [self.blocks[-1](code)]
        for level in reversed(range(SCALES - 1)):
            maps.insert(0, self.blocks[level](self.up[level](maps[0])))
        return maps


class ToImage(nnx.Module):
    """A map at half resolution to an image."""

    def __init__(self, channels: int, dim: int, *, rngs: nnx.Rngs, dtype: Dtype):
        self.up = Up(dim, channels, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b 2*h 2*w c"]:
        return self.up(x) + MIDDLE


class QualityHead(nnx.Module):
    """The mean of the rectified code, then two layers: see `Identified`."""

    def __init__(self, dim: int, codecs: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.hidden = linear(dim, dim, **options)
        self.out = linear(dim, 2 * codecs + 1, **options)

    def __call__(self, code: Float[Array, "b h w d"]) -> Identified:
        pooled = Pool()(jax.nn.relu(code))[:, 0, 0]
        told = self.out(jax.nn.relu(self.hidden(pooled))).astype(jnp.float32)
        known = told.shape[-1] // 2 + 1
        return Identified(told[:, :known], told[:, known:])


class Discriminator(nnx.Module):
    """Three layers on the code at each place, and the mean over places.

    It gives a number for each code, large for an original's; not in [0, 1]. Codes of
    the two differ little, so that without a gain all its numbers would be near 0.
    """

    def __init__(self, dim: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"bias": True, "rngs": rngs, "dtype": dtype}
        self.layer1 = PointwiseConv(dim, dim, **options)
        self.layer2 = PointwiseConv(dim, dim, **options)
        self.out = PointwiseConv(dim, 1, **options)

    def __call__(self, code: Float[Array, "b h w d"]) -> Float32[Array, " b"]:
        # By its direction at each place alone: no code becomes alike by becoming small.
        power = jnp.mean(jnp.square(code), axis=-1, keepdims=True, dtype=jnp.float32)
        x = code * jax.lax.rsqrt(power + 1e-6).astype(code.dtype)
        for layer in (self.layer1, self.layer2):
            x = jax.nn.leaky_relu(layer(x), 0.2)
        return JUDGE_GAIN * self.out(x).mean(axis=(1, 2, 3), dtype=jnp.float32)


class Up(nnx.Module):
    """Twice the resolution: a transposed convolution, 2x2 of stride 2."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.conv = PointwiseConv(inputs, 4 * outputs, bias=True, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w d"]:
        return pixel_shuffle(self.conv(x))


class Down(nnx.Module):
    """Half the resolution: a convolution, 2x2 of stride 2."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.conv = PointwiseConv(4 * inputs, outputs, bias=True, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 d"]:
        return self.conv(pixel_unshuffle(x))


class RectifiedDown(nnx.Module):
    """Half the resolution: a 3x3 convolution of stride 2, rectified."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.conv = Conv3x3(inputs, outputs, bias=True, stride=2, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 d"]:
        return jax.nn.relu(self.conv(x))


class ResidualBlock(Block):
    """x + conv(relu(conv(x)))."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"bias": True, "rngs": rngs, "dtype": dtype}
        self.conv1 = Conv3x3(channels, channels, **options)
        self.conv2 = Conv3x3(channels, channels, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.conv2(jax.nn.relu(self.conv1(x)))


def residual_blocks(channels: int, depth: int, **options: Any) -> nnx.Sequential:
    """`depth` residual blocks one behind the other, with the options of one."""
    return nnx.Sequential(*(ResidualBlock(channels, **options) for _ in range(depth)))


Model = DAGNFeatures
