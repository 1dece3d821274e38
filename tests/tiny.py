"""Small networks, for tests of what is around a network."""

from flax import nnx
from jax import numpy as jnp

from cir_jax.models import build_model
from cir_jax.models.layers import RestorationModel

MODEL = {
    "name": "promptcir",
    "dim": 4,
    "num_blocks": (1, 1, 1, 1),
    "num_refinement_blocks": 1,
    "heads": (1, 1, 1, 2),
    "ffn_expansion": 1.0,
    "window_size": 4,
    "num_tasks": 2,
    "num_bases": (2, 2, 2),
    "prompt_dims": (4, 4, 4),
    "prompt_heads": 1,
}
UCIP = {  # told the codec, x4
    "name": "ucip",
    "width": 8,
    "depths": (2,),
    "prompt_dim": 4,
    "bases": 2,
    "mlp_ratio": 1.0,
    "head_width": 4,
    "codecs": ("jpeg", "webp"),
}

FEATURES = {
    "name": "dagn_features",
    "feature_dim": 4,
    "feature_blocks": 1,
    "codecs": ("jpeg 1 100", "hevc 51 0"),
}
DAGN = FEATURES | {"name": "dagn", "dim": 4, "blocks": 1}

LIGHT = UCIP | {"scale": 1, "mixing": "pixel", "skip": True}
"""Blind, x1; compiles ten times as fast as the smallest PromptCIR."""
OFFICIAL = LIGHT | {"mixing": "codec", "skip": False, "codecs": ("0", "1")}
"""The same as the official code has it, so that it converts there and back."""


def model(seed: int = 0) -> nnx.Module:
    """The smallest PromptCIR: seconds to compile, sides in multiples of 8."""
    return build_model(MODEL, nnx.Rngs(seed))


def light(seed: int = 0) -> nnx.Module:
    """A small network that compiles quickly and takes any size."""
    return build_model(LIGHT, nnx.Rngs(seed))


class Filter(RestorationModel):
    """One convolution that keeps to the model contract; compiles at once."""

    scale, multiple = 1, 8

    def __init__(self, seed: int = 0):
        self.conv = nnx.Conv(3, 3, (5, 5), rngs=nnx.Rngs(seed))

    def __call__(self, image: jnp.ndarray) -> jnp.ndarray:
        return image + 0.1 * self.conv(image)


class GreyFilter(Filter):
    """A network of one channel."""

    channels = 1

    def __init__(self, seed: int = 0):
        self.conv = nnx.Conv(1, 1, (5, 5), rngs=nnx.Rngs(seed))
