"""Programs that the tests write, and jpeg-quantsmooth where it is installed."""

import os
import shlex
import shutil
import signal
import sys
import tempfile
import time

import numpy as np
import psutil
import pytest

from cir_jax import metrics, peers
from cir_jax.codecs import get_codec
from cir_jax.errors import UserError
from cir_jax.peers import parse_peer

PILLOW = """
import sys
from PIL import Image, ImageFilter
source, target = sys.argv[1:]
image = Image.open(source)
"""
JPEGQS = "jpegqs=jpegqs --quality 6 {in} {out}.jpg"
needs_jpegqs = pytest.mark.skipif(
    shutil.which("jpegqs") is None, reason="needs jpegqs, Debian's package jpegqs"
)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where temporary folders are made; its name has a space."""
    folder = tmp_path / "a place"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def program(tmp_path):
    """Makes a peer of a Python program that gets the two files."""

    def make(text, files="{in} {out}"):
        path = tmp_path / "its program.py"
        path.write_text(text)
        words = [sys.executable, "-S", str(path)]
        if "PIL" in text:
            words.remove("-S")  # which starts faster, but without packages
        return parse_peer(f"mine={shlex.join(words)} {files}")

    return make


@pytest.fixture
def coded(photographs):
    """A bitstream, and what it decodes to."""
    codec = get_codec("jpeg")
    stream = codec.encode(np.ascontiguousarray(photographs["coffee"][:48, :64]), 30)
    return stream, codec.decode(stream)


def test_names_commands_and_words():
    peer = parse_peer("a-b=sh -c 'cp \"$1\" $2' x {in} {out}.jpg")
    assert (peer.name, len(peer.command)) == ("a-b", 6)
    assert peer.command[2:4] == ('cp "$1" $2', "x")
    assert peer.installed
    assert not parse_peer("x=no-such-program {in} {out}").installed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jpegqs {in} {out}", "no name: give NAME=COMMAND, such as jpegqs='jpegqs"),
        ("jpegqs --quality=6 {in} {out}", "has no name"),
        ("=jpegqs {in} {out}", "an empty name"),
        ("none=jpegqs {in} {out}", "none: the table has a row none of its own"),
        ("bicubic=jpegqs {in} {out}", "a row bicubic"),
        ("x=", "x: its command has no {in}: give one such as"),
        ("x=jpegqs {out}", "no {in}"),
        ("x=jpegqs {in}", "no {out}"),
        ("x=jpegqs {in} {out} {quality}", "has {quality}, but {in} and {out} are all"),
        ("x=jpegqs {in} {out} {", "has {, but"),
        ("x=jpegqs {in} {out} 'a", r"words \(No closing quotation\): mend its quotes"),
        ("x=jpegqs {in} {out} {out}.jpg", r"several outputs, {out} with .jpg and .png"),
        ("x=jpegqs {in} {out}.ppm", "output {out}.ppm is not read: .* one of .jpg,"),
        ("x=jpegqs {in} {out}.png.jpg", "output {out}.png.jpg is not read"),
    ],
)
def test_a_wrong_command_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_peer(text)


def test_the_program_reads_the_bitstream_itself(program, coded, scratch):
    stream, degraded = coded
    peer = program("import sys, shutil; shutil.copy(*sys.argv[1:])", "{in} {out}.jpg")
    restored, seconds = peer.restore(stream, ".jpg", degraded, 1)
    np.testing.assert_array_equal(restored, degraded)
    assert 0 < seconds < 5
    assert not any(scratch.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_otherwise_it_reads_the_pixels_and_may_enlarge(program, coded, channels):
    degraded = np.ascontiguousarray(coded[1][..., :channels])
    seen = ("PNG", {1: "L", 3: "RGB"}[channels])
    peer = program(
        PILLOW
        + f"assert (image.format, image.mode) == {seen}\n"
        + "image.resize([2 * side for side in image.size], 0).save(target)"
    )
    restored, _ = peer.restore(b"no image", "", degraded, 2)
    np.testing.assert_array_equal(restored, degraded.repeat(2, 0).repeat(2, 1))


def test_what_it_does_is_what_comes_back(program, coded):
    stream, degraded = coded
    text = PILLOW + "image.filter(ImageFilter.BoxBlur(8)).save(target)"
    restored, _ = program(text).restore(stream, ".jpg", degraded, 1)
    assert np.square(np.diff(restored.astype(float), axis=1)).mean() < 9
    assert np.abs(restored.mean((0, 1)) - degraded.mean((0, 1))).max() < 3


def test_grey_stays_one_channel_and_exact(program):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    peer = program(PILLOW + "image.convert('RGB').save(target)")
    np.testing.assert_array_equal(peer.restore(b"", "", grey, 1)[0], grey)
    tint = "(2 if band else 0) + min(value, 200)"
    peer = program(
        PILLOW
        + "image = image.convert('RGB').point("
        + f"[{tint} for band in range(3) for value in range(256)])\nimage.save(target)"
    )
    expected = np.minimum(grey, 200) + 1  # the mean of 0, 2 and 2 more
    np.testing.assert_array_equal(peer.restore(b"", "", grey, 1)[0], expected)


FAILURES = {
    "import sys; print('bad\\nworse', file=sys.stderr); sys.exit(3)": (
        r"peer mine: \S+ failed \(exit status 3; worse\): mend the command, or leave"
    ),
    "import os; os.abort()": r"failed \(exit status -6; it gave no reason\)",
    "print('no time')": r"wrote no out.png \(exit status 0; no time\)",
    "import sys; open(sys.argv[2], 'w').write('x')": (
        r"wrote what is no use, out.png is not an image .* \(exit status 0; it gave"
    ),
    PILLOW + "image.convert('RGBA').save(target)": (
        "no use, out.png has mode RGBA: convert it"
    ),
    PILLOW + "image.crop((0, 0, 8, 9)).save(target)": (
        r"wrote 8x9 pixels, but 64x48 are due \(exit status 0"
    ),
}


@pytest.mark.parametrize("text", FAILURES)
def test_a_failure_is_one_sentence(program, coded, scratch, text):
    with pytest.raises(UserError, match=FAILURES[text]) as caught:
        program(text).restore(*coded[:1], ".jpg", coded[1], 1)
    assert "\n" not in str(caught.value)
    assert not any(scratch.iterdir())


def test_a_program_that_is_not_there_is_named(coded):
    peer = parse_peer("x=no-such-program {in} {out}")
    words = r"x: no-such-program cannot be run \(No such file .*\): install it"
    with pytest.raises(UserError, match=words):
        peer.restore(*coded[:1], ".jpg", coded[1], 1)


FAMILY = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
with open("pids.new", "w") as file:
    print(os.getpid(), child.pid, file=file)
os.rename("pids.new", "pids")
print("half done", file=sys.stderr, flush=True)
"""


