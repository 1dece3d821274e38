import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.models import abstract_model, build_model
from cir_jax.models.dagn_features import codec_scales, detail

IMAGE = jax.random.uniform(jax.random.key(1), (2, 16, 24, 3))


def built(config, seed=0):
    return build_model(config, nnx.Rngs(seed))


@jax.jit
def called(graphdef, state, image):
    return nnx.merge(graphdef, state)(image)


def restored(model, image=IMAGE):
    return called(*nnx.split(model), image)


@pytest.mark.parametrize("guidance", ["none", "sensitive", "insensitive", "both"])
def test_features_guide_it_by_choice(guidance):
    model = built(tiny.DAGN | {"guidance": guidance})
    assert (model.sensitive is not None) == (guidance in ("sensitive", "both"))
    assert (model.insensitive is not None) == (guidance in ("insensitive", "both"))
    assert model.pools == (guidance in ("insensitive", "both"))
    assert restored(model).shape == IMAGE.shape


def test_modulation_changes_nothing_before_it_is_trained():
    alone = restored(built(tiny.DAGN | {"guidance": "none"}))
    model = built(tiny.DAGN | {"guidance": "sensitive"})
    np.testing.assert_array_equal(restored(model), alone)
    model.modulation[0].beta.bias[...] += 1
    assert not np.allclose(restored(model), alone)


def test_its_encoders_are_those_of_the_first_stage():
    features, model = built(tiny.FEATURES, seed=1), built(tiny.DAGN)
    before = restored(model)
    adopted = model.adopting(features)
    assert not np.allclose(restored(adopted), before)
    for name in ("sensitive", "insensitive"):
        ours, theirs = (nnx.state(getattr(m, name)) for m in (adopted, features))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feature_dim": 8}, "have feature_dim 8, config.model has 4"),
        ({"codecs": ("jpeg 1 100",)}, "have codecs"),
    ],
)
def test_encoders_of_another_size_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        abstract_model(tiny.DAGN).adopting(abstract_model(tiny.FEATURES | change))


@pytest.mark.parametrize("config", [tiny.DAGN, tiny.FEATURES], ids=lambda c: c["name"])
def test_sides_that_are_no_multiple_of_8_are_refused(config):
    with pytest.raises(UserError, match=r"pad it to 16 x 24"):
        jax.eval_shape(built(config), IMAGE[:, :12])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_auto_encoder_answers_with_an_image(channels):
    model = built(tiny.FEATURES | {"channels": channels})
    assert restored(model, IMAGE[..., :channels]).shape == (2, 16, 24, channels)


def test_without_an_adversary_there_is_no_discriminator():
    model = abstract_model(tiny.FEATURES | {"adversarial": False})
    assert model.discriminator is None
    assert "adversarial" in model.config


def test_the_insensitive_maps_are_made_of_the_code_alone():
    model = built(tiny.FEATURES)
    code = model.insensitive.code(IMAGE)
    for ours, theirs in zip(
        model.insensitive(IMAGE), model.insensitive.decode(code), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_the_head_tells_every_codec():
    told = built(tiny.FEATURES).sensitive.identify(IMAGE)
    assert told.logits.shape == (2, 3) and told.qualities.shape == (2, 2)


def test_detail_is_what_a_mean_of_nine_leaves():
    image = np.asarray(IMAGE, np.float64)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    means = (
        sum(padded[:, y : y + 16, x : x + 24] for y in range(3) for x in range(3)) / 9
    )
    np.testing.assert_allclose(detail(IMAGE), 10 * (image - means), atol=1e-5)
    np.testing.assert_allclose(detail(jnp.full((1, 8, 8, 3), 0.3)), 0, atol=1e-5)


@pytest.mark.parametrize(
    "codecs",
    [
        (),
        ("jpeg",),
        ("jpeg 1 x",),
        ("jpeg 5 5",),
        ("jpeg 1 9", "jpeg 1 9"),
        ("none 1 2",),
    ],
)
def test_codecs_that_cannot_be_told_apart_are_refused(codecs):
    with pytest.raises(UserError, match=r"config\.model\.codecs"):
        codec_scales(codecs)


def test_an_unknown_guidance_is_named():
    with pytest.raises(UserError, match="guidance of dagn 'all'"):
        abstract_model(tiny.DAGN | {"guidance": "all"})
