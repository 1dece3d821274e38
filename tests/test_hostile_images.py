"""Files that are not what they seem: each gets its sentence."""

import io
import os
import struct

import image_bytes
import numpy as np
import pytest
from PIL import Image

from cir_jax import image_arrays
from cir_jax.errors import UserError
from cir_jax.image_io import read_picture

# what Pillow warns of in damaged TIFF directories
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

RGB = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
FORMATS = ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "JPEG2000"]
KEEPS_A_PART = ["JPEG", "PNG", "BMP", "TIFF", "GIF", "JPEG2000"]


def encoded(file_format, mode="RGB", size=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(RGB).convert(mode)
    image.resize(size or image.size).save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("part", [1, 4, 12, 30, 100, 0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_that_breaks_off_is_refused(tmp_path, file_format, part):
    path = tmp_path / "cut.png"
    data = encoded(file_format)
    path.write_bytes(data[: part if part >= 1 else int(part * len(data))])
    words = "cannot be decoded .*allow-truncated|breaks off in its header"
    with pytest.raises(UserError, match=rf"cut\.png .*({words})"):
        read_picture(path)


@pytest.mark.parametrize("file_format", KEEPS_A_PART)
def test_what_there_is_of_it_can_be_had(tmp_path, file_format):
    path = tmp_path / "cut.png"
    data = encoded(file_format)
    path.write_bytes(data[: len(data) * 6 // 10])
    picture = read_picture(path, allow_truncated=True)
    with Image.open(io.BytesIO(data)) as image:
        whole = np.asarray(image.convert("RGB"))
    part = slice(-12, None) if file_format == "BMP" else slice(0, 12)
    if file_format not in ("JPEG2000", "GIF"):  # layers; interlaced rows
        np.testing.assert_array_equal(picture.pixels[part], whole[part])
    with pytest.raises(UserError, match="cannot be decoded"):
        read_picture(path)


@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_bytes_give_a_picture_or_a_sentence(tmp_path, file_format):
    rng = np.random.default_rng(1)
    data = np.frombuffer(encoded(file_format, size=(40, 30)), np.uint8)
    for _ in range(40):
        damaged = data.copy()
        damaged[rng.integers(0, min(len(data), 400), 6)] = rng.integers(0, 256, 6)
        (tmp_path / "a").write_bytes(damaged.tobytes())
        try:
            read_picture(tmp_path / "a", max_pixels=10**6)
        except UserError as error:
            assert str(tmp_path / "a") in str(error)


@pytest.mark.parametrize("file_format", ["ICO", "EPS", "PPM", "TGA", "PCX", "DDS"])
def test_rarely_used_parsers_stay_closed(tmp_path, file_format):
    (tmp_path / "a.png").write_bytes(encoded(file_format))
    with pytest.raises(UserError, match=r"a\.png is not an image that can be read"):
        read_picture(tmp_path / "a.png")


OTHER_CONTENTS = {
    "text": b"hello",
    "photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3),
    "page": b"%PDF-1.4",
    "page of html": b"<html><body>404</body></html>",
}


@pytest.mark.parametrize("name", OTHER_CONTENTS)
def test_other_contents_under_an_image_name(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(OTHER_CONTENTS[name])
    with pytest.raises(UserError, match=r"a\.jpg is not an image that can be read"):
        read_picture(tmp_path / "a.jpg")


def test_the_content_decides_on_the_format_not_the_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded("PNG"))
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.format == "PNG"
    np.testing.assert_array_equal(picture.pixels, RGB)


def test_a_bomb_is_refused_by_its_header(tmp_path):
    header = image_bytes.png_header(60000, 60000, 8, 2)
    data = image_bytes.png([header, (b"IDAT", bytes(9)), (b"IEND", b"")])
    (tmp_path / "bomb.png").write_bytes(data)
    words = r"bomb\.png has 60000x60000 pixels, more than the 300,000,000 .*megapixels"
    with pytest.raises(UserError, match=words):
        read_picture(tmp_path / "bomb.png")


def test_the_limit_can_be_lowered_and_pillow_keeps_its_own(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match="80x64 pixels, more than the 5,119"):
        read_picture(tmp_path / "a.png", max_pixels=80 * 64 - 1)
    read_picture(tmp_path / "a.png", max_pixels=80 * 64)
    assert before == Image.MAX_IMAGE_PIXELS


def test_more_than_pillow_allows_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(image_arrays, "STRIPE", 100)  # Pillow's limit holds for parts
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, RGB)


UNREADABLE = {
    "empty": (lambda p: p.write_bytes(b""), "is empty: replace it"),
    "folder": (lambda p: p.mkdir(), "is not a file"),
    "pipe": (os.mkfifo, "is not a file"),
    "missing": (lambda p: None, "does not exist"),
    "a" * 300: (lambda p: None, "cannot be read: File name too long"),
    "loop": (lambda p: p.symlink_to(p), "cannot be read: Too many levels"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_ordinary_file(tmp_path, name):
    make, words = UNREADABLE[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} {words}"):
        read_picture(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(UserError, match=r"a\.png cannot be read: Permission denied"):
        read_picture(tmp_path / "a.png")
