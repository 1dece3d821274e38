import io

import numpy as np
import pytest
from PIL import Image

from cir_jax import metrics
from cir_jax.codecs import get_codec, parse_qualities
from cir_jax.errors import UserError


def test_is_pillows_default_encoder(photographs):
    image = photographs["coffee"]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=10)
    assert get_codec("jpeg").encode(image, 10) == buffer.getvalue()


@pytest.mark.parametrize("name", ["jpeg", "jpeg:4:2:2", "jpeg:4:4:4"])
def test_rate_and_quality_rise_together(photographs, name):
    codec, image = get_codec(name), photographs["astronaut"]
    streams = [codec.encode(image, quality) for quality in (10, 30, 50, 90)]
    scores = [metrics.psnr(image, codec.decode(stream)) for stream in streams]
    assert scores == sorted(scores)
    assert [*map(len, streams)] == sorted(map(len, streams))
    assert (codec.name, codec.suffix) == (name, ".jpg")


def test_finer_chroma_costs_bits_and_gives_quality(photographs):
    image = photographs["brushes"]
    coarse, fine = get_codec("jpeg"), get_codec("jpeg:4:4:4")
    assert len(coarse.encode(image, 40)) < len(fine.encode(image, 40))
    restored = [codec.decode(codec.encode(image, 40)) for codec in (coarse, fine)]
    assert metrics.psnr(image, restored[0]) < metrics.psnr(image, restored[1]) - 1


def test_grey_stays_grey(photographs):
    luma = metrics.luma(photographs["coffee"])
    codec = get_codec("jpeg")
    decoded = codec.decode(codec.encode(luma, 40))
    assert decoded.shape == luma.shape
    assert metrics.psnr(luma, decoded) > 28


@pytest.mark.parametrize(
    ("name", "words"),
    [("jpg", "did you mean 'jpeg'"), ("jpeg:4:1:0", "known are 4:2:0, 4:2:2, 4:4:4")],
)
def test_an_unknown_codec_is_refused(name, words):
    with pytest.raises(UserError, match=words):
        get_codec(name)


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_out_of_range_is_refused(quality):
    with pytest.raises(UserError, match=f"quality {quality} .* 1 .worst. to 100"):
        get_codec("jpeg").encode(np.zeros((8, 8, 3), np.uint8), quality)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", (10,)),
        ("10,20,30", (10, 20, 30)),
        ("5:95:30", (5, 35, 65, 95)),
        ("47:32:-5,10", (47, 42, 37, 32, 10)),
    ],
)
def test_qualities_are_lists_and_ranges(text, expected):
    assert parse_qualities(text) == expected


@pytest.mark.parametrize("text", ["", "ten", "10,", "1:2", "1:9:0", "10.5"])
def test_unreadable_qualities_are_refused(text):
    with pytest.raises(UserError, match="cannot read the quality"):
        parse_qualities(text)
