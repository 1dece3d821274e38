from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from golden_weights import assert_close, load, recorded_outputs
from twins import arrays

from cir_jax import Restorer, resize
from cir_jax.convert import from_state_dict
from cir_jax.errors import UserError
from cir_jax.models import abstract_model, build_model
from cir_jax.models.pooling import Pool
from cir_jax.models.ucip_blocks import DPM, PTMM, SPADE

TINY = tiny.UCIP | {"codecs": ("jpeg", "webp", "avif")}
BLIND = TINY | {"mixing": "pixel", "skip": True}
PARAMETERS = {"base": 11_424_291, "S": 4_383_731, "T": 1_036_707, "XT": 122_099}


def called(model, *arguments, **options):
    """What the compiled network makes of the arguments."""
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, *xs: nnx.merge(graph, state)(*xs, **options))
    return run(state, *arguments)


@pytest.fixture(scope="module")
def tiny_golden():
    goldens, weights = load("ucip_tiny")
    return goldens, from_state_dict(weights)


def test_tiny_network_equals_the_official_one(tiny_golden):
    goldens, model = tiny_golden
    graph, state = nnx.split(model)
    taps = {
        "patch_embed": "patch_embed",
        "prompts.0": "prompts.0",
        "blocks.0.0.offset_layer": "blocks.0.blocks.0.offset_layer",
        "blocks.0.0.atm": "blocks.0.blocks.0.atm",
        "blocks.0.0": "blocks.0.blocks.0",
        "blocks.0.1": "blocks.0.blocks.1",
        "blocks.0.3": "blocks.0.blocks.3",
        "prompts.1": "prompts.1",
    }

    @jax.jit
    def run(state, image, codec):
        model = nnx.merge(graph, state)
        with recorded_outputs(model, list(taps.values())) as outputs:
            return model(image, codec), outputs

    restored, outputs = run(state, goldens["x"], jnp.array([0, 4]))
    for official, ours in taps.items():
        assert_close(outputs[ours], goldens[f"tap:{official}"])
    assert_close(restored, goldens["y"])


def test_the_second_half_equals_the_official_one_given_the_official_first(tiny_golden):
    # On its own, not behind the first half: with these weights each block enlarges the
    # rounding errors of those before it, and the official ones come to 1e-5 there.
    goldens, model = tiny_golden
    tap = {k.removeprefix("tap:"): jnp.asarray(v) for k, v in goldens.items()}
    assert_close(model.pos_blocks[0](tap["patch_embed"]), tap["pos_blocks.0"])

    x = tap["patch_embed"] + tap["blocks.0.3"]
    mixed = called(
        model.blocks[1], x, tap["prompts.1"], model.pos_blocks[1], pool=Pool()
    )
    assert_close(mixed, tap["blocks.1.2"])
    x = model.norm(x + tap["blocks.1.2"])
    assert_close(x, np.reshape(tap["norm"], x.shape))
    x = model.head.conv_before_up(tap["patch_embed"] + model.conv_after_body(x))
    assert_close(jax.nn.leaky_relu(x, 0.01), tap["conv_before_up"])


@pytest.mark.slow
def test_full_network_equals_the_official_one():
    # Within 5 percent. With these weights it enlarges any change of its input 20 000
    # times: rounding the input to float32 moves its float64 output by 1e-3, and the
    # official float32 output is 1e-2 away from it. Other prompts move it by 0.7.
    goldens, weights = load("ucip_full")
    restored = called(from_state_dict(weights), goldens["x"], jnp.array([2]))
    assert_close(restored, goldens["y"], tolerance=0.05)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_each_variant_has_its_size(variant):
    model = abstract_model({"name": "ucip", "variant": variant})
    state = nnx.state(model, nnx.Param)
    assert sum(x.size for x in jax.tree.leaves(state)) == PARAMETERS[variant]
    assert (model.scale, model.multiple) == (4, 1)


@pytest.mark.parametrize("size", [(7, 5), (1, 1)])
def test_untrained_with_a_skip_it_is_bicubic_enlargement(size):
    image = np.random.RandomState(0).randint(256, size=(*size, 3)).astype(np.uint8)
    restored = called(build_model(BLIND, nnx.Rngs(0)), jnp.float32(image[None] / 255))
    assert restored.dtype == jnp.float32
    rounded = np.floor(255 * np.clip(restored[0], 0, 1) + 0.5)
    np.testing.assert_array_equal(rounded, resize.upscale(image, 4))


