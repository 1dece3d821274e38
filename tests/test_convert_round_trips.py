"""Networks of random sizes to official files and back, by the command."""

import json
import random

import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from cir_jax import cli, convert, weights
from cir_jax.models import abstract_model

TIMES = 10
"""That each family is drawn."""
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)


def restormer(draw):
    dim = draw.choice((4, 6, 8, 12))
    return {
        "dim": dim,
        "num_blocks": draw.sample((1, 1, 2, 3), 4),
        "num_refinement_blocks": draw.randint(1, 3),
        "heads": [divisor(draw, dim * 2**level) for level in range(4)],
        # Of two decimals the shorter one may do: then that comes back.
        "ffn_expansion": draw.randint(5, 40) / 10,
        "bias": draw.random() < 0.5,
        "norm": draw.choice(("with_bias", "bias_free")),
        "channels": draw.choice((1, 3)),
    }


def prompts(draw, dim):
    heads = draw.randint(1, 4)
    return {
        "prompt_dims": [
            draw.randint(1, 4) * heads + -times * dim % heads for times in (2, 4, 8)
        ],
        "prompt_heads": heads,
    }


def promptir(draw):
    sizes = restormer(draw)
    return (
        sizes
        | prompts(draw, sizes["dim"])
        | {
            "prompt_length": draw.randint(1, 6),
            "prompt_sizes": [draw.randint(1, 9) for _ in range(3)],
        }
    )


def promptcir(draw):
    sizes = restormer(draw)
    del sizes["bias"], sizes["norm"]
    return (
        sizes
        | prompts(draw, sizes["dim"])
        | {
            "window_size": draw.choice((4, 8, 12)),
            "num_tasks": draw.randint(1, 8),
            "num_bases": [draw.randint(1, 9) for _ in range(3)],
            "unshuffle": 1,  # the official network knows no other
        }
    )


def perceive_ir(draw):
    sizes = restormer(draw)
    del sizes["bias"], sizes["norm"]
    return sizes | {
        "content_dim": draw.choice((4, 8, 12)),
        "semantics": "dinov2",
        "semantic_dim": draw.randint(1, 9),
        "design": "released",
    }


def ucip(draw):
    width = draw.choice((8, 12, 16, 20))
    offset_every = draw.randint(1, 4)
    # Deep enough that the interval shows.
    depths = [
        offset_every + 2,
        *(draw.randint(2, 5) for _ in range(draw.randint(0, 2))),
    ]
    return {
        "width": width,
        "depths": draw.sample(depths, len(depths)),
        "prompt_dim": draw.randint(2, 9),
        "bases": draw.randint(1, 9),
        "mlp_ratio": draw.randint(2, 16) / 4,
        "share": divisor(draw, width),
        "offset_every": offset_every,
        "head_width": draw.randint(1, 9),
        "scale": draw.choice((1, 4)),
        "skip": False,  # as the official network, which knows
        "mixing": "codec",  # no other
        "codecs": [str(i) for i in range(draw.randint(1, 8))],
        "channels": draw.choice((1, 3)),
    }


def divisor(draw, number):
    return draw.choice([i for i in range(1, 9) if number % i == 0])


@pytest.fixture
def build(monkeypatch):
    """Building a network is what takes the time: the same one is built once."""
    models = {}

    def build(config, **options):
        key = json.dumps(config, sort_keys=True)
        if key not in models:
            models[key] = abstract_model(config, **options)
        return models[key]

    monkeypatch.setattr(convert, "abstract_model", build)
    return build


@pytest.mark.slow
@pytest.mark.parametrize("number", range(TIMES))
@pytest.mark.parametrize(
    "settings", [perceive_ir, promptcir, promptir, restormer, ucip]
)
def test_a_network_of_random_sizes_comes_back(settings, number, build, tmp_path):
    name = settings.__name__
    draw = random.Random(f"{name} {number}")
    config = {"name": name, **settings(draw)}
    model = build(config)
    assert model.config == config  # no hyper-parameter is left out above

    bits = np.random.default_rng(number)
    dtype = DTYPES[number % len(DTYPES)]
    shapes = weights.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    tensors = {
        n: bits.standard_normal(x.shape).astype(dtype) for n, x in shapes.items()
    }
    ours, back, again = (
        tmp_path / file
        for file in ("ours.safetensors", "official.pth", "again.safetensors")
    )
    weights.write(ours, tensors, {"model": json.dumps(config)})
    assert cli.run(["convert", str(ours), "--to-torch", "-o", str(back)]) == cli.DONE
    told = []
    if name == "ucip" and number % 2:  # numbers stand for the names elsewhere
        config["codecs"] = [f"codec {i}" for i in config["codecs"]]
        told = ["--option", f"codecs={','.join(config['codecs'])},"]
    assert cli.run(["convert", str(back), "-o", str(again), *told]) == cli.DONE

    metadata, returned = weights.read(again)
    assert json.loads(metadata["model"]) == config
    assert returned.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (returned[name].dtype, returned[name].shape) == (dtype, tensor.shape)
        assert returned[name].tobytes() == tensor.tobytes()
