"""Commands that stand in for reference encoders: FFmpeg's x265 on raw planes and on
PNG, the way that HM and HiFiC are run."""

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from cir_jax.codecs import CodecProtocol, get_codec
from cir_jax.data import degradations
from cir_jax.errors import UserError

FFMPEG = f"'{get_ffmpeg_exe()}' -loglevel error -y"
X265 = (
    "-c:v libx265 -x265-params qp={quality}:info=0:log-level=none -f hevc {bitstream}"
)
PLANES = "-pix_fmt FORMAT -f rawvideo"
RAW = f"""
name = "hm"
version = "x265, standing in for HM"
qualities = [47, 37, 27]
format = "FORMAT"
encode = "{FFMPEG} {PLANES} -s {{width}}x{{height}} -i {{input}} {X265}"
decode = "{FFMPEG} -f hevc -i {{bitstream}} {PLANES} {{output}}"
"""
PNG = f"""
name = "hific"
version = "MJPEG, standing in for HiFiC"
qualities = ["31", "8", "2"]
encode = "{FFMPEG} -i {{input}} -q:v {{quality}} -f mjpeg {{bitstream}}"
decode = "{FFMPEG} -f mjpeg -i {{bitstream}} {{output}}"
"""


@pytest.fixture
def described(tmp_path):
    """Makes the codec of a description, in a folder whose name has a space."""

    def make(text):
        path = tmp_path / "my codecs" / "codec.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return get_codec(f"command:{path}")

    return make


@pytest.mark.parametrize(
    ("text", "qualities"),
    [
        (RAW.replace("FORMAT", "yuv420p"), (47, 37, 27)),
        (RAW.replace("FORMAT", "yuv444p"), (47, 37, 27)),
        (PNG, (1, 2, 3)),
    ],
    ids=["yuv420p", "yuv444p", "png"],
)
@pytest.mark.parametrize("shape", [(96, 64), (33, 47)], ids=str)
def test_both_ways_and_better_with_quality(
    described, photographs, text, qualities, shape
):
    codec = described(text)
    assert isinstance(codec, CodecProtocol)
    assert codec.qualities == qualities
    image = photographs["coffee"][100:, 100:][: shape[0], : shape[1]]
    errors, sizes = [], []
    for quality in qualities:
        stream = codec.encode(image, quality)
        decoded = codec.decode(stream)
        assert decoded.shape == image.shape
        sizes.append(len(stream))
        errors.append(np.square(decoded.astype(float) - image).mean())
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 60


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name =", "nam =", "did you mean 'name'"),
        ('version = "x265, standing in for HM"', "", "give version, a str"),
        ("yuv420p", "yuv42p", "did you mean 'yuv420p'"),
        ("qualities = [", "qualities = ", "is no TOML"),
    ],
)
def test_a_wrong_description_is_refused(described, old, new, words):
    with pytest.raises(UserError, match=words):
        described(RAW.replace("FORMAT", "yuv420p").replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{bitstream}", "{stream}", r"filled in \('stream'\): known .*\{bitstream\}"),
        ("{quality}", "{}", r"filled in \(Replacement index 0 .*\): known"),
        ("{quality}", "'", r"filled in \(No closing quotation\): known"),
        (FFMPEG, "TAppEncoder", "TAppEncoder cannot be run .*: install it"),
        ("libx265", "libx266", "exited with [1-9].*: "),
        ("-f hevc {bitstream}", "-f null -", "wrote no result"),
    ],
)
def test_a_command_that_fails_is_quoted(described, photographs, old, new, words):
    codec = described(RAW.replace("FORMAT", "yuv420p").replace(old, new))
    with pytest.raises(UserError, match=words):
        codec.encode(photographs["coffee"][:32, :32], 37)


def test_a_decoder_of_another_format_is_found_out(described, photographs):
    encode, decode = RAW.replace("FORMAT", "yuv420p").split("decode =")
    codec = described(f"{encode}decode = {decode.replace('yuv420p', 'yuv444p')}")
    stream = codec.encode(photographs["coffee"][:32, :32], 37)
    with pytest.raises(UserError, match=r"3072 bytes, but 32x32 pixels .* are 1536"):
        codec.decode(stream)


def test_a_decoder_of_another_size_is_found_out(described, photographs, tmp_path):
    text = PNG.replace("-i {bitstream}", "-i {bitstream} -vf scale=16:16")
    described(text)
    words = "codec hific 2 failed on 32x32 pixels: its decoder gives 16x16"
    step = degradations.Step(f"command:{tmp_path}/my codecs/codec.toml", 2, False)
    image = np.ascontiguousarray(photographs["coffee"][:32, :32])
    with pytest.raises(UserError, match=words):
        degradations.pixels(image, (step,), np.random.default_rng(0))


def test_another_description_is_another_version(described):
    version = described(PNG).version
    assert version.startswith("MJPEG, standing in for HiFiC (sha256 ")
    assert described(PNG.replace('"31"', '"30"')).version != version


@pytest.mark.parametrize(
    ("spec", "words"),
    [("command", "command:FILE.toml"), ("command:no.toml", "no.toml: No such file")],
)
def test_a_missing_description_is_named(spec, words):
    with pytest.raises(UserError, match=words):
        get_codec(spec)
