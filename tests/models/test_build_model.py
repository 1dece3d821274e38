import importlib
import json
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from cir_jax.errors import UserError
from cir_jax.models import abstract_model, build_model, model_names


def test_the_names_are_the_files_of_the_papers():
    papers = {
        "dagn",
        "dagn_features",
        "perceive_ir",
        "promptcir",
        "promptir",
        "restormer",
        "ucip",
    }
    assert papers | {"guided"} <= set(model_names())
    for name in model_names():
        assert hasattr(importlib.import_module(f"cir_jax.models.{name}"), "Model")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "promptcri"}, "unknown model 'promptcri': did you mean 'promptcir'"),
        ({"name": "layers"}, "unknown model 'layers'"),
        ({}, "unknown model ''"),
        ({"name": "promptcir", "variant": "XS"}, "variant of promptcir 'XS'.*'XT'"),
        ({"name": "promptcir", "dims": 8}, "hyper-parameter of promptcir 'dims'.*dim"),
        ({"name": "promptcir", "rngs": 8}, "hyper-parameter of promptcir 'rngs'"),
    ],
)
def test_what_is_unknown_is_named_with_what_is_near(config, message):
    with pytest.raises(UserError, match=message):
        abstract_model(config)


@pytest.mark.parametrize("kind", [dict, ConfigDict, FrozenConfigDict, MappingProxyType])
def test_any_mapping_is_a_config_and_its_fields_precede_the_variants(kind):
    config = kind({"name": "promptcir", "variant": "XT", "num_blocks": (2, 1, 1, 1)})
    model = abstract_model(config)
    assert (model.num_blocks, model.dim) == ((2, 1, 1, 1), 8)
    assert "variant" in config  # left as it was


def test_the_config_rebuilds_the_network_after_a_trip_through_json():
    model = abstract_model({"name": "promptcir", "variant": "T"})
    config = json.loads(json.dumps(model.config))
    assert config == model.config
    again = abstract_model(config)
    assert again.config == config
    assert nnx.graphdef(again) == nnx.graphdef(model)


def test_an_abstract_model_has_the_shapes_and_types_of_a_built_one():
    def shapes(model):
        return jax.tree.map(
            lambda x: (x.shape, x.dtype), nnx.to_pure_dict(nnx.state(model))
        )

    built = tiny.model()
    assert shapes(abstract_model(tiny.MODEL)) == shapes(built)
    parameters = jax.tree.leaves(nnx.state(built))
    assert {x.dtype for x in parameters} == {jnp.dtype(jnp.float32)}
    assert not any(x.weak_type for x in parameters)  # those recompile silently


def test_the_seed_decides_the_initial_parameters():
    one, same, other = (
        jax.tree.leaves(nnx.state(build_model(tiny.MODEL, nnx.Rngs(seed))))
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
