# ruff: noqa: D102  (what a layer does when called is its class docstring)
"""Layers that several papers share: Restormer's blocks and the convolutions.

Parameters are float32; `dtype` is the type that a layer computes in. Where a layer of
flax does the job it is used; the initialisation is the one of the official PyTorch
networks.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float

from cir_jax.errors import UserError, unknown
from cir_jax.ops.affine import Affine
from cir_jax.ops.conv3x3 import conv3x3
from cir_jax.ops.depthwise import depthwise_conv
from cir_jax.ops.gated_feed_forward import gated_feed_forward
from cir_jax.ops.layer_norm import Norm
from cir_jax.ops.multi_dconv_attention import multi_dconv_attention
from cir_jax.ops.pixel_shuffle import pixel_shuffle, pixel_unshuffle


class RestorationModel(nnx.Module):
    """What every restoration network offers beside its call.

    As in scikit-learn's estimators, a network keeps each argument of its constructor
    under the argument's name; `config` reads them there.

    Attributes:
        channels: of the images: 3 for RGB, 1 for grey.
        scale: how much larger the restored image is.
        multiple: what the input's height and width must be a multiple of, in pixels.
        tile: side of the tiles that large images are restored in by default, in pixels
            of the input; see RESULTS.md for what that costs.
        pools: whether its call takes a `pool`, because it looks at whole images, see
            pooling.py.
        known_codecs: names of the codecs of which its call's keyword `codec` names one
            for each image, in training always; () for a network that is told nothing.
        semantic_dim: length of DINOv2's class tokens, of which its call's keyword
            `semantics` wants 4 for each image; 0 for a network that wants none.
        guided_widths: widths of the maps that its call's `guide` gets, level 1 first,
            see `Guide`; () for a network that takes none.
    """

    channels: int = 3
    scale: int
    multiple: int
    tile: int = 512
    pools: bool = False
    known_codecs: tuple[str, ...] = ()
    semantic_dim: int = 0
    guided_widths: tuple[int, ...] = ()

    def codec_index(self, codec: str | int) -> int:
        """The number by which the network knows a codec, given its name or number.

        Raises:
            UserError: it knows no such codec; lists those that it knows.
        """
        numbers = {name: i for i, name in enumerate(self.known_codecs)}
        numbers = {str(i): i for i in numbers.values()} | numbers
        if str(codec) in numbers:
            return numbers[str(codec)]
        if not self.known_codecs:
            raise UserError(
                f"codec {codec!r}: these weights know no codecs, they find out "
                "themselves: name none"
            )
        known = ", ".join(f"{name} ({i})" for i, name in enumerate(self.known_codecs))
        raise UserError(f"codec {codec!r} was not trained: these weights know {known}")

    @property
    def config(self) -> dict[str, Any]:
        """The name and every hyper-parameter: what `build_model` rebuilds it from."""
        arguments = inspect.signature(type(self).__init__).parameters
        config: dict[str, Any] = {"name": type(self).__module__.rpartition(".")[2]}
        for name in arguments:
            if name not in ("self", "rngs", "dtype"):
                value = getattr(self, name)
                config[name] = list(value) if isinstance(value, tuple) else value
        return config

    def adopting(self, trained: "RestorationModel") -> "RestorationModel":
        """The network that training goes on from, given trained weights; may be either.

        Raises:
            UserError: these are of another config; the sentence is to follow the name
                of the weights.
        """
        if trained.config != self.config:
            raise UserError(
                f"holds a model of config {trained.config}, but config.model is "
                f"{self.config}: make them equal"
            )
        return trained

    def check_size(self, image: Float[Array, "b h w c"]) -> None:
        """Refuses an image whose size is no multiple of `multiple`.

        Raises:
            UserError: names the size and the next one that would do.
        """
        _, h, w, _ = image.shape
        m = self.multiple
        if h % m or w % m:
            raise UserError(
                f"image of height {h} and width {w}: both must be multiples of {m}; "
                f"pad it to {-h % m + h} x {-w % m + w}"
            )


def uniform(low: float, high: float) -> Initializer:
    """Draws uniformly from [low, high)."""

    def init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        draws = jax.random.uniform(key, _padded(shape), dtype)
        return _front(low + (high - low) * draws, shape)

    return init


def conv_init(fan_in: int) -> Initializer:
    """PyTorch's default for convolutions: uniform within ±1 / sqrt(fan_in).

    That is what `kaiming_uniform_(a=sqrt(5))` comes to for kernels, and what biases
    get.

    Args:
        fan_in: number of inputs that one output sums over.

    Returns:
        An initialiser for kernels and biases alike.
    """
    return uniform(-(fan_in**-0.5), fan_in**-0.5)


def normal(deviation: float) -> Initializer:
    """PyTorch's `trunc_normal_(std=deviation)` for small deviations: a normal.

    It cuts at ±2, not at two deviations, so that nothing is ever cut.

    Args:
        deviation: standard deviation.

    Returns:
        An initialiser.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        draws = jax.random.normal(key, _padded(shape), dtype)
        return _front(deviation * draws, shape)

    return init


