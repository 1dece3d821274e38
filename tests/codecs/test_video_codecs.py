import re
import subprocess
import sys

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from cir_jax import metrics
from cir_jax.codecs import CodecProtocol, get_codec
from cir_jax.errors import UserError

SPECS = ["hevc", "hevc:4:4:4", "vvc"]


@pytest.fixture(params=SPECS)
def codec(request):
    return get_codec(request.param)


@pytest.fixture
def crop(photographs):
    return np.ascontiguousarray(photographs["coffee"][100:228, 100:228])


def test_it_is_a_codec(codec):
    assert isinstance(codec, CodecProtocol)
    assert re.search(r"intra, lib(x265|vvenc) in FFmpeg \S+", codec.version)


def test_rate_and_quality_rise_from_worst_to_best(codec, crop):
    streams = [codec.encode(crop, qp) for qp in (47, 42, 37, 32)]
    sizes = [len(stream) for stream in streams]
    scores = [metrics.psnr(codec.decode(stream), crop) for stream in streams]
    assert sizes == sorted(sizes)
    assert scores == sorted(scores)
    assert 22 < scores[0] < scores[-1] - 4 < 30


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 47)], ids=str)
def test_any_size_and_grey_come_back(codec, crop, shape, channels):
    image = crop[: shape[0], : shape[1], :channels]
    decoded = codec.decode(codec.encode(image, 17))
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(float) - image).mean() < 4


def test_the_same_bytes_every_time(codec, crop):
    assert codec.encode(crop, 37) == codec.encode(crop, 37)


@pytest.mark.parametrize("spec", ["hevc", "vvc"])
@pytest.mark.parametrize("qp", [22, 47])
def test_qp_is_the_qp_of_the_slice(spec, qp, crop):
    """QP means what the reference encoders' QP means: FFmpeg reads the headers."""
    stream = get_codec(spec).encode(crop, qp)[2:]
    arguments = ["-f", spec, "-i", "pipe:", "-c", "copy", "-bsf:v", "trace_headers"]
    trace = subprocess.run(
        [get_ffmpeg_exe(), *arguments, "-f", "null", "-"],
        input=stream,
        capture_output=True,
        check=True,
    ).stderr.decode()

    def value(*names):
        (name,) = {name for name in names if f" {name} " in trace}
        return int(re.search(rf" {name} .* = (-?\d+)", trace).group(1))

    initial = value("init_qp_minus26", "pps_init_qp_minus26")
    assert 26 + initial + value("slice_qp_delta", "sh_qp_delta") == qp


def test_a_cut_stream_is_refused(codec, crop):
    with pytest.raises(UserError, match=f"{codec.name}: "):
        codec.decode(codec.encode(crop, 37)[:20])


def test_qualities_out_of_range_and_bad_arguments_are_refused(codec, crop):
    with pytest.raises(UserError, match=r"quality 64 is outside .* \(worst\) to 0"):
        codec.encode(crop, 64)
    with pytest.raises(UserError, match="did you mean 'medium'"):
        get_codec("vvc:medum")
    with pytest.raises(UserError, match="did you mean '4:4:4'"):
        get_codec("hevc:444")


@pytest.mark.parametrize(
    ("spec", "package"), [("hevc", "av"), ("vvc", "av"), ("vvc", "imageio_ffmpeg")]
)
def test_without_the_package_the_sentence_says_what_to_install(
    monkeypatch, spec, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'cir_jax\[codecs\]'"):
        get_codec(spec)
