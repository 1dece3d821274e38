import dataclasses
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tifffile
from PIL import Image

from cir_jax import image_arrays, image_io, image_out
from cir_jax.errors import UserError
from cir_jax.image_io import Picture, read_picture
from cir_jax.image_out import write_picture

SIZES = [(1, 1), (7, 5), (60, 90)]
KINDS = ["L", "LA", "RGB", "RGBA"]
LOSSLESS = {"png": 2, "tiff": 2, "jpeg2000": 1, "bmp": 1}  # bytes a channel
LOSSY = ["jpeg", "webp", "avif"]
OPAQUE_ONLY = ["jpeg", "bmp"]


@pytest.fixture(autouse=True)
def several_stripes(monkeypatch):
    monkeypatch.setattr(image_arrays, "STRIPE", 1000)


def picture(kind, dtype, size):
    """A picture of smooth colours, as if it had been read."""
    height, width = size
    rng = np.random.default_rng(height)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin((x[..., None] * [3, 5, 7, 2] + y[..., None] * [2, 7, 4, 9]) / 90)
    noise = rng.uniform(-0.02, 0.02, waves.shape)
    values = np.clip(0.5 + 0.45 * waves + noise, 0, 1)
    top = np.iinfo(dtype).max
    pixels, alpha = np.split((values * top).astype(dtype), [3], axis=-1)
    if kind[0] == "L":
        pixels = np.repeat(pixels[..., :1], 3, axis=-1)
    alpha = alpha[..., 0] if kind[-1] == "A" else None
    return Picture(pixels, alpha, kind[0] == "L", "PNG", None, None)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_back_what_was_written(tmp_path, name, kind, dtype, size):
    path = tmp_path / f"a{image_out.output_suffix(name, '')}"
    like = picture(kind, dtype, size)
    if kind[-1] == "A" and name in OPAQUE_ONLY:
        with pytest.raises(UserError, match="cannot hold the transparency"):
            write_picture(path, like.pixels, like, name)
        return
    write_picture(path, like.pixels, like, name)
    back = read_picture(path)
    deep = image_out.FORMATS[name].deep
    if dtype == np.uint16 and len(kind) in deep:
        assert back.pixels.dtype == np.uint16
    if back.pixels.dtype == dtype:
        np.testing.assert_array_equal(back.pixels, like.pixels)
        np.testing.assert_equal(back.alpha, like.alpha)
    else:
        assert len(kind) not in deep
        np.testing.assert_array_equal(back.pixels, np.round(like.pixels / 257))
    assert back.grey == like.grey


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSY)
def test_lossy_formats_are_near_and_8_bits(tmp_path, name, kind, dtype, size):
    path = tmp_path / f"a{image_out.output_suffix(name, '')}"
    like = picture(kind, dtype, size)
    if kind[-1] == "A" and name in OPAQUE_ONLY:
        clear = np.full_like(like.alpha, np.iinfo(dtype).max)
        like = dataclasses.replace(like, alpha=clear)
    write_picture(path, like.pixels, like, name)
    back = read_picture(path)
    levels = 257 if dtype == np.uint16 else 1
    assert back.pixels.dtype == np.uint8
    assert np.abs(back.pixels - like.pixels / levels).mean() < 3
    has_alpha = kind[-1] == "A" and name not in OPAQUE_ONLY
    assert (back.alpha is not None) == has_alpha
    if has_alpha:
        assert np.abs(back.alpha - like.alpha / levels).mean() < 2
    if name == "jpeg":
        assert back.grey == like.grey


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["png", "tiff"])
def test_tifffile_and_pillow_read_what_was_written(tmp_path, name, dtype):
    """Pillow reads 8 bits."""
    like = picture("RGB", dtype, (40, 30))
    path = tmp_path / f"a{image_out.output_suffix(name, '')}"
    write_picture(path, like.pixels, like, name)
    eight_bits = like.pixels if dtype == np.uint8 else like.pixels >> 8
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), eight_bits)
    if name == "tiff":
        np.testing.assert_array_equal(tifffile.imread(path), like.pixels)


def test_a_restored_grey_is_the_mean_of_its_channels(tmp_path):
    like = picture("L", np.uint8, (2, 3))
    restored = np.zeros((2, 3, 3), np.uint8) + np.uint8([10, 12, 12])
    write_picture(tmp_path / "a.png", restored, like)
    assert (read_picture(tmp_path / "a.png").pixels == 11).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_enlarged_smoothly_with_the_pixels(tmp_path, dtype):
    like = picture("RGBA", dtype, (6, 9))
    like.alpha[:, :5], like.alpha[:, 5:] = 0, np.iinfo(dtype).max
    large = np.repeat(np.repeat(like.pixels, 4, axis=0), 4, axis=1)
    write_picture(tmp_path / "a.png", large, like)
    back = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(back.pixels, large)
    assert back.alpha.shape == (24, 36)
    top = np.iinfo(dtype).max
    assert (back.alpha[:, :14] == 0).all() and (back.alpha[:, -10:] == top).all()
    ramp = back.alpha[0, 18:22].astype(int)
    assert (np.diff(ramp) > 0).all() and 0 < ramp[0] and ramp[-1] < top


