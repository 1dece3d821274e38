# ruff: noqa: D102  (what a layer does when called is its class docstring)
"""DAGN-style: a U-Net guided by compression-sensitive and -insensitive features.

After Ma, Zhao, Peng, Tian, "Sensitivity Decouple Learning for Image Compression
Artifacts Reduction" (2405.09291). No code was ever released, and only the abstract's
ideas are known here: this is a stand-in built on them, not the paper's network, and no
published number is to be expected of it. What is guessed is every width and layer, and

* the base, a residual U-Net like FBCNN's (Jiang et al., 2109.14573);
* where features enter: before the blocks of the latent level and of the decoder's
  levels at a quarter and a half, the three scales that features have;
* how: sensitive ones scale and shift the maps, insensitive ones are fused with them by
  the cross-feature fusion below.

The features come from the encoders of dagn_features.py, trained before it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from cir_jax.errors import UserError, unknown
from cir_jax.models.dagn_features import (
    SCALES,
    DAGNFeatures,
    Down,
    InsensitiveEncoder,
    SensitiveEncoder,
    Up,
    residual_blocks,
    widths,
)
from cir_jax.models.layers import (
    Conv3x3,
    Linear,
    PointwiseConv,
    RestorationModel,
    join,
)
from cir_jax.models.pooling import Pool

GUIDANCE = ("none", "sensitive", "insensitive", "both")
REDUCTION = 4
"""Of the channel attention's hidden layer."""

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "XT": {"dim": 16, "blocks": 1, "feature_dim": 16, "feature_blocks": 1},
}


class DAGN(RestorationModel):
    """The restorer with its encoders; the defaults are the guessed full size."""

    scale = 1
    multiple = 2**SCALES

    def __init__(
        self,
        dim: int = 64,
        blocks: int = 4,
        feature_dim: int = 64,
        feature_blocks: int = 2,
        codecs: Sequence[str] = ("jpeg 1 100",),
        guidance: str = "both",
        channels: int = 3,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
    ):
        """Builds the network.

        Args:
            dim: channels at full resolution, twice as many at each level below.
            blocks: residual blocks of each level of the encoder and of the decoder.
            feature_dim: of the encoders, see `DAGNFeatures`.
            feature_blocks: likewise.
            codecs: likewise.
            guidance: which features guide it: "none", "sensitive", "insensitive" or
                "both".
            channels: of the images.
            rngs: where the initial parameters come from.
            dtype: type to compute in.

        Raises:
            UserError: an unknown guidance, or codecs as for `DAGNFeatures`.
        """
        if guidance not in GUIDANCE:
            raise unknown("guidance of dagn", guidance, GUIDANCE)
        self.dim, self.blocks = dim, blocks
        self.feature_dim, self.feature_blocks = feature_dim, feature_blocks
        self.codecs, self.guidance = tuple(codecs), guidance
        self.channels = channels
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        own = widths(dim, SCALES + 1)

        # --- the base
        self.head = Conv3x3(channels, dim, bias=True, **options)
        self.encoder = nnx.List(residual_blocks(w, blocks, **options) for w in own)
        self.down = nnx.List(Down(w, 2 * w, **options) for w in own[:-1])
        self.up = nnx.List(Up(2 * w, w, **options) for w in own[:-1])
        self.decoder = nnx.List(residual_blocks(w, blocks, **options) for w in own[:-1])
        self.tail = Conv3x3(dim, channels, bias=True, **options)

        # --- what guides it
        sizes = (channels, feature_dim, feature_blocks)
        guided = list(zip(own[1:], widths(feature_dim), strict=True))
        tells, keeps = (guidance in (kind, "both") for kind in GUIDANCE[1:3])
        self.sensitive = (
            SensitiveEncoder(*sizes, self.codecs, **options) if tells else None
        )
        self.modulation = nnx.List(
            Modulation(*pair, **options) for pair in guided if tells
        )
        self.insensitive = InsensitiveEncoder(*sizes, **options) if keeps else None
        self.fusion = nnx.List(
            CrossFeatureFusion(*pair, **options) for pair in guided if keeps
        )
        self.pools = keeps

    def __call__(
        self, image: Float[Array, "b h w c"], pool: Pool | None = None
    ) -> Float[Array, "b h w c"]:
        """Restores images.

        Args:
            image: in [0, 1]; height and width multiples of 8.
            pool: where the fusion's means over the image come from, see pooling.py.

        Returns:
            The restored images, unclipped.

        Raises:
            UserError: height or width is no such multiple.
        """
        self.check_size(image)
        sensitive = self.sensitive(image) if self.sensitive else ()
        insensitive = self.insensitive(image) if self.insensitive else ()
        pool = pool or Pool()

        def guided(x: Array, scale: int) -> Array:
            """A map at a scale, 0 for a half, with the features of that scale."""
            if sensitive:
                x = self.modulation[scale](x, sensitive[scale])
            if insensitive:
                x = self.fusion[scale](x, insensitive[scale], pool)
            return x

        x, skips = self.head(image), []
        for blocks, down in zip(self.encoder[:-1], self.down, strict=True):
            x = blocks(x)
            skips.append(x)
            x = down(x)
        x = self.encoder[-1](guided(x, SCALES - 1))
        for level in reversed(range(SCALES)):
            x = self.up[level](x) + skips[level]
            if level > 0:
                x = guided(x, level - 1)
            x = self.decoder[level](x)
        return image + self.tail(x)

    def adopting(self, trained: RestorationModel) -> RestorationModel:
        """As any network does; or with the encoders of its first stage, `DAGNFeatures`.

        Raises:
            UserError: they are of another size or for other codecs, or it is another
                network.
        """
        if not isinstance(trained, DAGNFeatures):
            return super().adopting(trained)
        for name in ("feature_dim", "feature_blocks", "codecs", "channels"):
            ours, theirs = getattr(self, name), getattr(trained, name)
            if ours != theirs:
                raise UserError(
                    f"holds encoders that have {name} {theirs}, config.model has {ours}"
                    ": make them equal"
                )
        if self.sensitive:
            self.sensitive = trained.sensitive
        if self.insensitive:
            self.insensitive = trained.insensitive
        return self