def assert_nothing_is_left(folder, scratch):
    for pid in map(int, (folder / "pids").read_text().split()):
        try:
            assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            pass
    assert not any(scratch.iterdir())


def test_a_program_that_hangs_is_stopped(
    program, coded, scratch, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(peers, "TIMEOUT", 0.5)
    peer = program(FAMILY + "time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(
        UserError, match=r"was stopped after 0.5 s \(exit status none; half done\)"
    ):
        peer.restore(*coded[:1], ".jpg", coded[1], 1)
    assert time.monotonic() - start < 10
    assert_nothing_is_left(tmp_path, scratch)


def test_ctrl_c_ends_the_program(program, coded, scratch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    peer = program(FAMILY + f"os.kill({os.getpid()}, signal.SIGINT); time.sleep(60)")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            peer.restore(*coded[:1], ".jpg", coded[1], 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert_nothing_is_left(tmp_path, scratch)


@needs_jpegqs
def test_jpegqs_gains_on_photographs(photographs):
    codec, peer, gains = get_codec("jpeg"), parse_peer(JPEGQS), []
    for image in photographs.values():
        stream = codec.encode(image, 20)
        degraded = codec.decode(stream)
        restored, _ = peer.restore(stream, codec.suffix, degraded, 1)
        gains.append(metrics.psnr(image, restored) - metrics.psnr(image, degraded))
    assert 0.2 < np.mean(gains) < 0.4


@needs_jpegqs
def test_jpegqs_keeps_grey_and_says_what_it_cannot_read(photographs):
    codec, peer = get_codec("jpeg"), parse_peer(JPEGQS)
    luma = metrics.luma(photographs["coffee"])
    stream = codec.encode(luma, 10)
    restored, _ = peer.restore(stream, ".jpg", codec.decode(stream), 1)
    assert restored.shape == luma.shape
    assert metrics.psnr(luma, restored) > metrics.psnr(luma, codec.decode(stream))
    with pytest.raises(UserError, match=r"jpegqs failed \(exit status 1; Not a JPEG"):
        peer.restore(b"", "", luma, 1)
