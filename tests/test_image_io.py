import os
from pathlib import Path

import numpy as np
import pytest
from image_bytes import deep_png
from PIL import Image

from cir_jax import image_files, image_io
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


BAD = {
    "cut.png": (save_cut, "cannot be decoded"),
    "empty.jpg": (lambda p: p.write_bytes(b""), "is empty"),
    "text.png": (lambda p: p.write_text("hello"), "is not an image that can be read"),
    "alpha.png": (Image.new("RGBA", (4, 4)).save, "has mode RGBA"),
    "deep.png": (Image.new("I;16", (4, 4)).save, "has 16 bits a channel"),
    "deep_colour.png": (
        lambda p: p.write_bytes(deep_png(np.zeros((1, 2, 3), np.uint16))),
        "has 16 bits a channel",
    ),
    "float.tiff": (Image.new("F", (4, 4)).save, "has mode F"),
    "folder.png": (lambda p: p.mkdir(), "is not a file"),
    "missing.png": (lambda p: None, "does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named(tmp_path, name):
    make, words = BAD[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} {words}"):
        image_io.read_rgb(tmp_path / name)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    image_io.write_png(tmp_path / "bomb.png", PIXELS)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 21 * 34 - 1)
    with pytest.raises(UserError, match=r"bomb\.png has 34x21 pixels, more than"):
        image_io.read_rgb(tmp_path / "bomb.png")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"a\.png cannot be written"):
        image_io.write_png(tmp_path / "file" / "a.png", PIXELS)


@pytest.mark.parametrize("round_", [image_io.to_uint8, image_io.to_uint16])
def test_rounding_clips(round_):
    dtype = round_(np.zeros((1, 1, 1), np.float32)).dtype
    top = np.iinfo(dtype).max
    values = np.array([-0.1, 0, 0.49 / top, 0.51 / top, 1, 1.7], np.float32)
    expected = np.array([[[0, 0, 0, 1, top, top]]], dtype)
    np.testing.assert_array_equal(round_(values[None, None]), expected)


@pytest.mark.parametrize("suffix", [".gif", ".jp2"])
def test_the_strict_reader_reads_the_newer_formats(tmp_path, suffix):
    grey = Image.fromarray(PIXELS[..., 0])
    grey.save(tmp_path / f"a{suffix}")
    [path] = image_io.find_images(tmp_path)
    expected = np.repeat(PIXELS[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(image_io.read_rgb(path), expected)


def test_what_cannot_be_read_is_found(tmp_path):
    (tmp_path / "lost.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.PNG")
    (tmp_path / "folder.png").mkdir()
    found = [path.name for path in image_io.find_images(tmp_path)]
    assert found == ["lost.png", "pipe.PNG"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(UserError, match=r"secret cannot be read \(Permission denied\)"):
        image_io.find_images(tmp_path)
