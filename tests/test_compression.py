import numpy as np
import pytest

from cir_jax.codecs import get_codec
from cir_jax.compression import Compression, compressions, parse_compressions, title
from cir_jax.errors import UserError
from cir_jax.metrics import blocking_effect
from cir_jax.protocols import PROTOCOLS
from cir_jax.resize import downscale


def test_images_are_cut_to_a_multiple_of_the_scale(photographs):
    image = photographs["coffee"][:66, :75]
    pair = Compression(get_codec("jpeg"), 20)(image, 4)
    assert pair.clean.shape == pair.baseline.shape == (64, 72, 3)
    assert pair.degraded.shape == (16, 18, 3)
    assert pair.bpp == 8 * len(pair.bitstream) / (16 * 18)


@pytest.mark.parametrize("scale", [1, 4])
def test_a_double_compression_moves_the_block_grid(photographs, scale):
    """By half a block both ways; the image itself stays where it is."""
    image = np.ascontiguousarray(photographs["coffee"][:192, :256])
    codec = get_codec("jpeg")
    (double,) = compressions("jpeg", (5, 95), double=True)[1:2]
    assert (double.codec_name, double.quality_name) == ("jpeg+jpeg", "5+95")
    pair = double(image, scale)
    small = downscale(image, scale)
    once = codec.decode(codec.encode(small, 5))
    assert pair.degraded.shape == small.shape
    error = np.abs(pair.degraded.astype(int) - small).mean()
    assert error == pytest.approx(np.abs(once.astype(int) - small).mean(), rel=0.1)
    if scale == 1:
        aligned, moved = pair.degraded[..., 1], pair.degraded[4:-4, 4:-4, 1]
        assert blocking_effect(moved) > 5 * blocking_effect(aligned) + 5


def test_a_double_compression_is_of_every_ordered_pair():
    names = [each.quality_name for each in compressions("jpeg", (10, 50), double=True)]
    assert names == ["10+10", "10+50", "50+10", "50+50"]


def test_codecs_have_qualities_of_their_own_or_in_common():
    def names(codecs, *qualities):
        found = parse_compressions(codecs, qualities)
        return [(each.codec_name, each.quality_name) for each in found]

    assert names("jpeg,webp", "10,20", "5") == [("jpeg", 10), ("jpeg", 20), ("webp", 5)]
    assert names("noise,webp")[2:5] == [("noise", 50), ("webp", 10), ("webp", 20)]
    assert names("jpeg,jpeg:4:4:4", "30") == [("jpeg", 30), ("jpeg:4:4:4", 30)]
    with pytest.raises(UserError, match="given 2 times for 3 codecs"):
        names("jpeg,webp,avif", "10", "20")


def test_a_degradation_has_a_title():
    (jpeg,) = compressions("jpeg", (10,))
    assert title(jpeg) == "jpeg 10"


@pytest.mark.parametrize(
    ("protocol", "seed"), [("all-in-one-3", 0), ("all-in-one-5", 3410)]
)
def test_noise_is_that_of_the_protocol(photographs, protocol, seed):
    """The twin: NumPy's generator, scaled, added, rounded and clipped."""
    image = np.ascontiguousarray(photographs["coffee"][:70, :83])
    whole = PROTOCOLS[protocol]
    found = [noise(image, 1, 3, whole) for noise in compressions("noise", (15, 50))]
    clean = image[3:67, 1:81] if protocol == "all-in-one-3" else image
    field = np.random.Generator(np.random.PCG64(seed)).standard_normal(clean.shape)
    for pair, deviation in zip(found, (15, 50), strict=True):
        np.testing.assert_array_equal(pair.clean, clean)
        noisy = np.rint(clean + deviation * field)
        expected = np.where(noisy < 0, 0, np.where(noisy > 255, 255, noisy))
        np.testing.assert_array_equal(pair.degraded, expected)
        assert pair.degraded.dtype == np.uint8
        assert pair.bpp is None and pair.baseline is pair.degraded


def test_every_image_has_noise_of_its_own_where_the_protocol_says_so():
    flat = np.full((32, 32, 3), 128, np.uint8)
    (noise,) = compressions("noise", (25,))

    def fields(protocol):
        return [noise(flat, 1, i, PROTOCOLS[protocol]).degraded for i in range(2)]

    for protocol in ("all-in-one", "all-in-one-5", "colour"):
        assert (np.not_equal(*fields(protocol))).mean() > 0.9
    np.testing.assert_array_equal(*fields("all-in-one-3"))
    assert noise(flat, 4).degraded.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("deviation", "double", "words"),
    [(256, False, "noise 256: give a standard"), (25, True, "noise is no codec")],
)
def test_impossible_noise_is_refused(deviation, double, words):
    with pytest.raises(UserError, match=words):
        compressions("noise", (deviation,), double=double)
