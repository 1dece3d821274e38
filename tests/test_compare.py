import itertools
import re

import image_bytes
import numpy as np
import pytest
from PIL import Image

from cir_jax import cli, compare, image_io, pictures
from cir_jax.errors import UserError
from cir_jax.image_out import write_picture
from cir_jax.resize import downscale, upscale


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(60, 190, (height, width, 3), np.uint8)


def planted(image, changes, side):
    """A copy, brighter by `amount` in squares at (y, x)."""
    changed = image.copy()
    for (y, x), amount in changes.items():
        changed[y : y + side, x : x + side] += np.uint8(amount)
    return changed


@pytest.fixture
def captions(monkeypatch):
    """Everything that is written on sheets, in order of drawing, line by line."""
    lines = []
    sheet = pictures.sheet

    def listening(rows, zoom=1):
        lines.extend(c for row in rows for text, _ in row for c in text.splitlines())
        return sheet(rows, zoom)

    monkeypatch.setattr(pictures, "sheet", listening)
    return lines


@pytest.fixture
def folders(tmp_path):
    """Two folders with two pictures in common, and what does not fit."""
    image = noise(40, 60)
    for name in ("clean/one.png", "clean/below/two.png", "clean/alone.png"):
        image_io.write_png(tmp_path / name, image)
    for name in ("coded/one.jpg", "coded/below/two.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / name, quality=10)
    image_io.write_png(tmp_path / "other/three.png", image)
    image_io.write_png(tmp_path / "odd.png", noise(41, 60))
    image_io.write_png(tmp_path / "wide.png", noise(20, 60))
    (tmp_path / "text.png").write_text("no image")
    for suffix in ("png", "bmp"):
        (tmp_path / "twice").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "twice" / f"one.{suffix}")
    return tmp_path


def test_windows_are_where_most_changed_and_do_not_overlap():
    before = noise(90, 120)
    places = {(3, 100): 50, (70, 8): 40, (40, 40): 30}
    after = planted(before, places, side=16)
    change = pictures.difference(before, after)
    found = pictures.most_changed([change], 16, 9)
    assert [(y.start, x.start) for y, x in found] == list(places)


def test_neighbouring_windows_share_no_pixel_and_cover_the_change():
    before = noise(64, 64)
    after = planted(before, {(16, 16): 20}, side=32)
    windows = pictures.most_changed([pictures.difference(before, after)], 16, 20)
    covered = np.zeros((64, 64), int)
    for window in windows:
        covered[window] += 1
    assert covered.max() == 1 and covered.sum() == 4 * 16**2
    assert covered[16:48, 16:48].all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 80), (80, 7)])
def test_windows_fit_small_pictures(shape):
    before = noise(*shape)
    windows = pictures.most_changed([pictures.difference(before, before + 1)], 16, 3)
    for y, x in windows:
        assert y.stop - y.start == min(16, shape[0]) and y.stop <= shape[0]
        assert x.stop - x.start == min(16, shape[1]) and x.stop <= shape[1]


def test_changes_of_all_versions_count():
    before = noise(40, 80)
    changes = [planted(before, {(8, 8): 30}, 8), planted(before, {(8, 8): 30}, 8)]
    changes.append(planted(before, {(24, 60): 50}, 8))
    differences = [pictures.difference(before, after) for after in changes]
    (window,) = pictures.most_changed(differences, 8)
    assert window == (slice(8, 16), slice(8, 16))


def test_a_sheet_says_what_it_shows(tmp_path, captions):
    before = noise(80, 100)
    after = planted(before, {(10, 70): 60, (50, 20): 30}, side=16)
    image_io.write_png(tmp_path / "before.png", before)
    image_io.write_png(tmp_path / "after.png", after)
    arguments = [str(tmp_path / name) for name in ("before.png", "after.png")]
    out = tmp_path / "sheets" / "sheet.png"
    more = ["-o", str(out), "--size", "16", "--zoom", "3"]
    assert cli.run(["compare", *arguments, *more]) == cli.DONE
    error = (60**2 + 30**2) * 16**2 / (80 * 100)
    psnr = 10 * np.log10(255**2 / error)
    for line in (
        "A   before.png   100x80",
        f"B   after.png   100x80, {psnr:.2f} dB against A",
        "A, whole; crops of 16x16",
        "|B - A| x 4, whole",
        "1:  x 70, y 10, zoom 3",
        "2:  x 20, y 50, zoom 3",
        f"{20 * np.log10(255 / 60):.2f} dB here",
        "at most 30 of 255",
    ):
        assert line in captions
    sheet = image_io.read_rgb(out)
    amplified = before[10:26, 70:86] * 0 + np.uint8(60 * 4)
    for crop in (before[10:26, 70:86], after[50:66, 20:36], amplified):
        assert holds(sheet, crop.repeat(3, 0).repeat(3, 1))
    first = out.read_bytes()
    assert cli.run(["compare", *arguments, *more]) == cli.DONE
    assert out.read_bytes() == first