@pytest.mark.parametrize(
    ("format", "suffix", "expected"),
    [
        (None, ".jpg", ".png"),
        ("", ".jpg", ".png"),
        ("webp", ".jpg", ".webp"),
        ("jpeg", ".png", ".jpg"),
        ("tiff", ".png", ".tif"),
        ("jpeg2000", ".png", ".jp2"),
        ("same", ".JPEG", ".JPEG"),
        ("same", ".avif", ".avif"),
        ("same", ".jfif", ".jfif"),
        ("same", ".gif", ".png"),
        ("same", ".heic", ".png"),
        ("same", ".j2k", ".png"),
    ],
)
def test_the_suffix_of_an_output(tmp_path, format, suffix, expected):
    assert image_out.output_suffix(format, suffix) == expected
    path = tmp_path / f"a{expected}"
    like = picture("RGB", np.uint8, (8, 8))
    write_picture(path, like.pixels, like, format)
    pillow = image_out.check_format(path, like, format).pillow
    assert read_picture(path).format == pillow


def test_an_unknown_format_leads_with_the_near_one(tmp_path):
    with pytest.raises(UserError, match="unknown format 'jpg': did you mean 'jpeg'"):
        image_out.output_suffix("jpg", ".png")


def test_quality_makes_lossy_files_larger(tmp_path):
    like = picture("RGB", np.uint8, (64, 64))
    for name in LOSSY:
        sizes = []
        for quality in (30, 80, None):
            write_picture(tmp_path / "a", like.pixels, like, name, quality)
            sizes.append((tmp_path / "a").stat().st_size)
        assert sizes == sorted(sizes) and len(set(sizes)) == 3, name
    with pytest.raises(UserError, match="quality 0 is not in 1 to 100"):
        write_picture(tmp_path / "a", like.pixels, like, "jpeg", 0)


def test_a_picture_that_is_too_wide_for_a_format_is_refused(tmp_path):
    like = picture("RGB", np.uint8, (1, 1))
    wide = np.zeros((1, 16384, 3), np.uint8)
    with pytest.raises(UserError, match=r"16384x1 pixels, and WEBP holds 16383"):
        write_picture(tmp_path / "a.webp", wide, like, "webp")


def test_colours_of_transparent_pixels_stay(tmp_path):
    like = picture("RGBA", np.uint8, (16, 16))
    like.alpha[:] = 0
    write_picture(tmp_path / "a.png", like.pixels, like)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, like.pixels)
    write_picture(tmp_path / "a.webp", like.pixels, like, "webp")
    back = read_picture(tmp_path / "a.webp").pixels
    assert np.abs(back - like.pixels.astype(int)).mean() < 6


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", image_out.FORMATS)
def test_a_full_disk_leaves_what_was_there(tmp_path, name, dtype):
    """In a process that may write so many bytes of a file, down to all but one."""
    path = tmp_path / f"a{image_out.output_suffix(name, '')}"
    code = f"""
        import pathlib, resource, signal
        import numpy as np
        from cir_jax import image_out
        from cir_jax.errors import UserError
        from cir_jax.image_io import Picture

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        path = pathlib.Path({str(path)!r})
        pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
        pixels = pixels.astype(np.{dtype}) * (np.iinfo(np.{dtype}).max // 255)
        like = Picture(pixels, None, False, "PNG", None, None)
        image_out.write_picture(path, pixels, like, {name!r})
        size = path.stat().st_size
        path.write_text("earlier")
        for limit in (2000, size // 2, size - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                image_out.write_picture(path, pixels, like, {name!r})
            except UserError as error:
                print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{path} cannot be written: File too large\n" * 3
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("letter", ["a", "写", "\U0001f600"])
def test_the_longest_names_are_written(tmp_path, letter):
    like = picture("RGB", np.uint8, (4, 4))
    path = tmp_path / f"{letter * (251 // len(letter.encode()))}.png"
    write_picture(path, like.pixels, like)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [TypeError, RuntimeError, SyntaxError])
def test_whatever_an_encoder_raises_is_one_sentence(tmp_path, monkeypatch, error):
    def save(*arguments, **options):
        raise error("odd EXIF")

    monkeypatch.setattr(Image.Image, "save", save)
    like = picture("RGB", np.uint8, (4, 4))
    with pytest.raises(UserError, match=r"a\.tif cannot be written .*\(odd EXIF\)"):
        write_picture(tmp_path / "a.tif", like.pixels, like, "tiff")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "a.png").mkdir()
    like = picture("RGB", np.uint8, (4, 4))
    with pytest.raises(UserError, match=r"a\.png cannot be written: Is a directory"):
        write_picture(tmp_path / "a.png", like.pixels, like)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_picture_is_the_same_bytes(tmp_path, kind, dtype):
    like = picture(kind, dtype, (50, 60))
    for name in ("png", "tiff"):
        write_picture(tmp_path / "a", like.pixels, like, name)
        write_picture(tmp_path / "b", like.pixels, like, name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_plain_png_is_the_same_picture(tmp_path):
    like = picture("RGB", np.uint8, (30, 20))
    image_io.write_png(tmp_path / "a.png", like.pixels)
    write_picture(tmp_path / "b.png", like.pixels, like)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
