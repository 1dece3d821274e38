import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cir_jax import image_io
from cir_jax.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8)


def test_a_png_comes_back_as_it_was_written(tmp_path):
    image_io.write_png(tmp_path / "new" / "a.png", PIXELS)
    np.testing.assert_array_equal(image_io.read_rgb(tmp_path / "new" / "a.png"), PIXELS)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_grey_and_palette_become_rgb(tmp_path):
    grey = Image.fromarray(PIXELS[..., 0])
    grey.save(tmp_path / "grey.png")
    expected = np.repeat(PIXELS[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(image_io.read_rgb(tmp_path / "grey.png"), expected)
    grey.convert("P").save(tmp_path / "palette.png")
    np.testing.assert_array_equal(image_io.read_rgb(tmp_path / "palette.png"), expected)


def test_the_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(PIXELS, -1)
    np.testing.assert_array_equal(image_io.read_rgb(tmp_path / "a.png"), expected)


def save_cut(path):
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[:-600])


def save_deep_colour(path):
    """Pillow does not write 16-bit colour, so chunk by chunk (PNG specification)."""
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(13))), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )


BAD = {
    "cut.png": (save_cut, "cannot be decoded"),
    "empty.jpg": (lambda p: p.write_bytes(b""), "is not an image that can be read"),
    "text.png": (lambda p: p.write_text("hello"), "is not an image that can be read"),
    "alpha.png": (Image.new("RGBA", (4, 4)).save, "has mode RGBA"),
    "deep.png": (Image.new("I;16", (4, 4)).save, "has 16 bits a channel"),
    "deep_colour.png": (save_deep_colour, "has 16 bits a channel"),
    "missing.png": (lambda p: None, "does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named(tmp_path, name):
    make, words = BAD[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} {words}"):
        image_io.read_rgb(tmp_path / name)


@pytest.mark.parametrize("limit", [100, 500])
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, limit):
    image_io.write_png(tmp_path / "bomb.png", PIXELS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"bomb\.png (is too large|has 34x21 pixels)"):
        image_io.read_rgb(tmp_path / "bomb.png")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"a\.png cannot be written"):
        image_io.write_png(tmp_path / "file" / "a.png", PIXELS)


def test_rounding_clips():
    values = np.array([-0.1, 0, 0.5 / 255 + 1e-6, 0.5, 1, 1.7], np.float32)
    expected = [[[0, 0, 1, 128, 255, 255]]]
    np.testing.assert_array_equal(image_io.to_uint8(values[None, None]), expected)