def holds(sheet, crop):
    """Whether a crop lies anywhere on a sheet, pixel by pixel."""
    height, width, _ = crop.shape
    inside = sheet[: sheet.shape[0] - height + 1, : sheet.shape[1] - width + 1]
    corners = np.argwhere((inside == crop[0, 0]).all(axis=-1))
    return any(np.array_equal(sheet[y:, x:][:height, :width], crop) for y, x in corners)


def test_boxes_mark_the_windows():
    image = np.full((100, 200, 3), 90, np.uint8)
    window = (slice(30, 80), slice(120, 170))
    drawn = pictures.overview(image, [window], (100, 200))
    assert drawn.shape == image.shape
    marked = np.argwhere((drawn == pictures.MARK).all(axis=-1))
    assert marked.min(axis=0).tolist() == [28, 118]
    assert marked.max(axis=0).tolist() == [81, 171]
    np.testing.assert_array_equal(drawn[60:80, 140:170], image[60:80, 140:170])


@pytest.mark.parametrize("shape", [(10, 10), (3000, 20), (20, 3000), (700, 900)])
def test_overviews_fit_and_small_boxes_are_seen(shape):
    image = np.zeros((*shape, 3), np.uint8)
    corners = [
        (slice(y, y + 2), slice(x, x + 2))
        for y, x in itertools.product((0, shape[0] - 2), (0, shape[1] - 2))
    ]
    for corner in corners:
        drawn = pictures.overview(image, [corner], (150, 200))
        assert drawn.shape[0] <= 150 and drawn.shape[1] <= 200
        assert (drawn == pictures.MARK).all(axis=-1).any()


