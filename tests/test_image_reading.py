"""`read_picture` over modes, depths and formats that Pillow or tifffile write."""

import io
import zlib

import image_bytes
import numpy as np
import pytest
import tifffile
from PIL import Image, features

from cir_jax import image_arrays, image_files
from cir_jax.errors import UserError
from cir_jax.image_io import read_picture
from cir_jax.image_out import write_picture

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (21, 34, 4), np.uint8)
DEEP = RNG.integers(0, 65536, (21, 34, 4), np.uint16)


def image_of(mode):
    """A Pillow image of a mode."""
    rgba = Image.fromarray(RGBA)
    if mode == "PA":
        return rgba.convert("P").convert("PA")
    if mode == "La":
        return rgba.convert("LA").convert("La")
    if mode.startswith("I;16"):
        return Image.fromarray(DEEP[..., 0]).convert(mode)
    if mode in ("CMYK", "YCbCr", "RGBX"):
        return rgba.convert("RGB").convert(mode)
    return rgba.convert(mode)


READ = {
    # mode: formats that hold it, whether it is read as grey, with alpha
    "1": (["PNG", "TIFF", "BMP", "GIF"], True, False),
    "L": (["PNG", "TIFF", "BMP", "JPEG2000", "JPEG"], True, False),
    "LA": (["PNG", "TIFF", "JPEG2000"], True, True),
    "P": (["TIFF", "BMP", "GIF"], False, False),
    "PA": (["TIFF"], False, True),
    "RGB": (["PNG", "TIFF", "BMP", "JPEG2000", "JPEG", "WEBP", "AVIF"], False, False),
    "RGBA": (["PNG", "TIFF", "JPEG2000", "WEBP", "AVIF"], False, True),
    "RGBX": (["TIFF"], False, False),
    "CMYK": (["TIFF", "JPEG", "JPEG2000"], False, False),
    "YCbCr": (["TIFF", "JPEG"], False, False),
}


