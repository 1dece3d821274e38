import dataclasses
import pickle
import re
import sys

import numpy as np
import pytest

from cir_jax.codecs import get_codec
from cir_jax.data import degradations, recipes
from cir_jax.data.recipes import Recipe, get_recipe
from cir_jax.data.records import decode
from cir_jax.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def crop(photographs):
    return np.ascontiguousarray(photographs["coffee"][96:160, 96:160])


def labels(versions):
    return [(version.codec, version.quality) for version in versions]


def test_without_draws_every_quality_comes_once_in_order(crop):
    recipe = Recipe(("jpeg 10,40", "webp 20:60:20"))
    versions = recipe.versions(crop, rng())
    expected = [("jpeg", 10), ("jpeg", 40), ("webp", 20), ("webp", 40), ("webp", 60)]
    assert labels(versions) == expected
    for version in versions:
        stream = get_codec(version.codec).encode(crop, version.quality)
        assert (version.image, version.bits) == (stream, 8 * len(stream))


def test_what_pillow_does_not_decode_is_kept_as_pixels_with_its_bits(crop):
    (version,) = Recipe(("hevc 37",)).versions(crop, rng())
    stream = get_codec("hevc").encode(crop, 37)
    assert version.bits == 8 * len(stream)
    np.testing.assert_array_equal(
        decode(version.image), get_codec("hevc").decode(stream)
    )


def test_the_23_degradations_of_ucsr():
    ucsr, traditional = get_recipe("ucsr"), get_recipe("ucsr-traditional")
    assert len(ucsr.chains) == 23
    assert len(traditional.chains) == 12
    assert traditional.codecs == ["hevc", "jpeg", "vvc"]


def test_ucsr_says_which_11_it_goes_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "compressai", None)
    degradations.codec.cache_clear()
    degradations.check.cache_clear()
    recipe, left_out = recipes.available(get_recipe("ucsr"), recipes.OPTIONAL["ucsr"])
    assert recipe == get_recipe("ucsr-traditional")
    starts = [
        "compressai:cheng2020-attn:mse 1,2,3,4 (",
        "compressai:cheng2020-attn:ms-ssim 1,2,3,4 (",
        "hific 1,2,3 (",
    ]
    for sentence, start in zip(left_out, starts, strict=True):
        assert sentence.startswith(start)
    text = " ".join(left_out)
    assert "pip install 'cir_jax[learned-codecs]'" in text
    assert "--use hific=CODEC puts another in its place" in text


def test_a_codec_can_stand_in_for_another(crop):
    recipe = get_recipe("ucsr").without("compressai:cheng2020-attn:mse")
    recipe = recipe.without("compressai:cheng2020-attn:ms-ssim")
    recipe = recipe.with_codecs({"hific": "jpeg:4:4:4", "vvc": "avif"})
    assert labels(recipe.versions(crop, rng()))[-3:] == [
        ("jpeg:4:4:4", quality) for quality in (1, 2, 3)
    ]
    with pytest.raises(UserError, match="did you mean 'hevc'"):
        recipe.with_codecs({"hevcc": "avif"})


def test_draws_are_different_and_follow_the_seed(crop):
    recipe = get_recipe("blind-jpeg")
    first = recipe.versions(crop, rng(1))
    assert len(set(labels(first))) == 8
    assert recipe.versions(crop, rng(1)) == first
    assert recipe.versions(crop, rng(2)) != first
    assert all(5 <= version.quality <= 95 for version in first)


def test_weights_are_how_often(crop):
    recipe = Recipe(("jpeg 10", "webp 20"), weights=(3.0, 1.0), draws=1)
    generator = rng()
    drawn = [labels(recipe.versions(crop, generator))[0][0] for _ in range(400)]
    assert 0.7 < drawn.count("jpeg") / 400 < 0.8


def test_all_of_a_recipe_can_be_drawn(crop):
    recipe = Recipe(("jpeg 10,20,30",), draws=3)
    assert sorted(labels(recipe.versions(crop, rng()))) == [
        ("jpeg", 10), ("jpeg", 20), ("jpeg", 30),
    ]  # fmt: skip


def test_shifted_double_jpeg_is_a_crop_saved_again(crop):
    """With the shift that the history tells, the first grid is found again."""
    recipe = Recipe(("jpeg 10 shifted + jpeg 90",))
    codec, shifts = get_codec("jpeg"), set()
    for seed in range(12):
        (version,) = recipe.versions(crop, rng(seed))
        assert (version.codec, version.quality) == ("jpeg+jpeg", 90)
        pattern = r"jpeg 10 at (\d),(\d) \+ jpeg 90"
        y, x = map(int, re.fullmatch(pattern, version.history).groups())
        moved = np.pad(crop, ((y, 0), (x, 0), (0, 0)), mode="symmetric")
        once = np.ascontiguousarray(codec.decode(codec.encode(moved, 10))[y:, x:])
        assert version.image == codec.encode(once, 90)
        shifts.add((y, x))
    assert len(shifts) > 8