def test_smaller_versions_are_enlarged_and_said_to_be(tmp_path, captions):
    clean = upscale(noise(20, 30), 4)
    small = downscale(clean, 4)
    image_io.write_png(tmp_path / "small.png", small)
    image_io.write_png(tmp_path / "clean.png", clean)
    image_io.write_png(tmp_path / "coded.png", clean // 2)
    names = [str(tmp_path / f"{name}.png") for name in ("clean", "small", "coded")]
    out = tmp_path / "sheet.png"
    more = ["-o", str(out), "--size", "24", "--zoom", "1", "--crops", "1"]
    assert cli.run(["compare", *names, *more]) == cli.DONE
    assert "B   small.png   30x20, enlarged x4 (bicubic)" in captions
    assert any(line.startswith("C   coded.png   120x80, ") for line in captions)
    assert "largest |version - A| x 2, whole" in captions
    (place,) = (line for line in captions if line.startswith("1:"))
    x, y = map(int, re.match(r"1:  x (\d+), y (\d+), zoom 1", place).groups())
    crop = upscale(small, 4)[y : y + 24, x : x + 24]
    assert holds(image_io.read_rgb(out), crop)


def test_folders_are_matched_by_stem(folders, captions, capsys):
    inputs = [str(folders / "clean"), str(folders / "coded")]
    out = folders / "sheet.png"
    assert cli.run(["compare", *inputs, "-o", str(out)]) == cli.DONE
    assert capsys.readouterr().err == "not in every folder: alone\n"
    legends = [line.split()[1] for line in captions if "   60x40" in line]
    assert legends == ["two.png", "two.jpg", "one.png", "one.jpg"]


def test_pictures_past_the_most_are_named(tmp_path, capsys):
    for folder, number in itertools.product("ab", range(8)):
        image_io.write_png(tmp_path / folder / f"{number}.png", noise(16, 16))
    inputs = [str(tmp_path / folder) for folder in "ab"]
    out = tmp_path / "sheet.png"
    assert cli.run(["compare", *inputs, "-o", str(out)]) == cli.DONE
    said = "a sheet shows 6 pictures and leaves out 2: 6, 7\n"
    assert capsys.readouterr().err == said
    assert image_io.read_rgb(out).shape[1] <= compare.WIDTH


@pytest.mark.parametrize("versions", [2, 3, compare.VERSIONS])
@pytest.mark.parametrize("size", [1, 64, 200])
def test_sheets_are_bounded_whatever_the_names(tmp_path, versions, size):
    paths = [tmp_path / f"{number}{'w' * 120}.png" for number in range(versions)]
    for seed, path in enumerate(paths):
        image_io.write_png(path, noise(120, 150, seed))
    out = tmp_path / "sheet.png"
    arguments = [*map(str, paths), "-o", str(out), "--size", str(size)]
    assert cli.run(["compare", *arguments]) == cli.DONE
    height, width, _ = image_io.read_rgb(out).shape
    assert width <= compare.WIDTH and height <= compare.HEIGHT + 800


def test_equal_pictures_are_called_equal(tmp_path, captions):
    for name in ("a.png", "b.png"):
        image_io.write_png(tmp_path / name, noise(20, 20))
    inputs = [str(tmp_path / name) for name in ("a.png", "b.png")]
    assert cli.run(["compare", *inputs, "-o", str(tmp_path / "s.png")]) == cli.DONE
    assert "B   b.png   20x20, no difference against A" in captions


@pytest.mark.parametrize(
    ("text", "expected"),
    [("short.png", "short.png"), ("a\nb\udce9.png", "a?b?.png"), ("", "")],
)
def test_names_are_made_fit_to_print(text, expected):
    assert pictures.shorten(text, 200) == expected


def test_what_restore_takes_is_compared(tmp_path, captions):
    """Transparency, 16 bits and another colour space, as restored: in sRGB."""
    wide = image_bytes.matrix_profile(image_bytes.ADOBE_PRIMARIES, 2.2)
    image = noise(40, 60)
    alpha = np.dstack([image, image[..., 0]])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    deep = image_bytes.deep_png(image.astype(np.uint16) * 257)
    (tmp_path / "deep.png").write_bytes(deep)
    Image.fromarray(image).save(tmp_path / "wide.png", icc_profile=wide)
    picture = image_io.read_picture(tmp_path / "wide.png")
    write_picture(tmp_path / "srgb.png", picture.pixels, picture)
    for pair in (("alpha.png", "deep.png"), ("wide.png", "srgb.png")):
        captions.clear()
        compare.compare([tmp_path / name for name in pair], tmp_path / "sheet.png")
        assert any("no difference against A" in line for line in captions)


def test_long_names_keep_both_ends():
    shortened = pictures.shorten("beginning" + "-" * 200 + "end.png", 200)
    assert shortened.startswith("beginning") and shortened.endswith("end.png")
    assert 180 < pictures.FONT.getlength(shortened) <= 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("clean/one.png", "was given 1 of the 2 to 6"),
        ("clean/one.png " * 7, "was given 7 of the 2 to 6"),
        ("clean/one.png nowhere.png", r"nowhere\.png does not exist"),
        ("clean/one.png coded", "coded is a folder and .*one.png is a file"),
        ("clean/one.png text.png", r"text\.png is not an image"),
        ("clean/one.png odd.png", r"one\.png is 60x40 pixels and .*odd\.png 60x41"),
        ("clean/one.png wide.png", r"wide\.png is 60x20 pixels and .*one\.png 60x40"),
        ("clean other", "clean and .*other have no file stem in common"),
        ("clean twice", r"one\.bmp and .*one\.png have the same stem"),
        ("clean coded -o coded/sheet.png", "lies inside the input folder .*coded"),
        ("odd.png odd.png -o odd.png", r"odd\.png would overwrite an input"),
        ("odd.png odd.png -o other/../odd.png", "would overwrite an input"),
        ("odd.png odd.png -o sheet.jpg", r"sheet\.jpg is a PNG: give a file name"),
        ("odd.png odd.png --crops 0", "--crops is 0: give at least 1"),
        ("odd.png odd.png --size -3", "--size is -3: give at least 1"),
        ("odd.png odd.png --zoom 0", "--zoom is 0: give at least 1"),
        ("odd.png odd.png --zoom 40", "zoom 40, take 7264x1692 pixels.*lower --zoom"),
    ],
)
def test_wrong_use_is_named(folders, monkeypatch, arguments, words):
    monkeypatch.chdir(folders)
    before = {path: path.read_bytes() for path in folders.rglob("*.*")}
    arguments = arguments.split()
    if "-o" not in arguments:
        arguments += ["-o", "sheet.png"]
    with pytest.raises(UserError, match=words):
        cli.run(["compare", *arguments])
    assert {path: path.read_bytes() for path in folders.rglob("*.*")} == before