class Modulation(nnx.Module):
    """f (1 + gamma) + beta, both from the sensitive features at the same place.

    Before any training gamma and beta are 0.
    """

    def __init__(self, channels: int, features: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.hidden = PointwiseConv(features, channels, bias=True, **options)
        zeros = nnx.initializers.zeros
        self.gamma = Linear(channels, channels, kernel_init=zeros, **options)
        self.beta = Linear(channels, channels, kernel_init=zeros, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], features: Float[Array, "b h w f"]
    ) -> Float[Array, "b h w c"]:
        hidden = jax.nn.relu(self.hidden(features))
        return x * (1 + self.gamma(hidden)) + self.beta(hidden)


class CrossFeatureFusion(nnx.Module):
    """Concatenation, 1x1 convolution, channel attention, 3x3 convolution, addition."""

    def __init__(self, channels: int, features: int, *, rngs: nnx.Rngs, dtype: Dtype):
        options: Mapping[str, Any] = {"bias": True, "rngs": rngs, "dtype": dtype}
        hidden = max(1, channels // REDUCTION)
        self.join = PointwiseConv(channels + features, channels, **options)
        self.squeeze = PointwiseConv(channels, hidden, **options)
        self.excite = PointwiseConv(hidden, channels, **options)
        self.out = Conv3x3(channels, channels, **options)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        features: Float[Array, "b h w f"],
        pool: Pool,
    ) -> Float[Array, "b h w c"]:
        joined = self.join(join(x, features))
        attention = self.excite(jax.nn.relu(self.squeeze(pool(joined))))
        return x + self.out(joined * jax.nn.sigmoid(attention))


Model = DAGN