def test_what_is_kept_is_the_original(crop):
    (chain,) = Recipe(("jpeg 90 kept + webp 80 kept + jpeg 30",)).chains
    webp, jpeg = get_codec("webp"), get_codec("jpeg")
    original = degradations.original(crop, chain, rng())
    once = jpeg.decode(jpeg.encode(crop, 90))
    np.testing.assert_array_equal(original, webp.decode(webp.encode(once, 80)))
    degraded = degradations.pixels(original, chain, rng())
    np.testing.assert_array_equal(degraded, jpeg.decode(jpeg.encode(original, 30)))
    assert degradations.label(chain) == "jpeg"


def test_codecs_chain(crop):
    (version,) = Recipe(("webp 10 + jpeg 30",)).versions(crop, rng())
    webp, jpeg = get_codec("webp"), get_codec("jpeg")
    assert version.image == jpeg.encode(webp.decode(webp.encode(crop, 10)), 30)
    assert (version.codec, version.history) == ("webp+jpeg", "webp 10 + jpeg 30")


@pytest.mark.parametrize("sigma", [15, 50])
def test_noise_has_its_deviation(sigma):
    grey = np.full((256, 256, 3), 128, np.uint8)
    (version,) = Recipe((f"noise {sigma}",)).versions(grey, rng())
    noise = decode(version.image).astype(float) - 128
    assert abs(noise.mean()) < 1
    assert abs(noise.std() - sigma) < 0.02 * sigma
    assert (version.codec, version.quality, version.bits) == ("noise", sigma, 0)


def test_pixels_are_those_of_a_version():
    noise = rng(9).integers(0, 256, (64, 64, 3), np.uint8)
    recipe = get_recipe("double-jpeg")
    for seed in range(4):
        chain = recipe.draw(rng(seed))
        pixels = degradations.pixels(noise, chain, rng(seed))
        version = degradations.version(noise, chain, rng(seed))
        np.testing.assert_array_equal(pixels, decode(version.image))
        assert version.codec == degradations.label(chain)


@pytest.mark.parametrize("name", sorted(recipes.PRESETS))
def test_presets_survive_json_and_pickle(name):
    recipe = get_recipe(name)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    lists = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(recipe).items()
    }
    assert recipes.from_settings(lists) == recipe


def test_a_recipe_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'degradations = ["jpeg 10,20", "webp 5:95:5"]\nweights = [2, 1]\ndraws = 4\n'
    )
    expected = Recipe(("jpeg 10,20", "webp 5:95:5"), (2.0, 1.0), 4)
    assert get_recipe(str(path)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("degradation = []", "did you mean 'degradations'"),
        ("draws = 3", "give degradations, a list of texts"),
        ("degradations = [3]", "give degradations, a list of texts"),
        ("degradations = []", "at least one degradation"),
        ('degradations = ["jpeg"]', "cannot read the degradation step 'jpeg'"),
        ('degradations = ["noise 3 shifted"]', "cannot read the degradation step"),
        ('degradations = ["jpeg 3 kept kept"]', "cannot read the degradation step"),
        ('degradations = ["jpeg 3 kept"]', "one at least that is not"),
        ('degradations = ["jpeg 3 + jpeg 9 kept"]', "steps that are kept first"),
        ('degradations = ["jpeg x"]', "cannot read the quality 'x'"),
        ('degradations = ["jpeg 1"]\ndraws = 2', "draws 2 of its 1"),
        ('degradations = ["jpeg 1"]\ndraws = 0', "draws 0 of its 1"),
        ('degradations = ["jpeg 1"]\nweights = [1, 2]', "1 degradations and 2 weights"),
        ('degradations = ["jpeg 1"]\nweights = [0]', "must be above 0"),
        ("degradations = [", "is no TOML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        get_recipe(str(path))


@pytest.mark.parametrize(
    ("degradation", "words"),
    [
        ("jpg 10", "did you mean 'jpeg'"),
        ("jpeg 10,101", "quality 101 is outside"),
        ("hevc 52", "quality 52 is outside"),
        ("noise -1", "noise -1: give a deviation of 0"),
        ("hific 1", "unknown codec 'hific'"),
    ],
)
def test_check_finds_what_would_fail_later(degradation, words):
    with pytest.raises(UserError, match=words):
        Recipe((degradation,)).check()


def test_whatever_a_codec_raises_is_named(crop, monkeypatch):
    def broken(self, image, quality):
        raise OSError("encoder error -2")

    monkeypatch.setattr("cir_jax.codecs.jpeg.Codec.encode", broken)
    words = "codec jpeg 10 failed on 64x64 pixels: encoder error -2"
    with pytest.raises(UserError, match=words):
        Recipe(("jpeg 10",)).versions(crop, rng())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blind-jpeg", "config.data.recipe=blind-jpeg: give online:blind-jpeg"),
        ("online:blind-jpg", "did you mean 'blind-jpeg'"),
    ],
)
def test_a_wrong_online_recipe_is_refused(name, words):
    with pytest.raises(UserError, match=words):
        recipes.for_reader(name, {})
