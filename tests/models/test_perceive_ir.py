from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import assert_equals_official
from twins import arrays, assert_bfloat16_is_close

from cir_jax.convert import official_shapes, to_official
from cir_jax.errors import UserError
from cir_jax.models import abstract_model, build_model
from cir_jax.models.perceive_ir import CFE, ETB, PGM
from cir_jax.models.pooling import Pool

XT = {"name": "perceive_ir", "variant": "XT"}
REDUCED = XT | {"semantics": "none"}
SMALLEST = {
    "dim": 4,
    "num_blocks": (1, 1, 1, 1),
    "num_refinement_blocks": 1,
    "heads": (1, 1, 1, 1),
    "ffn_expansion": 1.0,
}
PARAMETERS = {
    "base": 33_901_111,
    "paper": 28_038_351,
    "XT": 508_581,
}
GUIDED = [
    {"name": "restormer", "variant": "XT"},
    {"name": "promptir", "variant": "XT"},
    {"name": "promptcir", "variant": "XT", "window_size": 4},
]


@pytest.mark.parametrize(
    ("golden", "taps"),
    [
        ("perceive_ir_tiny", 7),
        pytest.param("perceive_ir_full", 1, marks=pytest.mark.slow),
    ],
)
def test_the_network_equals_the_official_one(golden, taps):
    assert_equals_official(golden, taps)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_each_variant_has_its_size(variant):
    state = nnx.state(abstract_model(XT | {"variant": variant}))
    assert sum(x.size for x in jax.tree.leaves(state)) == PARAMETERS[variant]


def shape_of(config, **told):
    """Of what an abstract network makes of two images."""
    model = abstract_model(config)
    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((2, 8, 24, model.channels), jnp.float32)
    run = partial(jax.eval_shape, lambda s, x, told: nnx.merge(graph, s)(x, **told))
    return run(state, image, told).shape


TOKENS = jax.ShapeDtypeStruct((4, 2, 768), jnp.float32)


@pytest.mark.parametrize(
    ("config", "channels"),
    [(XT, 3), (XT | {"design": "paper"}, 3), (XT | {"channels": 1}, 1)],
)
def test_it_keeps_the_images_shape(config, channels):
    assert shape_of(config, semantics=TOKENS) == (2, 8, 24, channels)


@pytest.mark.parametrize(
    ("network", "semantics"),
    list(zip(GUIDED, ("dinov2", "none", "none"), strict=True)),
)
def test_other_networks_can_be_guided(network, semantics):
    config = {"name": "guided", "network": network, "semantics": semantics}
    told = {"semantics": TOKENS} if semantics == "dinov2" else {}
    assert shape_of(config, **told) == (2, 8, 24, 3)
    model = abstract_model(config)
    assert abstract_model(model.config).config == model.config
    assert model.multiple == abstract_model(network).multiple


@pytest.mark.slow
def test_guidance_changes_another_network_by_the_content_that_it_is_given():
    network = {"name": "restormer", **SMALLEST}
    model = build_model(
        {"name": "guided", "network": network, "semantics": "none"}, nnx.Rngs(0)
    )
    (image,) = arrays((1, 8, 8, 3))

    @jax.jit
    def outputs(model):
        own = model(image)
        content = model.cfe(image)
        again, other = (model(image, content=c) for c in (content, -content))
        for pgm in model.pgm:
            last = pgm.affine.layers[2]
            last.kernel[...], last.bias[...] = 0 * last.kernel, 0 * last.bias
        return own, again, other, model(image), model.guided(image)

    own, again, other, silent, without = outputs(model)
    np.testing.assert_allclose(again, own, atol=1e-6)
    assert np.abs(other - own).max() > 1e-4
    np.testing.assert_allclose(silent, without, atol=1e-6)
    assert np.abs(own - without).max() > 1e-4


