from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from twins import arrays, assert_bfloat16_is_close

from cir_jax.errors import UserError
from cir_jax.models import abstract_model
from cir_jax.models.promptir import PromptBlock

XT = {"name": "promptir", "variant": "XT"}
PARAMETERS = {"base": 35_592_263, "S": 9_660_281, "T": 2_201_929, "XT": 353_058}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_each_variant_has_its_size(variant):
    state = nnx.state(abstract_model(XT | {"variant": variant}))
    assert sum(x.size for x in jax.tree.leaves(state)) == PARAMETERS[variant]


def test_it_keeps_the_images_shape_and_calls_only_what_the_official_one_calls():
    model = abstract_model(XT | {"bias": True, "norm": "bias_free"})
    for level in (1, 2, 3):
        setattr(model, f"chnl_reduce{level}", None)
        setattr(model, f"reduce_noise_channel_{level}", None)
    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((2, 8, 24, 3), jnp.float32)
    restored = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x), state, image)
    assert (restored.shape, restored.dtype) == (image.shape, image.dtype)


@pytest.mark.parametrize("size", [(7, 9), (4, 4), (3, 1), (2, 6)])
def test_prompts_are_weighted_by_the_mean_and_resized_bilinearly(size):
    (x,) = arrays((2, *size, 6))
    block = PromptBlock(6, 3, 4, 5, rngs=nnx.Rngs(0), dtype=jnp.float32)
    scores = block.linear_layer(x.mean(axis=(1, 2)))
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    bank = np.asarray(block.prompt_param[...])
    prompts = [sum(w * m for w, m in zip(ws, bank, strict=True)) for ws in weights]
    resized = jnp.stack([bilinear(prompt, *size) for prompt in prompts])
    np.testing.assert_allclose(block(x), block.conv3x3(resized), rtol=1e-5, atol=1e-6)


def bilinear(image, height, width):
    """As in PyTorch: from the four pixels around a position, also when shrinking."""
    resized = np.zeros((height, width, image.shape[-1]), np.float32)
    for i, j in np.ndindex(height, width):
        y, x = (
            np.clip((at + 0.5) * old / new - 0.5, 0, old - 1)
            for at, old, new in zip((i, j), image.shape, (height, width), strict=False)
        )
        top, left = int(y), int(x)
        for row, share in ((top, top + 1 - y), (min(top + 1, len(image) - 1), y - top)):
            right = min(left + 1, image.shape[1] - 1)
            resized[i, j] += share * (left + 1 - x) * image[row, left]
            resized[i, j] += share * (x - left) * image[row, right]
    return resized


@pytest.mark.parametrize(
    ("hyper_parameters", "message"),
    [
        ({"norm": "none"}, "unknown norm 'none'.*known are bias_free, with_bias"),
        ({"prompt_dims": (6, 16, 32)}, "4 attention heads do not divide 22 channels"),
    ],
)
def test_what_cannot_work_is_refused(hyper_parameters, message):
    with pytest.raises(UserError, match=message):
        abstract_model(XT | hyper_parameters)


def test_an_image_of_another_size_is_refused_with_the_size_to_pad_to():
    with pytest.raises(UserError, match="multiples of 8; pad it to 40 x 96"):
        abstract_model(XT)(jnp.zeros((1, 33, 96, 3)))


def test_the_prompt_block_in_bfloat16_is_close_to_float32():
    assert_bfloat16_is_close(partial(PromptBlock, 8, 3, 4, 8))
