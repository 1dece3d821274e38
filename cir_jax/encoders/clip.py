"""CLIP, which embeds images and sentences so that those that go together are close.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision
(2103.00020), with vision transformers, as Hugging Face publishes them. Perceive-IR
(2408.15994) learns prompts for three qualities and asks CLIP which of them an image is.
"""

import os
import zipfile
from collections.abc import Sequence
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32, Int, Int32

from cir_jax.encoders import pixels, published
from cir_jax.encoders.clip_transformers import ImageTransformer, TextTransformer
from cir_jax.errors import UserError
from cir_jax.hyper_parameters import Shapes, count
from cir_jax.ops.bicubic import resize_bicubic

PUBLISHED = published.Encoder(
    "CLIP",
    "download model.safetensors of openai/clip-vit-base-patch32 from Hugging Face",
)

_RENAMED = {
    "text": "text_model",
    "image": "vision_model",
    "token_embedding": "embeddings.token_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "position_embedding": "embeddings.position_embedding.weight",
    "patches": "embeddings.patch_embedding",
    "blocks": "encoder.layers",
    "attention": "self_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "pre_layernorm": "pre_layrnorm",  # so they spell it
}


class CLIP(nnx.Module):
    """Both encoders, frozen: parameters are `nnx.Param`, but nothing trains them.

    Attributes:
        logit_scale: logarithm of the factor that cosines were trained with.

    Args:
        text: sizes of the text transformer.
        image: sizes of the image transformer.
        width: of the embeddings.
        rngs: where the initial parameters come from.
        dtype: type that it computes in.
    """

    def __init__(
        self,
        *,
        text: dict[str, int],
        image: dict[str, int],
        width: int,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
    ):
        self.text = TextTransformer(**text, rngs=rngs, dtype=dtype)
        self.image = ImageTransformer(**image, rngs=rngs, dtype=dtype)
        self.text_projection = nnx.Linear(
            text["width"], width, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.visual_projection = nnx.Linear(
            image["width"], width, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.logit_scale = nnx.Param(jnp.zeros(()))

    @property
    def start(self) -> int:
        """The token before a sentence: the last but one of the vocabulary."""
        return self.end - 1

    @property
    def end(self) -> int:
        """The token behind a sentence: the last one of the vocabulary."""
        return self.text.token_embedding.shape[0] - 1

    def image_embedding(
        self, image: Float[Array | np.ndarray, "b h w 3"]
    ) -> Float32[Array, "b d"]:
        """What images are about, as vectors of length 1.

        Args:
            image: RGB in [0, 1], of any size: it is resized to the network's, whatever
                its aspect ratio.
        """
        small = resize_bicubic(image, self.image.side, self.image.side)
        tokens = self.image(pixels.CLIP.normalised(small))
        return _unit(self.visual_projection(self.image.post_layernorm(tokens[:, 0])))

    def text_embedding(
        self, input_ids: Int[Array | np.ndarray, "b n"]
    ) -> Float32[Array, "b d"]:
        """What sentences are about, as vectors of length 1.

        Args:
            input_ids: start token, words, end token, and anything behind it, see
                `sentences`.

        Raises:
            UserError: the sequences are longer than the network's.
        """
        input_ids = jnp.asarray(input_ids)
        tokens = self.text(self.text.token_embedding[input_ids])
        # Only the end token has seen the whole sentence.
        end = jnp.argmax(input_ids == self.end, axis=1)
        pooled = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]
        return _unit(self.text_projection(pooled))

    def prompt_embedding(
        self, context: Float[Array | np.ndarray, "p n c"]
    ) -> Float32[Array, "p d"]:
        """What learnt prompts are about, as vectors of length 1 (CoOp, 2109.01134).

        Args:
            context: vectors that stand where embedded words do.

        Raises:
            UserError: there are more vectors than the network reads, or they have
                another width.
        """
        p, _, c = context.shape
        width = self.text.token_embedding.shape[1]
        if c != width:
            raise UserError(
                f"prompts of width {c}: those of this CLIP have {width}, so they are "
                "of another one"
            )
        start, end = (
            jnp.broadcast_to(self.token_embedding(token), (p, 1, c))
            for token in (self.start, self.end)
        )
        tokens = self.text(jnp.concatenate([start, context, end], axis=1))
        return _unit(self.text_projection(tokens[:, -1]))

    def token_embedding(self, token: int) -> Float32[Array, " c"]:
        """The vector that stands for a token of the vocabulary."""
        return self.text.token_embedding[token]

    def sentences(self, words: Sequence[Sequence[int]]) -> Int32[np.ndarray, "b n"]:
        """Tokens of words (see words.py) between start and end, padded by more ends."""
        longest = max(map(len, words), default=0)
        return np.array(
            [
                [self.start, *ids] + [self.end] * (longest - len(ids) + 1)
                for ids in words
            ],
            np.int32,
        )


def embed_prompts(
    encoder: CLIP, context: Float[Array | np.ndarray, "p n c"]
) -> Float32[np.ndarray, "p d"]:
    """`CLIP.prompt_embedding` as one program; see there for arguments and errors."""
    graphdef, params = nnx.split(encoder)
    return np.asarray(_embed_prompts(graphdef, params, context))


@partial(jax.jit, static_argnums=0)
def _embed_prompts(graphdef: nnx.GraphDef, params: Any, context: Array) -> Array:
    return nnx.merge(graphdef, params).prompt_embedding(context)


def load(
    path: str | os.PathLike,
    *,
    text_heads: int | None = None,
    image_heads: int | None = None,
    dtype: Dtype = jnp.float32,
) -> CLIP:
    """Builds the network of a published file; its sizes are those of the tensors.

    Args:
        path: Hugging Face's `model.safetensors` or `pytorch_model.bin`.
        text_heads: of the attention to words; by default one for every 64 channels, as
            in all that were published.
        image_heads: the same for patches.
        dtype: type that it computes in; its parameters are float32.

    Raises:
        UserError: there is no such file, it cannot be read, or it is of another
            network.
    """
    if _is_program(path):
        raise UserError(
            f"{path} is a TorchScript program, as OpenAI publishes CLIP, and programs "
            f"are not run: {PUBLISHED.advice}"
        )
    tensors = published.read(path, PUBLISHED, drop=("*.position_ids",))
    sizes = published.sizes(tensors, _sizes, PUBLISHED, path)
    for side, heads in (("text", text_heads), ("image", image_heads)):
        sizes[side]["heads"] = published.heads_of(sizes[side]["width"], heads)
    return published.filled(
        lambda rngs: CLIP(**sizes, rngs=rngs, dtype=dtype),
        tensors,
        _RENAMED,
        PUBLISHED,
        path,
    )


def _is_program(path: str | os.PathLike) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("code" in Path(n).parts[:-1] for n in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False  # whatever it is, reading it will tell


def _sizes(shapes: Shapes) -> dict[str, Any]:
    vocabulary, text_width = shapes["text_model.embeddings.token_embedding.weight"]
    positions, image_width = shapes["vision_model.embeddings.position_embedding.weight"]
    return {
        "text": {
            "vocabulary": vocabulary,
            "positions": shapes["text_model.embeddings.position_embedding.weight"][0],
            "width": text_width,
            "depth": count(shapes, "text_model.encoder.layers"),
            "hidden": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        },
        "image": {
            "grid": isqrt(positions - 1),
            "patch": shapes["vision_model.embeddings.patch_embedding.weight"][3],
            "width": image_width,
            "depth": count(shapes, "vision_model.encoder.layers"),
            "hidden": shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        },
        "width": shapes["text_projection.weight"][0],
    }


def _unit(x: Float[Array, "b d"]) -> Float32[Array, "b d"]:
    """Vectors of the same directions and of length 1."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
