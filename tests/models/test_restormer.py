from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from golden_weights import assert_equals_official
from twins import assert_bfloat16_is_close

from cir_jax.convert import official_shapes
from cir_jax.errors import UserError
from cir_jax.models import abstract_model
from cir_jax.models.layers import LayerNorm

XT = {"name": "restormer", "variant": "XT"}
PARAMETERS = {"base": 26_126_644, "S": 6_676_132, "T": 1_590_678, "XT": 237_023}


@pytest.mark.parametrize(
    ("golden", "taps"),
    [
        ("restormer_tiny", 6),
        ("restormer_biasfree_tiny", 2),
    ],
)
def test_the_network_equals_the_official_one(golden, taps):
    assert_equals_official(golden, taps)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_each_variant_has_its_size(variant):
    state = nnx.state(abstract_model(XT | {"variant": variant}))
    assert sum(x.size for x in jax.tree.leaves(state)) == PARAMETERS[variant]


def test_it_keeps_the_images_shape():
    graph, state = nnx.split(abstract_model(XT | {"bias": True, "norm": "bias_free"}))
    image = jax.ShapeDtypeStruct((2, 8, 24, 3), jnp.float32)
    restored = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x), state, image)
    assert (restored.shape, restored.dtype) == (image.shape, image.dtype)


def test_all_layers_can_have_biases_but_the_embedding_and_those_that_change_the_size():
    shapes = official_shapes(abstract_model(XT | {"bias": True}))
    without = {
        layer
        for layer, _, leaf in (name.rpartition(".") for name in shapes)
        if leaf == "weight" and f"{layer}.bias" not in shapes
    }
    changing = ("down1_2", "down2_3", "down3_4", "up4_3", "up3_2", "up2_1")
    assert without == {"patch_embed.proj", *(f"{name}.body.0" for name in changing)}


@pytest.mark.parametrize(
    ("hyper_parameters", "message"),
    [
        ({"norm": "biasfree"}, "norm 'biasfree'.*known are bias_free, with_bias"),
        ({"heads": (1, 2, 3, 8)}, "3 attention heads do not divide 32 channels"),
    ],
)
def test_what_cannot_work_is_refused(hyper_parameters, message):
    with pytest.raises(UserError, match=message):
        abstract_model(XT | hyper_parameters)


def test_an_image_of_another_size_is_refused_with_the_size_to_pad_to():
    with pytest.raises(UserError, match="multiples of 8; pad it to 40 x 96"):
        abstract_model(XT)(jnp.zeros((1, 33, 96, 3)))


def test_the_bias_free_norm_in_bfloat16_is_close_to_float32():
    assert_bfloat16_is_close(partial(LayerNorm, 8, "bias_free"))