@pytest.mark.parametrize("skip", [True, False])
def test_scale_1_keeps_the_size_and_untrained_with_a_skip_the_image(skip):
    (image,) = arrays((2, 7, 5, 3))
    model = build_model(BLIND | {"scale": 1, "skip": skip}, nnx.Rngs(0))
    restored = called(model, image)
    assert restored.shape == image.shape
    assert np.array_equal(restored, image) == skip


def dpm(mixing, dtype=jnp.float32):
    return DPM(8, 3, 4, 6, mixing, rngs=nnx.Rngs(0), dtype=dtype)


@pytest.mark.parametrize(
    ("mixing", "shape"), [("pixel", (2, 5, 4, 3)), ("image", (2, 3))]
)
def test_the_predicted_mixture_sums_to_1_and_comes_from_the_features(mixing, shape):
    (x,) = arrays((2, 5, 4, 8))
    mixture = dpm(mixing).predicted_mixture(x, Pool())
    assert mixture.shape == shape
    np.testing.assert_allclose(mixture.sum(-1), 1, rtol=1e-6)
    assert np.abs(mixture[0] - mixture[1]).max() > 0


@pytest.mark.parametrize("mixing", ["pixel", "image"])
def test_a_known_codec_is_a_mixture_of_that_codec_alone(mixing):
    (x,) = arrays((2, 5, 4, 8))
    module = dpm(mixing)
    one_hot = jax.nn.one_hot(jnp.array([2, 0]), 3)
    known = module(x, Pool(), one_hot)

    # The mixture is predicted to be the same: nothing depends on x, codec 1 is shut out
    # for the first image, and the second one's codec is the first.
    for image, codec in ((0, 2), (1, 0)):
        predicts = dpm(mixing)
        predicts.codec_mlp.fc2.kernel[...] *= 0
        predicts.codec_mlp.fc2.bias[...] += 200 * one_hot[image]
        np.testing.assert_allclose(predicts(x, Pool())[image], known[image], rtol=1e-5)

        bases = jax.nn.softmax(module.basis_mlp(x[image]), axis=-1)
        slow = bases @ module.prompt[codec]
        np.testing.assert_allclose(known[image], slow, rtol=1e-5)


def test_a_network_told_the_codecs_uses_them_image_by_image():
    (images,) = arrays((2, 6, 6, 3))
    model = build_model(TINY, nnx.Rngs(0))
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, *xs: nnx.merge(graph, state)(*xs))
    known = run(state, images, jnp.array([0, 2]))
    swapped = run(state, images[::-1], jnp.array([2, 0]))[::-1]
    np.testing.assert_allclose(known, swapped, rtol=1e-3, atol=1e-5)
    for other in (run(state, images, jnp.array([2, 0])), run(state, images)):
        assert np.abs(known - other).max() > 1e-3
    with pytest.raises(UserError, match="predicts the codec: give none"):
        abstract_model(BLIND)(images, jnp.array([0, 2]))


def test_told_nothing_the_official_mixing_uses_codec_0():
    (image,) = arrays((2, 6, 6, 3))
    model = build_model(TINY, nnx.Rngs(0))
    np.testing.assert_array_equal(
        called(model, image), called(model, image, jnp.array([0, 0]))
    )


def test_codecs_are_known_by_name_and_number_and_others_are_refused():
    model = abstract_model(TINY)
    for codec in ("avif", 2, "2"):
        assert model.codec_index(codec) == 2
    for codec in ("avi", -1, 3):
        with pytest.raises(UserError, match=r"know jpeg \(0\), webp \(1\), avif \(2\)"):
            model.codec_index(codec)
    assert model.known_codecs == TINY["codecs"]
    for config in (BLIND, {"name": "promptcir"}):
        with pytest.raises(UserError, match="these weights know no codecs"):
            Restorer(abstract_model(config), codec="jpeg")