@pytest.mark.parametrize(
    ("mode", "file_format"), [(mode, name) for mode in READ for name in READ[mode][0]]
)
def test_every_mode_is_read_as_pillow_shows_it(tmp_path, mode, file_format):
    if (mode, file_format) == ("YCbCr", "TIFF") and features.version("pil") < "13":
        pytest.skip("Pillow before 13 does not read what it writes")
    path = tmp_path / "image"
    image_of(mode).save(path, file_format)
    picture = read_picture(path)
    _, grey, alpha = READ[mode]
    assert (picture.grey, picture.alpha is not None) == (grey, alpha)
    assert (picture.format, picture.icc) == (file_format, None)
    with Image.open(path) as image:
        shown = np.asarray(image.convert("RGBA"))
    np.testing.assert_array_equal(picture.pixels, shown[..., :3])
    if alpha:
        np.testing.assert_array_equal(picture.alpha, shown[..., 3])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_8_bits_come_back_from_png_bit_identical(tmp_path, mode):
    image_of(mode).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == mode
        assert image.tobytes() == image_of(mode).tobytes()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_exact_there_and_back(tmp_path, channels):
    values = DEEP[..., :channels]
    (tmp_path / "a.png").write_bytes(image_bytes.deep_png(values))
    picture = read_picture(tmp_path / "a.png")
    colours = values[..., :1] if channels < 3 else values[..., :3]
    np.testing.assert_array_equal(picture.pixels, np.broadcast_to(colours, (21, 34, 3)))
    np.testing.assert_equal(
        picture.alpha, None if channels in (1, 3) else values[..., -1]
    )
    assert picture.pixels.dtype == np.uint16 and picture.grey == (channels < 3)
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    again = read_picture(tmp_path / "b.png")
    np.testing.assert_array_equal(again.pixels, picture.pixels)
    np.testing.assert_equal(again.alpha, picture.alpha)
    assert again.grey == picture.grey


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_tiff_is_exact(tmp_path, channels, compression, byteorder):
    values = DEEP[..., :channels].astype(f"{byteorder}u2")
    tifffile.imwrite(
        tmp_path / "a.tif",
        values.squeeze(),
        byteorder=byteorder,
        compression=compression,
        rowsperstrip=8,
        photometric="minisblack" if channels < 3 else "rgb",
        planarconfig="contig",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
    )
    picture = read_picture(tmp_path / "a.tif")
    colours = values[..., :1] if channels < 3 else values[..., :3]
    np.testing.assert_array_equal(picture.pixels, np.broadcast_to(colours, (21, 34, 3)))
    alpha = values[..., -1] if channels in (2, 4) else None
    np.testing.assert_equal(picture.alpha, alpha)
    assert picture.pixels.dtype == np.uint16 and picture.grey == (channels < 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_tiff_is_turned(tmp_path, channels, orientation):
    values = DEEP[..., :channels]
    tifffile.imwrite(
        tmp_path / "a.tif",
        values.squeeze(),
        photometric="minisblack" if channels < 3 else "rgb",
        planarconfig="contig",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        extratags=[(274, "H", 1, orientation, True)],
    )
    picture = read_picture(tmp_path / "a.tif")
    colours = values[..., :1] if channels < 3 else values[..., :3]
    expected = np.broadcast_to(colours, (21, 34, 3))
    upright = image_arrays.upright(expected, orientation)
    np.testing.assert_array_equal(picture.pixels, upright)


def test_16_bit_grey_that_counts_from_white(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP[..., 0], photometric="miniswhite")
    pixels = read_picture(tmp_path / "a.tif").pixels
    np.testing.assert_array_equal(pixels[..., 0], 65535 - DEEP[..., 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_one_transparent_colour_of_a_16_bit_png(tmp_path, channels):
    values = DEEP[..., :channels]
    key = (b"tRNS", values[3, 4].astype(">u2").tobytes())
    (tmp_path / "a.png").write_bytes(image_bytes.deep_png(values, key))
    alpha = read_picture(tmp_path / "a.png").alpha
    assert alpha[3, 4] == 0
    np.testing.assert_array_equal(alpha == 0, (values == values[3, 4]).all(-1))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_one_transparent_grey_of_few_bits(tmp_path, depth):
    chunks = [
        image_bytes.png_header(8, 1, depth, 0),
        (b"tRNS", bytes([0, 2**depth - 1])),
        (b"IDAT", zlib.compress(b"\0" + b"\xf0".ljust(depth, b"\0"))),
        (b"IEND", b""),
    ]
    (tmp_path / "a.png").write_bytes(image_bytes.png(chunks))
    picture = read_picture(tmp_path / "a.png")
    assert picture.pixels[0, :, 0].any()
    np.testing.assert_array_equal(picture.alpha, 255 - picture.pixels[..., 0])


def test_one_transparent_colour_of_a_palette(tmp_path):
    image = image_of("P")
    image.save(tmp_path / "a.gif", transparency=image.getpixel((5, 6)))
    alpha = read_picture(tmp_path / "a.gif").alpha
    assert alpha[6, 5] == 0 and 0 < (alpha == 255).sum() < alpha.size


def test_only_the_first_frame_is_read(tmp_path):
    frames = [Image.new("P", (8, 8), index) for index in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_picture(tmp_path / "a.gif").pixels == 0).all()


REFUSED = {
    "float": lambda p: Image.new("F", (4, 4)).save(p, "TIFF"),
    "integers": lambda p: Image.new("I", (4, 4)).save(p, "TIFF"),
    "lab": lambda p: Image.new("LAB", (4, 4)).save(p, "TIFF"),
    "planes": lambda p: tifffile.imwrite(
        p, np.moveaxis(DEEP[..., :3], -1, 0), photometric="rgb", planarconfig="separate"
    ),
    "grey and alpha apart": lambda p: tifffile.imwrite(
        p,
        np.moveaxis(DEEP[..., :2], -1, 0),
        photometric="minisblack",
        planarconfig="separate",
        extrasamples=["unassalpha"],
    ),
    "premultiplied": lambda p: tifffile.imwrite(
        p, DEEP, photometric="rgb", extrasamples=["assocalpha"]
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_pixels_are_refused(tmp_path, name):
    REFUSED[name](tmp_path / name)
    with pytest.raises(UserError, match=f"{name} has pixels of the kind .*convert it"):
        read_picture(tmp_path / name)


def test_heic_is_read_where_its_library_is(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    smooth = Image.linear_gradient("L").convert("RGB")
    heif.from_pillow(smooth).save(tmp_path / "a.heic", quality=95)
    picture = read_picture(tmp_path / "a.heic")
    assert picture.format == "HEIF"
    assert np.abs(picture.pixels - np.int16(smooth)).mean() < 2


def test_heic_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "_has_heif", lambda: False)
    box = b"ftypheic" + bytes(4) + b"mif1heic"
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18" + box + bytes(99))
    with pytest.raises(UserError, match=r"a\.heic is a HEIC picture.*cir_jax\[heic\]"):
        read_picture(tmp_path / "a.heic")


def test_an_avif_of_the_general_brand_is_no_heic(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "_has_heif", lambda: False)
    buffer = io.BytesIO()
    image_of("RGB").save(buffer, "AVIF")
    data = buffer.getvalue().replace(b"ftypavif", b"ftypmif1", 1)
    (tmp_path / "a.avif").write_bytes(data)
    assert read_picture(tmp_path / "a.avif").format == "AVIF"
