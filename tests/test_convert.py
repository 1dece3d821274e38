import numpy as np
import pytest
import tiny
from golden_weights import keys, made_up_weights

from cir_jax.convert import (
    from_official,
    from_state_dict,
    official_shapes,
    to_official,
    to_state_dict,
)
from cir_jax.errors import UserError
from cir_jax.hyper_parameters import infer_config
from cir_jax.models import abstract_model
from cir_jax.state_dicts import without_wrappers

INDEX = "relative_position_index_"
BLOCKS = {"dim": 16, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1}


@pytest.fixture(scope="module")
def state_dict():
    return made_up_weights(official_shapes(abstract_model(tiny.MODEL)))


@pytest.mark.parametrize(
    ("golden", "config"),
    [
        ("promptcir_full", {}),
        (
            "promptcir_tiny",
            {"dim": 16, "num_blocks": (2, 2, 1, 1), "num_refinement_blocks": 1},
        ),
        ("ucip_full", {}),
        (
            "ucip_tiny",
            {"width": 16, "depths": (4, 3), "prompt_dim": 16, "mlp_ratio": 2.0},
        ),
        ("restormer_full", {}),
        ("restormer_biasfree_tiny", BLOCKS | {"norm": "bias_free"}),
        ("promptir_full", {}),
    ],
)
def test_official_names_and_shapes_are_ours(golden, config):
    name = golden.partition("_")[0]
    model = abstract_model({"name": name, **config})
    official = keys(golden)
    assert official_shapes(model) == official
    assert infer_config(official) == model.config


@pytest.mark.parametrize(
    "config",
    [
        {"name": "promptcir", "variant": "T"},
        {"name": "promptcir", "variant": "XT", "channels": 1},
        {"name": "restormer", "variant": "XT", "bias": True, "heads": (2, 1, 4, 2)},
        {"name": "promptir", "variant": "T", "prompt_heads": 2, "channels": 1},
        {
            "name": "promptir",
            "variant": "XT",
            "bias": True,
            "norm": "bias_free",
            "prompt_length": 3,
            "prompt_sizes": (5, 9, 2),
            "prompt_dims": (4, 12, 8),
        },
        # The shorter 2.05 will not do: 240 * 2.05 is 491.99999999999994.
        {"name": "restormer", "variant": "XT", "dim": 30, "ffn_expansion": 2.051},
    ],
)
def test_every_hyper_parameter_is_inferred(config):
    model = abstract_model(config)
    assert infer_config(official_shapes(model)) == model.config


OFFICIAL = {"name": "ucip", "skip": False, "mixing": "codec"}


@pytest.mark.parametrize(
    "config",
    [
        {"variant": "S", "channels": 1},
        {"variant": "T"},
        {"variant": "XT", "codecs": ["0", "1"], "bases": 3, "share": 4, "scale": 1},
        {"variant": "XT", "depths": (7, 2), "offset_every": 3, "mlp_ratio": 1.5},
        {"variant": "XT", "depths": (2, 4), "offset_every": 1},
    ],
)
def test_every_hyper_parameter_of_ucip_is_inferred(config):
    model = abstract_model(config | OFFICIAL)
    assert infer_config(official_shapes(model)) == model.config


def test_what_would_take_long_to_build_is_refused():
    shapes = official_shapes(abstract_model({"variant": "XT"} | OFFICIAL))
    shapes["prompts.0.prompt"] = (10**9, 2, 0, 1, 4)
    with pytest.raises(UserError, match=r"no numbers in prompts\.0\.prompt"):
        infer_config(shapes)
    shapes |= {f"blocks.0.{i}.norm1.weight": (32,) for i in range(10_000)}
    with pytest.raises(UserError, match=r"of \d+ tensors is not of ucip"):
        infer_config(shapes)


def test_offset_layers_at_no_regular_interval_are_refused():
    shapes = official_shapes(abstract_model({"variant": "XT"} | OFFICIAL))
    shapes["blocks.1.2.offset_layer.1.weight"] = (32, 48)
    with pytest.raises(UserError, match="no single interval gives the offset layers"):
        infer_config(shapes)


@pytest.mark.parametrize(
    "config", [{"variant": "XT"} | OFFICIAL, {"name": "promptir", "variant": "XT"}]
)
def test_official_weights_come_back_bit_for_bit(config):
    weights = made_up_weights(official_shapes(abstract_model(config)))
    returned = to_state_dict(from_state_dict(weights))
    assert returned.keys() == weights.keys()
    for name, tensor in weights.items():
        np.testing.assert_array_equal(returned[name], tensor, strict=True)


