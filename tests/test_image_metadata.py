"""EXIF and colour profiles, from file to file."""

import zlib

import image_bytes
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageOps

from cir_jax import image_metadata, image_out
from cir_jax.image_io import Picture, read_picture
from cir_jax.image_out import write_picture

RGB = np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (21, 34, 3), np.uint16)
MAKE, ORIENTATION, WIDTH, TAKEN = 0x010F, 0x0112, 0xA002, 0x9003
WITH_METADATA = [n for n in image_out.FORMATS if n not in ("jpeg2000", "bmp")]
WIDE = image_bytes.matrix_profile(image_bytes.ADOBE_PRIMARIES, 2.2)
SRGB = image_metadata.srgb_profile()


def exif(orientation):
    tags = Image.Exif()
    tags[MAKE], tags[ORIENTATION] = "a camera", orientation
    inner = tags.get_ifd(ExifTags.IFD.Exif)
    inner[TAKEN], inner[WIDTH] = "2020:01:02 03:04:05", 34
    tags.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".avif"])
def test_every_orientation_is_applied(tmp_path, suffix, orientation):
    path = tmp_path / f"a{suffix}"
    gradient = Image.linear_gradient("L").resize((34, 21)).convert("RGB")
    gradient.putpixel((0, 0), (255, 255, 255))
    gradient.save(path, exif=exif(orientation), quality=95)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, expected)
    tags = Image.Exif()
    tags.load(picture.exif)
    assert tags[MAKE] == "a camera" and ORIENTATION not in tags


def test_orientation_turns_16_bits_and_alpha(tmp_path):
    chunk = (b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    values = np.concatenate([DEEP, DEEP[..., :1] // 2], axis=-1)
    (tmp_path / "a.png").write_bytes(image_bytes.deep_png(values, chunk))
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, np.rot90(DEEP, -1))
    np.testing.assert_array_equal(picture.alpha, np.rot90(values[..., 3], -1))


@pytest.mark.parametrize("start", [".jpg", ".tif", ".webp", ".png"])
@pytest.mark.parametrize("name", WITH_METADATA)
def test_exif_is_carried_without_what_stops_being_true(tmp_path, name, start):
    Image.fromarray(RGB).save(tmp_path / f"a{start}", exif=exif(8).tobytes())
    picture = read_picture(tmp_path / f"a{start}")
    path = tmp_path / f"b{image_out.output_suffix(name, '')}"
    write_picture(path, np.repeat(picture.pixels, 4, axis=1), picture, name)
    with Image.open(path) as image:
        assert image.size == (21 * 4, 34)
        tags = image.getexif()
        assert tags[MAKE] == "a camera"
        assert tags.get(ORIENTATION, 1) == 1
        inner = tags.get_ifd(ExifTags.IFD.Exif)
        assert inner[TAKEN] == "2020:01:02 03:04:05" and WIDTH not in inner
        assert tags.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"


@pytest.mark.parametrize("kind", ["LA", "RGB", "RGBA"])
def test_16_bits_carry_exif_and_profile(tmp_path, kind):
    """PNG all of it; TIFF the profile, and the outermost texts of EXIF."""
    grey = kind == "LA"
    curve = image_bytes.grey_profile(1.8) if grey else WIDE
    pixels = np.broadcast_to(DEEP[..., :1], DEEP.shape) if grey else DEEP
    alpha = DEEP[..., 0] if kind[-1] == "A" else None
    like = Picture(pixels, alpha, grey, "PNG", exif(1).tobytes(), curve)
    for name in ("png", "tiff"):
        write_picture(tmp_path / name, pixels, like, name)
    again = read_picture(tmp_path / "png")
    np.testing.assert_array_equal(again.pixels, pixels)
    np.testing.assert_equal((again.alpha, again.icc), (alpha, curve))
    tags = Image.Exif()
    tags.load(again.exif)
    assert tags[MAKE] == "a camera"
    assert tags.get_ifd(ExifTags.IFD.Exif)[TAKEN] == "2020:01:02 03:04:05"
    with tifffile.TiffFile(tmp_path / "tiff") as file:
        tags = file.pages[0].tags
        assert tags[MAKE].value == "a camera"
        assert tags["InterColorProfile"].value == curve


STORAGE = {256: 99, 258: 4, 259: 7, 262: 6, 277: 1, 278: 3, 284: 2, 317: 2, 322: 16}


def test_tags_of_storage_do_not_reach_a_tiff(tmp_path):
    tags = exif(1)
    for tag, value in STORAGE.items():
        tags[tag] = value
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=tags)
    picture = read_picture(tmp_path / "a.png")
    write_picture(tmp_path / "a.tif", picture.pixels, picture, "tiff")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, RGB)


def test_exif_that_is_all_below_its_first_directory(tmp_path):
    tags = Image.Exif()
    tags.get_ifd(ExifTags.IFD.Exif)[TAKEN] = "2020:01:02 03:04:05"
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=tags.tobytes())
    again = Image.Exif()
    again.load(read_picture(tmp_path / "a.jpg").exif)
    assert again.get_ifd(ExifTags.IFD.Exif)[TAKEN] == "2020:01:02 03:04:05"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".gif"])
def test_no_exif_is_none(tmp_path, suffix):
    Image.fromarray(RGB).save(tmp_path / f"a{suffix}")
    assert read_picture(tmp_path / f"a{suffix}").exif is None