@pytest.mark.parametrize("design", ["released", "paper"])
def test_content_is_of_length_1_and_its_mean_may_come_from_elsewhere(design):
    cfe = CFE(3, 8, design=design, rngs=nnx.Rngs(0), dtype=jnp.float32)
    (image,) = arrays((3, 24, 40, 3))
    content = jax.jit(cfe)(image)
    np.testing.assert_allclose(np.linalg.norm(content, axis=1), 1, rtol=1e-5)

    class FirstImages(Pool):
        def __call__(self, x):
            return super().__call__(jnp.broadcast_to(x[:1], x.shape))

    first = jnp.repeat(content[:1], 3, axis=0)
    given = jax.jit(lambda x: cfe(x, FirstImages()))(image)
    np.testing.assert_allclose(given, first, rtol=1e-5)
    blank = jax.jit(jax.grad(lambda x: cfe(x).sum()))(jnp.zeros((1, 16, 16, 3)))
    assert np.isfinite(blank).all()


def test_guidance_scales_and_shifts_by_the_papers_formula_or_the_released_one():
    x, guidance = arrays((2, 3, 4, 6), (2, 5))
    options = {"rngs": nnx.Rngs(0), "dtype": jnp.float32}
    released = PGM(5, 6, design="released", **options)
    both = released.affine(guidance)[:, None, None]
    expected = x * (1 + both[..., :6]) + both[..., 6:]
    np.testing.assert_allclose(released(x, guidance), expected, rtol=1e-5)
    paper = PGM(5, 6, design="paper", **options)
    gamma, beta = (f(guidance)[:, None, None] for f in (paper.gamma, paper.beta))
    np.testing.assert_allclose(paper(x, guidance), gamma * x + beta, rtol=1e-5)
    assert 0.5 < float(gamma.mean()) < 1.5  # or a fresh network would be blank


@pytest.mark.parametrize(
    ("hyper_parameters", "message"),
    [
        ({"design": "figures"}, "design 'figures'.*known are paper, released"),
        ({"semantics": "dino"}, "semantics 'dino'.*did you mean 'dinov2'"),
        ({"heads": (1, 2, 3, 8)}, "3 attention heads do not divide 32 channels"),
    ],
)
def test_what_cannot_work_is_refused(hyper_parameters, message):
    with pytest.raises(UserError, match=message):
        abstract_model(XT | hyper_parameters)


def test_what_takes_no_guide_is_refused():
    with pytest.raises(UserError, match="ucip takes no guide: guide restormer"):
        abstract_model({"name": "guided", "network": {"name": "ucip"}})


def test_semantics_that_are_missing_or_too_many_are_refused():
    with pytest.raises(UserError, match=r"4 class tokens of 768.*are missing"):
        shape_of(XT)
    with pytest.raises(UserError, match=r"by none for each image.*are given"):
        shape_of(REDUCED, semantics=TOKENS)
    with pytest.raises(UserError, match="multiples of 8; pad it to 40 x 96"):
        abstract_model(REDUCED)(jnp.zeros((1, 33, 96, 3)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (REDUCED, "semantics 'none' and design 'released' has no official"),
        (XT | {"design": "paper"}, "design 'paper' has no official"),
        ({"name": "guided", "network": GUIDED[0]}, "restormer with Perceive-IR's"),
    ],
)
def test_what_was_not_released_has_no_official_state_dict(config, message):
    with pytest.raises(UserError, match=message):
        to_official(config, {})


def test_the_drawn_block_has_one_attention_less():
    def sizes(design):
        return official_shapes(abstract_model(XT | {"design": design})).keys()

    assert not any("mdta" in name for name in sizes("paper"))
    assert any("latent.blocks.1.mdta.qkv.weight" in name for name in sizes("released"))


@pytest.mark.parametrize("design", ["released", "paper"])
def test_blocks_in_bfloat16_are_close_to_float32(design):
    assert_bfloat16_is_close(partial(ETB, 8, 2, 2.0, design=design), inputs=2)