def test_a_restorer_can_be_told_the_codec():
    model = build_model(TINY, nnx.Rngs(0))
    image = np.random.default_rng(0).random((6, 5, 3), np.float32)
    for codec, number in (("webp", 1), (None, 0)):
        expected = model(jnp.asarray(image[None]), jnp.array([number]))[0]
        np.testing.assert_allclose(Restorer(model, codec)(image), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("hyper_parameters", "message"),
    [
        ({"mixing": "pixels"}, "'pixels': did you mean 'pixel'"),
        ({"scale": 2}, "scale 2: expected 1 or 4"),
        ({"depths": (2, 1)}, "2 blocks or more"),
        ({"depths": ()}, "2 blocks or more"),
        ({"share": 3}, "share 3 does not divide width 8"),
        ({"codecs": "jpeg"}, "expected a list of different names"),
        ({"codecs": ("jpeg", "jpeg")}, "expected a list of different names"),
    ],
)
def test_values_that_cannot_work_are_refused(hyper_parameters, message):
    with pytest.raises(UserError, match=message):
        abstract_model(TINY | hyper_parameters)


@pytest.mark.parametrize(
    ("mixing", "dtype"),
    [
        ("pixel", jnp.float32),
        pytest.param("pixel", jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param("image", jnp.float32, marks=pytest.mark.slow),
        pytest.param("codec", jnp.float32, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_finite_and_reach_every_parameter(mixing, dtype):
    image, target = arrays((2, 6, 6, 3), (2, 24, 24, 3))
    # Wide enough prompts for some ReLU behind them to be alive.
    config = BLIND | {"mixing": mixing, "prompt_dim": 16}
    model = build_model(config, nnx.Rngs(0), dtype=dtype)
    model.head.conv_last.kernel[...] += 0.1  # behind it all gradients start at zero
    graph, state = nnx.split(model)

    @jax.jit
    @jax.grad
    def gradient(state):
        return jnp.abs(nnx.merge(graph, state)(image) - target).mean()

    for path, leaf in nnx.to_flat_state(gradient(state)):
        assert leaf[...].dtype == jnp.float32
        assert np.isfinite(leaf[...]).all(), path
        assert np.any(leaf[...]), path


@pytest.mark.parametrize(
    ("block", "inputs"),
    [
        (partial(DPM, 8, 3, 4, 8, "pixel"), 1),
        (partial(DPM, 8, 3, 4, 8, "image"), 1),
        (partial(PTMM, 8, 8, 2.0, 2), 3),
        (partial(SPADE, 8, 8), 2),
    ],
)
def test_each_block_in_bfloat16_is_close_to_float32(block, inputs):
    shapes = [(1, 8, 8, 8)] * inputs
    exact, rounded = (
        called(
            block(rngs=nnx.Rngs(0), dtype=dtype),
            *(x.astype(dtype) for x in arrays(*shapes)),
            pool=Pool(),
        )
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.bfloat16
    largest = np.abs(exact).max()
    np.testing.assert_allclose(
        rounded.astype(jnp.float32), exact, atol=0.05 * max(1, largest)
    )


def test_offsets_are_float32_whatever_the_network_computes_in():
    (x,) = arrays((1, 4, 4, 12))
    block = PTMM(8, 4, 1.0, 2, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    offsets = block.offset_layer(x.astype(jnp.bfloat16))
    assert (offsets.shape, offsets.dtype) == ((1, 4, 4, 8), jnp.float32)


def test_parameters_start_as_in_the_paper():
    bank = DPM(24, 6, 16, 40, "codec", rngs=nnx.Rngs(0), dtype=jnp.float32).prompt[...]
    assert 0 <= bank.min() < 0.01 < 0.99 < bank.max() < 1

    config = TINY | {"width": 96, "prompt_dim": 48, "depths": (2,)}
    model = build_model(config, nnx.Rngs(0))
    block = model.blocks[0].blocks[0]
    deviations = {
        block.mlp.fc1: 0.02,
        block.atm.atm_w: 0.02,
        block.offset_layer.layers[1]: 0.02,
        block.atm.atm_local: (2 / 25) ** 0.5,
        model.pos_blocks[0].proj: (2 / 9) ** 0.5,
        block.spade.mlp_gamma: (2 / 9 / 96) ** 0.5,
        model.patch_embed: (2 / 25 / 96) ** 0.5,
    }
    for layer, deviation in deviations.items():
        assert np.std(layer.kernel[...]) == pytest.approx(deviation, rel=0.1)
        assert not np.any(layer.bias[...])