def test_broken_exif_does_not_stop_a_picture(tmp_path):
    tags = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(200))
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=tags)
    assert read_picture(tmp_path / "a.jpg").pixels.shape == RGB.shape


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_does_not_lose_its_orientation(tmp_path):
    data = exif(6).tobytes()
    data = data.replace(b"\x01\x0f\0\x02", b"\x01\x0f\0\x05")  # a text of numbers
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=data)
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, np.rot90(RGB, -1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", WITH_METADATA)
def test_exif_of_a_bigtiff_is_carried(tmp_path, name, dtype):
    tags = [(MAKE, "s", None, "a camera", True)]
    pixels = RGB.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, bigtiff=True, extratags=tags)
    picture = read_picture(tmp_path / "a.tif")
    path = tmp_path / f"b{image_out.output_suffix(name, '')}"
    write_picture(path, picture.pixels, picture, name)
    with Image.open(path) as image:
        assert image.getexif()[MAKE] == "a camera"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["png", "tiff"])
def test_texts_keep_their_letters(tmp_path, name, dtype):
    text = "© Jörg 写真".encode()
    tags = Image.Exif()
    tags[ExifTags.Base.Copyright] = text
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=tags)
    picture = read_picture(tmp_path / "a.jpg")
    path = tmp_path / f"b{image_out.output_suffix(name, '')}"
    write_picture(path, picture.pixels.astype(dtype), picture, name)
    with Image.open(path) as image:
        found = image.getexif()[ExifTags.Base.Copyright]
    assert found.encode("latin-1") == text


@pytest.mark.parametrize("name", WITH_METADATA)
def test_another_colour_space_becomes_srgb(tmp_path, name):
    """A saturated red of wide primaries is lighter and clipped in sRGB; grey stays."""
    pixels = np.full((8, 8, 3), 128, np.uint8)
    pixels[:4] = [200, 60, 60]
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=WIDE)
    picture = read_picture(tmp_path / "a.png")
    red, grey = picture.pixels[0, 0].astype(int), picture.pixels[-1, 0].astype(int)
    assert red[0] > 220 and red[1] < 70
    assert np.abs(grey - 128).max() <= 2
    assert picture.icc == SRGB
    path = tmp_path / f"b{image_out.output_suffix(name, '')}"
    write_picture(path, picture.pixels, picture, name)
    with Image.open(path) as image:
        assert image.info["icc_profile"] == SRGB


def test_alpha_passes_a_colour_conversion(tmp_path):
    rgba = np.dstack([RGB, RGB[..., 0]])
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=WIDE)
    Image.fromarray(RGB).save(tmp_path / "b.png", icc_profile=WIDE)
    with_alpha, without = (read_picture(tmp_path / n) for n in ("a.png", "b.png"))
    np.testing.assert_array_equal(with_alpha.pixels, without.pixels)
    np.testing.assert_array_equal(with_alpha.alpha, RGB[..., 0])


@pytest.mark.parametrize("profile", [SRGB, SRGB[:24] + b"20200102" + SRGB[32:]])
def test_srgb_by_any_profile_is_not_touched(tmp_path, profile):
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=profile)
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, RGB)
    assert picture.icc == profile


def test_cmyk_is_converted_by_its_profile(tmp_path):
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    cyan.save(tmp_path / "a.tif", icc_profile=image_bytes.ink_profile())
    picture = read_picture(tmp_path / "a.tif")
    value = picture.pixels[0, 0].astype(int)
    assert np.ptp(value) <= 2 and 180 < value[0] < 210  # L* = 80
    assert picture.icc == SRGB and not picture.grey
    cyan.save(tmp_path / "b.tif")
    plain = read_picture(tmp_path / "b.tif")
    assert plain.pixels[0, 0].tolist() == [0, 255, 255] and plain.icc is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["png", "tiff"])
def test_grey_and_16_bits_keep_their_own_profile(tmp_path, name, dtype):
    like = RGB if dtype == np.uint8 else DEEP
    curve = image_bytes.grey_profile(1.8)
    Image.fromarray(like[..., 0]).save(tmp_path / "grey.png", icc_profile=curve)
    kept = {"grey.png": curve}
    if dtype == np.uint16:
        chunk = (b"iCCP", b"a name\0\0" + zlib.compress(WIDE))
        data = image_bytes.deep_png(DEEP, chunk)
        (tmp_path / "colour.png").write_bytes(data)
        kept["colour.png"] = WIDE
    for start, profile in kept.items():
        picture = read_picture(tmp_path / start)
        expected = like if start == "colour.png" else like[..., :1]
        np.testing.assert_array_equal(
            picture.pixels, np.broadcast_to(expected, like.shape)
        )
        path = tmp_path / f"b{image_out.output_suffix(name, '')}"
        write_picture(path, picture.pixels, picture, name)
        again = read_picture(path)
        np.testing.assert_array_equal(again.pixels, picture.pixels)
        assert picture.icc == again.icc == profile


@pytest.mark.parametrize(
    "profile",
    [WIDE[:300], bytes(200), b"no profile", image_bytes.grey_profile(1.8), SRGB[:150]],
)
def test_a_profile_that_is_broken_or_of_another_space_is_dropped(tmp_path, profile):
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=profile)
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, RGB)
    assert picture.icc is None
