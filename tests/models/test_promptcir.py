from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from golden_weights import assert_equals_official
from twins import assert_bfloat16_is_close

from cir_jax.errors import UserError
from cir_jax.models import abstract_model, build_model
from cir_jax.models.layers import TransformerBlock
from cir_jax.models.promptcir import DPM, HAB, OCAB
from cir_jax.ops.pixel_shuffle import pixel_shuffle, pixel_unshuffle

XT = {"name": "promptcir", "variant": "XT"}
PARAMETERS = {
    "base": 34_754_927,
    "S": 8_920_913,
    "T": 2_178_575,
    "XT": 359_451,
    "half": 3_085_449,
}


def test_tiny_network_equals_the_official_one_at_every_stage():
    assert_equals_official(
        "promptcir_tiny", 18, lambda path: path.replace("residual_group.", "")
    )


@pytest.mark.slow
def test_full_network_equals_the_official_one():
    assert_equals_official("promptcir_full", 0)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_each_variant_has_its_size_and_keeps_the_images_shape(variant):
    model = abstract_model({"name": "promptcir", "variant": variant})
    graph, state = nnx.split(model)
    assert sum(x.size for x in jax.tree.leaves(state)) == PARAMETERS[variant]
    if variant != "XT":  # the others differ in sizes alone
        return

    assert model.scale == 1
    m = model.multiple
    image = jax.ShapeDtypeStruct((2, m, 3 * m, 3), jnp.float32)
    restored = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x), state, image)
    assert (restored.shape, restored.dtype) == (image.shape, image.dtype)


def test_an_image_of_another_size_is_refused_with_the_size_to_pad_to():
    model = abstract_model({"name": "promptcir"})
    with pytest.raises(UserError, match="multiples of 32; pad it to 64 x 96"):
        model(jnp.zeros((1, 33, 96, 3)))


@pytest.mark.parametrize(
    ("hyper_parameters", "message"),
    [
        ({"window_size": 6}, "window_size 6 is no multiple of 4"),
        ({"unshuffle": 0}, "unshuffle 0: give 1 or more"),
        ({"heads": (1, 2, 3, 8)}, "3 attention heads do not divide 32 channels"),
        ({"heads": (1, 3, 4, 8)}, "3 attention heads do not divide 16 channels"),
        ({"prompt_dims": (6, 16, 32)}, "4 attention heads do not divide 22 channels"),
    ],
)
def test_sizes_that_cannot_work_are_refused(hyper_parameters, message):
    with pytest.raises(UserError, match=message):
        abstract_model(XT | hyper_parameters)


@pytest.mark.parametrize(
    "block",
    [
        partial(HAB, 8, 2, 4, 2, 2.0),
        partial(OCAB, 8, 2, 4, 2.0),
        partial(TransformerBlock, 8, 2, 2.0),
        partial(DPM, 8, 3, 4, 8),
    ],
)
def test_each_block_in_bfloat16_is_close_to_float32(block):
    assert_bfloat16_is_close(block)


def test_prompts_start_between_zero_and_one_and_linear_layers_small():
    prompts = DPM(24, 7, 16, 40, rngs=nnx.Rngs(0), dtype=jnp.float32)
    bank = prompts.prompt[...]
    assert 0 <= bank.min() < 0.01 < 0.99 < bank.max() < 1
    assert np.std(prompts.basis_mlp.fc1.kernel[...]) == pytest.approx(0.02, rel=0.1)
    assert not np.any(prompts.basis_mlp.fc1.bias[...])


def test_unshuffling_is_a_network_of_folded_images():
    model = build_model(tiny.MODEL | {"unshuffle": 2}, nnx.Rngs(0))
    folded = build_model(tiny.MODEL | {"channels": 12}, nnx.Rngs(0))
    image = jax.random.uniform(jax.random.key(0), (1, 2 * model.multiple, 16, 3))
    assert model.multiple == 2 * folded.multiple
    untrained = jax.jit(lambda image: model(image))(image)
    np.testing.assert_array_equal(untrained, image)
    model.output.kernel[...] = folded.output.kernel[...]
    expected = jax.jit(folded)(pixel_unshuffle(image, 2))
    found = jax.jit(lambda image: model(image))(image)
    np.testing.assert_allclose(found, pixel_shuffle(expected, 2), atol=1e-6)
