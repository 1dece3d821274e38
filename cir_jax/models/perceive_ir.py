# ruff: noqa: D102  (what a layer does when called is its class docstring)
"""Perceive-IR: Learning to Perceive Degradation Better for All-in-One Restoration.

Zhang et al., IEEE TIP 2025 (2408.15994). A Restormer-like U-Net whose latent level and
decoder look at each map twice: as it is, and as the image's guidance makes it. The
guidance is a vector of the image's content (CFE), and for each level a class token of a
frozen DINOv2 (SGM; encoders/dinov2.py). Both together scale and shift the map (PGM),
and the blocks take their queries from that (PGCA).

`design="released"`, the default, is the released code, which says less and more than
the paper's figures. `design="paper"` follows the figures where the two differ:

* a block (ETB) has one attention, the guided one; released, a plain one behind it;
* gamma and beta each come of a linear layer and a 1x1 convolution, and the map becomes
  gamma x + beta; released, of one network of two layers, and (1 + gamma) x + beta;
* CFE has residual blocks with LeakyReLU and two linear layers; released, convolutions
  of stride 2 with GELU and one linear layer. The figures do not give widths, numbers
  or slopes of its layers: those of the released code and PyTorch's slope stand in.

A published table gives the paper's network 42.02 M parameters; as released it has
33.90 M, as drawn here 28.04 M.

`semantics="none"` is the reduced form, for training without foundation models: CFE's
vector alone makes the guidance. It is no network of the paper's.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from cir_jax.errors import UserError, unknown
from cir_jax.models.layers import (
    GDFN,
    MDTA,
    Block,
    Conv3x3,
    DepthwiseConv,
    Downsample,
    LayerNorm,
    PointwiseConv,
    RestorationModel,
    Upsample,
    check_heads,
    join,
    linear,
    transformer_blocks,
)
from cir_jax.models.pooling import Pool
from cir_jax.ops.gelu import gelu
from cir_jax.ops.multi_dconv_attention import multi_dconv_attention

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},  # as released
    "paper": {"design": "paper"},
    "S": {"dim": 24},  # 9.2 M parameters
    "T": {  # 2.4 M
        "dim": 16,
        "num_blocks": (2, 2, 2, 4),
        "num_refinement_blocks": 2,
        "content_dim": 64,
    },
    "XT": {  # 0.5 M: trains on a CPU
        "dim": 8,
        "num_blocks": (1, 1, 1, 2),
        "num_refinement_blocks": 1,
        "ffn_expansion": 2.0,
        "content_dim": 32,
    },
}
DESIGNS = ("released", "paper")
SEMANTICS = ("dinov2", "none")
LEVELS = 4


class PerceiveIR(RestorationModel):
    """The whole network; its defaults are the released one's, 33,901,111 parameters."""

    scale = 1
    multiple = 8
    pools = True

    def __init__(
        self,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion: float = 2.66,
        content_dim: int = 128,
        semantics: str = "dinov2",
        semantic_dim: int = 768,
        design: str = "released",
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
            heads: attention heads of each level.
            ffn_expansion: hidden width of the feed-forward networks, in channels.
            content_dim: length of CFE's vector, a multiple of 4.
            semantics: "dinov2", or "none" for the reduced form.
            semantic_dim: length of a class token: 768 of DINOv2-base.
            design: "released" or "paper".
            channels: of the images: 3 for RGB, 1 for grey.
            rngs: where the initial parameters come from.
            dtype: type to compute in.

        Raises:
            UserError: an unknown design or semantics, or sizes that do not go together.
        """
        self.dim = dim
        self.num_blocks = tuple(num_blocks)
        self.num_refinement_blocks = num_refinement_blocks
        self.heads = tuple(heads)
        self.ffn_expansion = ffn_expansion
        self.content_dim = content_dim
        self.semantics = semantics
        self.semantic_dim = guiding_width(semantics, semantic_dim)
        self.design = design
        self.channels = channels

        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        biased: Mapping[str, Any] = {"bias": True, **options}
        guided: Mapping[str, Any] = {"design": design, **options}
        widths = [dim, 2 * dim, 4 * dim, 8 * dim]

        def plain(level: int, depth: int) -> nnx.Sequential:
            return transformer_blocks(
                widths[level], depth, heads[level], ffn_expansion, **biased
            )

        def stage(level: int) -> GuidedStage:
            depth, h = num_blocks[level], heads[level]
            return GuidedStage(widths[level], depth, h, ffn_expansion, **guided)

        self.embed = Conv3x3(channels, dim, **biased)
        self.encoder1 = plain(0, num_blocks[0])
        self.down1 = Downsample(widths[0], **biased)
        self.encoder2 = plain(1, num_blocks[1])
        self.down2 = Downsample(widths[1], **biased)
        self.encoder3 = plain(2, num_blocks[2])
        self.down3 = Downsample(widths[2], **biased)

        self.cfe = CFE(channels, content_dim, **guided)
        self.pgm = nnx.List(
            PGM(self.semantic_dim + content_dim, width, **guided) for width in widths
        )
        self.latent = stage(3)
        self.up3 = Upsample(widths[3], **biased)
        self.reduce3 = PointwiseConv(widths[3], widths[2], **biased)
        self.decoder3 = stage(2)
        self.up2 = Upsample(widths[2], **biased)
        self.reduce2 = PointwiseConv(widths[2], widths[1], **biased)
        self.decoder2 = stage(1)
        self.up1 = Upsample(widths[1], **biased)
        self.reduce1 = PointwiseConv(widths[1], widths[0], **biased)
        self.decoder1 = stage(0)
        self.refinement = plain(0, num_refinement_blocks)
        self.output = Conv3x3(widths[0], channels, **biased)

    def __call__(
        self,
        image: Float[Array, "b h w c"],
        semantics: Float[Array, "4 b d"] | None = None,
        pool: Pool | None = None,
        content: Float[Array, "b _"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Restores images.

        Args:
            image: in [0, 1]; height and width are multiples of 8.
            semantics: DINOv2's class tokens of each image, see
                `encoders.dinov2.DINOv2.semantics`; full resolution first.
            pool: where CFE's mean over the image comes from, see pooling.py.
            content: CFE's vector of each image, if that is there already.

        Returns:
            The restored images, about [0, 1], not clipped.

        Raises:
            UserError: the size is no multiple of 8; or semantics are missing, or given
                to the reduced form.
        """
        self.check_size(image)
        content = self.cfe(image, pool) if content is None else content
        guidance = guidance_of(content, semantics, self.semantic_dim)
        encoded1 = self.encoder1(self.embed(image))
        encoded2 = self.encoder2(self.down1(encoded1))
        encoded3 = self.encoder3(self.down2(encoded2))
        x = self.down3(encoded3)
        x = self.latent(x, self.pgm[3](x, guidance[3]))

        x = self.reduce3(join(self.up3(x), encoded3))
        x = self.decoder3(x, self.pgm[2](x, guidance[2]))
        x = self.reduce2(join(self.up2(x), encoded2))
        x = self.decoder2(x, self.pgm[1](x, guidance[1]))
        x = self.reduce1(join(self.up1(x), encoded1))
        x = self.decoder1(x, self.pgm[0](x, guidance[0]))

        x = self.output(self.refinement(x))
        return image + x.astype(image.dtype)


Model = PerceiveIR


def guiding_width(semantics: str, semantic_dim: int) -> int:
    """How long the class tokens are that a network is guided by; 0 for none.

    Raises:
        UserError: unknown semantics.
    """
    if semantics not in SEMANTICS:
        raise unknown("semantics", semantics, SEMANTICS)
    return semantic_dim if semantics != "none" else 0


def guidance_of(
    content: Float[Array, "b _"],
    semantics: Float[Array, "4 b d"] | None,
    semantic_dim: int,
) -> list[Float32[Array, "b _"]]:
    """Each level's guidance: its class tokens, and the vector of the content.

    Raises:
        UserError: semantics are missing, or given where none are wanted.
    """
    if (semantics is None) == bool(semantic_dim):
        wanted = f"4 class tokens of {semantic_dim}" if semantic_dim else "none"
        raise UserError(
            f"the network is guided by {wanted} for each image (config.model.semantics)"
            f", and semantics are {'missing' if semantics is None else 'given'}"
        )
    if semantics is None:
        return [content] * LEVELS
    return [
        jnp.concatenate([tokens.astype(jnp.float32), content], axis=-1)
        for tokens in semantics
    ]


# --- what guides: content and prompts ------------------------------------------------


class CFE(nnx.Module):
    """Content feature extractor: a vector of length 1 for each image."""

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        design: str,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        if design not in DESIGNS:
            raise unknown("design", design, DESIGNS)
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        released = design == "released"
        widths = [channels, *(width * quarters // 4 for quarters in (1, 2, 3, 4))]
        layers: list[Any] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers.append(Conv3x3(inputs, outputs, bias=True, stride=2, **options))
            layers.append(gelu if released else ResidualBlock(outputs, **options))
        self.body = nnx.Sequential(*layers)
        hidden = None if released else linear(width, width, **options)
        self.hidden = hidden
        self.projection = linear(width, width, **options)

    def __call__(
        self, image: Float[Array, "b h w c"], pool: Pool | None = None
    ) -> Float32[Array, "b d"]:
        x = (pool or Pool())(self.body(image))[:, 0, 0]
        if self.hidden is not None:
            x = jax.nn.leaky_relu(self.hidden(x))
        x = self.projection(x).astype(jnp.float32)
        # With the floor of torch's normalize, inside the root for the gradient at 0.
        square = jnp.sum(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class ResidualBlock(nnx.Module):
    """Adds what two convolutions with LeakyReLU in between make of a map."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: Dtype):
        self.conv1 = Conv3x3(channels, channels, bias=True, rngs=rngs, dtype=dtype)
        self.conv2 = Conv3x3(channels, channels, bias=True, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.conv2(jax.nn.leaky_relu(self.conv1(x)))


class PGM(nnx.Module):
    """Prompt guidance module: scales and shifts a map as the guidance says."""

    def __init__(
        self, inputs: int, channels: int, *, design: str, rngs: nnx.Rngs, dtype: Dtype
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.released = design == "released"
        if self.released:
            width = 2 * channels
            first = linear(inputs, width, **options)
            self.affine = nnx.Sequential(first, gelu, linear(width, width, **options))
        else:

            def branch() -> nnx.Sequential:
                hidden = linear(inputs, channels, **options)
                return nnx.Sequential(
                    hidden, PointwiseConv(channels, channels, bias=True, **options)
                )

            self.gamma, self.beta = branch(), branch()
            # Without that, a fresh network would pass next to nothing on.
            self.gamma.layers[1].bias[...] += 1

    def __call__(
        self, x: Float[Array, "b h w c"], guidance: Float[Array, "b g"]
    ) -> Float[Array, "b h w c"]:
        if self.released:
            gamma, beta = jnp.split(self.affine(guidance), 2, axis=-1)
            gamma = 1 + gamma
        else:
            gamma, beta = self.gamma(guidance), self.beta(guidance)
        gamma, beta = (v[:, None, None].astype(x.dtype) for v in (gamma, beta))
        return gamma * x + beta


# --- what is guided ------------------------------------------------------------------


class GuidedStage(nnx.Module):
    """ETBs one behind the other, all with the same guided map."""

    def __init__(
        self, channels: int, depth: int, heads: int, expansion: float, **options: Any
    ):
        self.blocks = nnx.List(
            ETB(channels, heads, expansion, **options) for _ in range(depth)
        )

    def __call__(
        self, x: Float[Array, "b h w c"], guided: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        for block in self.blocks:
            x = block(x, guided)
        return x


class ETB(Block):
    """Efficient transformer block: guided attention, then the feed-forward network."""

    def __init__(
        self,
        channels: int,
        heads: int,
        expansion: float,
        *,
        design: str,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.norm1 = LayerNorm(channels, **options)
        self.guidance_norm = LayerNorm(channels, **options)
        self.attention = PGCA(channels, heads, **options)
        self.twice = design == "released"
        if self.twice:
            self.mdta_norm = LayerNorm(channels, **options)
            self.mdta = MDTA(channels, heads, bias=True, **options)
        self.norm2 = LayerNorm(channels, **options)
        self.ffn = GDFN(channels, expansion, bias=True, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], guided: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        x = self.attention(self.norm1(x), self.guidance_norm(guided))
        if self.twice:
            x = self.mdta(self.mdta_norm(x))
        x = guided + x
        return self.ffn(x, self.norm2)


class PGCA(nnx.Module):
    """Prompt-guided cross attention: MDTA whose queries come from the guided map."""

    def __init__(self, channels: int, heads: int, *, rngs: nnx.Rngs, dtype: Dtype):
        check_heads(channels, heads)
        options: Mapping[str, Any] = {"bias": True, "rngs": rngs, "dtype": dtype}
        self.temperature = nnx.Param(jnp.ones((heads, 1, 1), jnp.float32))
        self.q = nnx.Sequential(
            PointwiseConv(channels, channels, **options),
            DepthwiseConv(channels, **options),
        )
        self.kv = nnx.Sequential(
            PointwiseConv(channels, 2 * channels, **options),
            DepthwiseConv(2 * channels, **options),
        )
        self.project = PointwiseConv(channels, channels, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], guided: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        qkv, depthwise = (
            q.affine.beside(kv.affine)
            for q, kv in zip(self.q.layers, self.kv.layers, strict=True)
        )
        return multi_dconv_attention(
            x.astype(self.project.dtype),
            qkv,
            depthwise,
            self.temperature[...],
            self.project.affine,
            guided.astype(self.project.dtype),
        )
