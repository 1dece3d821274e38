import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image, features

from cir_jax import metrics
from cir_jax.codecs import CodecProtocol, get_codec
from cir_jax.errors import UserError

NAMES = ("webp", "avif", "jpeg2000", "jxl")
GREY = ("jpeg2000", "jxl")
RISING = {
    "webp": (0, 20, 50, 90),
    "avif": (0, 30, 60, 90),
    "jpeg2000": (100, 40, 15, 5),
    "jxl": (1, 30, 60, 95),
}
"""Four qualities a codec, worst first."""


@pytest.fixture(params=NAMES)
def codec(request):
    if request.param == "jxl":
        pytest.importorskip("pillow_jxl")
    return get_codec(request.param)


@pytest.mark.parametrize("size", [(96, 80), (1, 1), (7, 5), (33, 47)])
def test_every_size_comes_back(codec, photographs, size):
    height, width = size
    image = photographs["coffee"][60 : 60 + height, 90 : 90 + width]
    for quality in (codec.qualities[0], codec.qualities[-1]):
        decoded = codec.decode(codec.encode(image, quality))
        assert decoded.shape == image.shape
        assert decoded.dtype == np.uint8
    assert metrics.psnr(image, decoded) > 30


def test_rate_and_quality_rise_together(codec, photographs):
    image = photographs["coffee"][60:188, 90:218]
    qualities = RISING[codec.name]
    streams = [codec.encode(image, quality) for quality in qualities]
    scores = [metrics.psnr(image, codec.decode(stream)) for stream in streams]
    assert np.all(np.diff([*map(len, streams)]) > 0)
    assert np.all(np.diff(scores) > 0.5)
    positions = [codec.qualities.index(quality) for quality in qualities]
    assert positions == sorted(positions)


def test_the_same_image_gives_the_same_bytes(codec, photographs):
    image = photographs["brushes"][:128, :128]
    middle = codec.qualities[len(codec.qualities) // 2]
    stream = codec.encode(image, middle)
    assert get_codec(codec.name).encode(image, middle) == stream
    # Worker processes get the codec pickled, and images that are no plain array.
    strided = np.asfortranarray(image)
    assert pickle.loads(pickle.dumps(codec)).encode(strided, middle) == stream


def test_follows_the_protocol(codec):
    assert isinstance(codec, CodecProtocol)
    assert codec.name in NAMES
    assert any(character.isdigit() for character in codec.version)


def test_a_quality_out_of_range_is_refused(codec):
    image = np.zeros((8, 8, 3), np.uint8)
    for quality in (min(codec.qualities) - 1, max(codec.qualities) + 1):
        with pytest.raises(UserError, match=f"quality {quality} is .*{codec.name}"):
            codec.encode(image, quality)


def test_grey_stays_grey_or_is_refused(codec, photographs):
    luma = metrics.luma(photographs["coffee"][60:107, 90:123])
    quality = RISING[codec.name][-1]
    if codec.name in GREY:
        decoded = codec.decode(codec.encode(luma, quality))
        assert decoded.shape == luma.shape
        assert metrics.psnr(luma, decoded) > 30
    else:
        with pytest.raises(UserError, match="has no grey images"):
            codec.encode(luma, quality)


def test_plain_pillow_decodes_what_records_may_hold(codec, photographs):
    assert codec.pillow_decodes == (codec.name in ("webp", "avif"))
    if codec.pillow_decodes:
        stream = codec.encode(photographs["coffee"][:63, :95], RISING[codec.name][1])
        with Image.open(io.BytesIO(stream)) as image:
            np.testing.assert_array_equal(np.asarray(image), codec.decode(stream))


def test_the_suffix_is_the_formats(codec, photographs):
    stream = codec.encode(photographs["coffee"][:16, :16], codec.qualities[0])
    with Image.open(io.BytesIO(stream)) as image:
        assert image.format == Image.registered_extensions()[codec.suffix]
    assert (codec.suffix == ".j2k") == stream.startswith(b"\xff\x4f\xff\x51")


@pytest.mark.parametrize("name", ["webp", "avif", "jpeg2000"])
def test_a_pillow_without_the_format_is_named(monkeypatch, name):
    monkeypatch.setattr(features, "check", lambda feature: False)
    with pytest.raises(UserError, match="pip install --force-reinstall"):
        get_codec(name)


def test_a_missing_plugin_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(UserError, match=r"pip install 'cir_jax\[codecs\]'"):
        get_codec("jxl")