def _padded(shape: tuple[int, ...]) -> tuple[int]:
    """The flat shape to draw instead of `shape`: its length is a power of two.

    A generator compiles anew for each shape, for a third of a second on CPU, or more
    than one if the shape has four axes; a network has a hundred shapes, but a dozen
    powers of two.
    """
    return (1 << (math.prod(shape) - 1).bit_length(),)


@partial(jax.jit, static_argnames="shape")
def _front(flat: Array, shape: tuple[int, ...]) -> Array:
    return flat[: math.prod(shape)].reshape(shape)


NORMS = ("with_bias", "bias_free")
"""Layer norms by name: the usual one, and Restormer's that does not centre."""


class LayerNorm(nnx.Module):
    """Layer norm over channels, one of `NORMS`."""

    def __init__(
        self, channels: int, norm: str = "with_bias", *, rngs: nnx.Rngs, dtype: Dtype
    ):
        if norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        with_bias = norm == "with_bias"
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32)) if with_bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return self.norm(x.astype(self.dtype))

    @property
    def norm(self) -> Norm:
        """Its parameters, for operations."""
        return Norm(self.scale[...], None if self.bias is None else self.bias[...])


class Conv3x3(nnx.Conv):
    """3x3 convolution that keeps the size, or divides it by a stride; zeros outside."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = False,
        stride: int = 1,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        init = conv_init(9 * inputs)
        super().__init__(
            inputs,
            outputs,
            (3, 3),
            strides=stride,
            padding=((1, 1), (1, 1)),
            use_bias=bias,
            kernel_init=init,
            bias_init=init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        if self.strides != 1:
            return super().__call__(x)
        affine = _affine(self)
        return affine.add_bias(conv3x3(x.astype(self.dtype), affine.kernel))


class Linear(nnx.Linear):
    """A linear layer over channels."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        kernel_init: Initializer,
        bias_init: Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        super().__init__(
            inputs,
            outputs,
            use_bias=bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        return self.affine(x.astype(self.dtype))

    @property
    def affine(self) -> Affine:
        """Its parameters in the type that it computes in, for operations."""
        return _affine(self)


def linear(inputs: int, outputs: int, **options: Any) -> Linear:
    """A linear layer with biases and PyTorch's initialisation."""
    init = conv_init(inputs)
    return Linear(inputs, outputs, kernel_init=init, bias_init=init, **options)


class PointwiseConv(Linear):
    """1x1 convolution, as the matrix product that it is."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        init = conv_init(inputs)
        super().__init__(
            inputs,
            outputs,
            bias=bias,
            kernel_init=init,
            bias_init=init,
            dtype=dtype,
            rngs=rngs,
        )


class DepthwiseConv(nnx.Module):
    """Convolution of each channel by itself, 3x3 by default; zeros outside."""

    def __init__(
        self,
        channels: int,
        size: int = 3,
        *,
        bias: bool = False,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        kernel_init = kernel_init or conv_init(size * size)
        bias_init = bias_init or conv_init(size * size)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, channels)))
        self.bias = nnx.Param(bias_init(rngs.params(), (channels,))) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        affine = self.affine
        return affine.add_bias(depthwise_conv(x.astype(self.dtype), affine.kernel))

    @property
    def affine(self) -> Affine:
        """Its parameters in the type that it computes in, for operations."""
        return _affine(self)


def _affine(layer: Linear | DepthwiseConv | Conv3x3) -> Affine:
    bias = None if layer.bias is None else layer.bias.astype(layer.dtype)
    return Affine(layer.kernel.astype(layer.dtype), bias)


def check_heads(channels: int, heads: int) -> None:
    """Refuses a number of attention heads that does not divide the channels.

    Raises:
        UserError: names both numbers.
    """
    if channels % heads:
        raise UserError(f"{heads} attention heads do not divide {channels} channels")


class Block(nnx.Module):
    """A part of a network that training may compute twice, see rematerialise.py."""


class MDTA(nnx.Module):
    """Multi-dconv-head transposed attention (Restormer, 2111.09881)."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        check_heads(channels, heads)
        options: Mapping[str, Any] = {"bias": bias, "rngs": rngs, "dtype": dtype}
        self.temperature = nnx.Param(jnp.ones((heads, 1, 1), jnp.float32))
        self.qkv = PointwiseConv(channels, 3 * channels, **options)
        self.qkv_dwconv = DepthwiseConv(3 * channels, **options)
        self.project_out = PointwiseConv(channels, channels, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return multi_dconv_attention(
            x.astype(self.qkv.dtype),
            self.qkv.affine,
            self.qkv_dwconv.affine,
            self.temperature[...],
            self.project_out.affine,
        )


class GDFN(nnx.Module):
    """Gated-dconv feed-forward network (Restormer, 2111.09881), added to its input.

    The norm in front of it is the block's, and an argument of its call.
    """

    def __init__(
        self,
        channels: int,
        expansion: float,
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        options: Mapping[str, Any] = {"bias": bias, "rngs": rngs, "dtype": dtype}
        hidden = int(channels * expansion)
        self.project_in = PointwiseConv(channels, 2 * hidden, **options)
        self.dwconv = DepthwiseConv(2 * hidden, **options)
        self.project_out = PointwiseConv(hidden, channels, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], norm: LayerNorm
    ) -> Float[Array, "b h w c"]:
        return gated_feed_forward(
            x.astype(self.dwconv.dtype),
            norm.norm,
            self.project_in.affine,
            self.dwconv.affine,
            self.project_out.affine,
        )


class TransformerBlock(Block):
    """Restormer block: transposed attention, then the gated feed-forward network."""

    def __init__(
        self,
        channels: int,
        heads: int,
        expansion: float,
        *,
        bias: bool = False,
        norm: str = "with_bias",
        rngs: nnx.Rngs,
        dtype: Dtype,
    ):
        options: Mapping[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.norm1 = LayerNorm(channels, norm, **options)
        self.attn = MDTA(channels, heads, bias=bias, **options)
        self.norm2 = LayerNorm(channels, norm, **options)
        self.ffn = GDFN(channels, expansion, bias=bias, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = x + self.attn(self.norm1(x))
        return self.ffn(x, self.norm2)


def transformer_blocks(
    channels: int, depth: int, heads: int, expansion: float, **options: Any
) -> nnx.Sequential:
    """`depth` Restormer blocks one behind the other, with the options of one."""
    return nnx.Sequential(
        *(TransformerBlock(channels, heads, expansion, **options) for _ in range(depth))
    )


Guide = Callable[[Float[Array, "b h w c"], int], Float[Array, "b h w c"]]
"""What may change the maps that enter the latent level and the decoder of a four-level
U-Net, see guided.py: given a map and its level, 1 at full resolution, the new map."""


def unguided(x: Float[Array, "b h w c"], level: int) -> Float[Array, "b h w c"]:
    """The guide that changes nothing."""
    return x


def join(
    x: Float[Array, "b h w c"], y: Float[Array, "b h w d"]
) -> Float[Array, "b h w c+d"]:
    """The channels of `x`, then those of `y`."""
    return jnp.concatenate([x, y], axis=-1)


class Downsample(nnx.Module):
    """Half the resolution, twice the channels."""

    def __init__(
        self, channels: int, *, bias: bool = False, rngs: nnx.Rngs, dtype: Dtype
    ):
        options: Mapping[str, Any] = {"bias": bias, "rngs": rngs, "dtype": dtype}
        self.conv = Conv3x3(channels, channels // 2, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 2*c"]:
        return pixel_unshuffle(self.conv(x))


class Upsample(nnx.Module):
    """Twice the resolution, half the channels."""

    def __init__(
        self, channels: int, *, bias: bool = False, rngs: nnx.Rngs, dtype: Dtype
    ):
        options: Mapping[str, Any] = {"bias": bias, "rngs": rngs, "dtype": dtype}
        self.conv = Conv3x3(channels, channels * 2, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c//2"]:
        return pixel_shuffle(self.conv(x))