@pytest.mark.parametrize(
    "config",
    [
        OFFICIAL | {"skip": True},
        OFFICIAL | {"mixing": "pixel"},
        {"name": "promptcir", "unshuffle": 2},
    ],
)
def test_a_network_that_is_not_official_has_no_way_back(config):
    model = abstract_model({"variant": "XT"} | config)
    with pytest.raises(UserError, match="no official state dict"):
        to_official(model.config, {})


def test_the_way_back_gives_the_same_bits(state_dict):
    returned = to_state_dict(from_state_dict(state_dict))
    indices = {name: returned.pop(name) for name in (INDEX + "SA", INDEX + "OCA")}
    assert returned.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        np.testing.assert_array_equal(returned[name], tensor, strict=True)
    assert {(x.shape, x.dtype.name) for x in indices.values()} == {
        ((16, 16), "int64"),
        ((16, 36), "int64"),
    }


@pytest.mark.parametrize("wrapper", ["module.", "net."])
def test_names_that_a_wrapper_prefixed_are_understood(wrapper):
    model = abstract_model(tiny.OFFICIAL)
    weights = made_up_weights(official_shapes(model))
    wrapped = {wrapper + name: tensor for name, tensor in weights.items()}
    assert from_state_dict(wrapped).config == model.config


def test_everything_that_does_not_fit_is_listed(state_dict):
    missing, reshaped = "refinement.0.attn.temperature", "latent.0.norm1.body.bias"
    renamed, whole = "noise_level1.attn.qkv.weight", "prompt2.conv3x3.weight"
    broken = state_dict | {
        "extra.weight": np.zeros(3, np.float32),
        reshaped: np.zeros((8, 1), np.float32),
        whole: np.zeros((4, 4, 3, 3), np.int8),
        INDEX + "SA": np.zeros((16, 16), np.int64),
        renamed.replace("qkv", "qvk"): state_dict[renamed],
    }
    del broken[missing], broken[renamed]
    with pytest.raises(UserError) as error:
        from_state_dict(broken)
    lines = str(error.value).splitlines()
    assert "does not fit the network {'name': 'promptcir', 'dim': 4," in lines[0]
    assert lines[1:] == [
        "- noise_level1.attn.qkv.weight (36, 12, 1, 1): not in the state dict (near: "
        "noise_level1.attn.qvk.weight)",
        "- refinement.0.attn.temperature (1, 1, 1): not in the state dict",
        "+ extra.weight (3,): not in the network",
        "+ noise_level1.attn.qvk.weight (36, 12, 1, 1): not in the network",
        "! latent.0.norm1.body.bias: (8, 1), but (32,) in the network",
        "! prompt2.conv3x3.weight: int8 numbers, but floating ones in the network",
        "! relative_position_index_SA: other values than the official index",
    ]


def test_where_the_tensors_cannot_tell_the_released_network_stands_in():
    tensors = {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in keys("restormer_full").items()
    }
    del tensors["patch_embed.proj.weight"]
    with pytest.raises(UserError) as error:
        from_official(tensors)
    first, *lines = str(error.value).splitlines()
    assert first.startswith("the state dict of restormer has no 'patch_embed.proj")
    assert lines == ["- patch_embed.proj.weight (48, 3, 3, 3): not in the state dict"]

    with pytest.raises(UserError, match=r"(?s)no 'patch_embed.*\.\.\. and \d+ more"):
        from_official({"encoder_level1.0.attn.temperature": np.zeros((1, 1, 1))})


@pytest.mark.parametrize("value", [{}, 3, memoryview(b"")])
def test_what_is_no_array_is_refused(value):
    with pytest.raises(UserError, match=r"^epoch is no numpy array, but a \w+$"):
        without_wrappers({"epoch": value})


def test_names_of_no_known_network_are_refused():
    with pytest.raises(UserError, match=r"no known network.*'conv\.weight'"):
        from_state_dict({"conv.weight": np.zeros((3, 3, 3, 3), np.float32)})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_parameters_keep_their_type_and_bits(dtype):
    weights = made_up_weights(official_shapes(abstract_model(tiny.OFFICIAL)))
    converted = {name: x.astype(dtype) for name, x in weights.items()}
    config, parameters = from_official(converted)
    assert {x.dtype.name for x in parameters.values()} == {dtype}
    returned = to_official(config, parameters)
    for name, tensor in converted.items():
        np.testing.assert_array_equal(returned[name], tensor, strict=True)
