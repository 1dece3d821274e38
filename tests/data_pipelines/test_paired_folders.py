import io

import numpy as np
import pytest
from PIL import Image

from cir_jax import cli, image_io, photos
from cir_jax.data import manifest
from cir_jax.data.records import Record, decode
from cir_jax.errors import UserError
from cir_jax.resize import downscale
from data_pipelines.paired_folders import parse_pairs

PHOTOGRAPHS = {"0001": "cat", "0002": "dogs", "0003": "drum"}
UCSR = {
    ("jpeg", 10): "LR_JPEG/10",
    ("jpeg", 20): "LR_JPEG/20",
    ("jpeg", 30): "LR_JPEG/30",
    ("jpeg", 40): "LR_JPEG/40",
    ("hm", 47): "LR_HM/q47",
    ("hm", 42): "LR_HM/q42",
    ("hm", 37): "LR_HM/q37",
    ("hm", 32): "LR_HM/q32",
    ("vtm", 47): "LR_VTM/q47",
    ("vtm", 42): "LR_VTM/q42",
    ("vtm", 37): "LR_VTM/q37",
    ("vtm", 32): "LR_VTM/q32",
    ("c_psnr", 1): "LR_PSNR/q1",
    ("c_psnr", 2): "LR_PSNR/q2",
    ("c_psnr", 3): "LR_PSNR/q3",
    ("c_psnr", 4): "LR_PSNR/q4",
    ("c_ssim", 1): "LR_SSIM/q1",
    ("c_ssim", 2): "LR_SSIM/q2",
    ("c_ssim", 3): "LR_SSIM/q3",
    ("c_ssim", 4): "LR_SSIM/q4",
    ("hific", 1): "LR_HIFI/low",
    ("hific", 2): "LR_HIFI/med",
    ("hific", 3): "LR_HIFI/high",
}


def coded(image, quality):
    """The image as JPEG leaves it: it differs with every quality."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return image_io.decode_rgb(buffer.getvalue(), "coded")


@pytest.fixture
def clean(tmp_path):
    """A folder of three clean images, 160 x 128."""
    for stem, name in PHOTOGRAPHS.items():
        image = image_io.read_rgb(photos.folder("train") / f"{name}.webp")
        image_io.write_png(tmp_path / "HR" / f"{stem}.png", image[50:178, 60:220])
    return tmp_path / "HR"


def degrade(clean, folder, quality, scale=1, suffix=""):
    """Fills a folder with the partners of clean images."""
    for path in sorted(clean.iterdir()):
        small = downscale(image_io.read_rgb(path), scale)
        name = f"{path.stem}{suffix}.png"
        image_io.write_png(folder / name, coded(small, quality))


@pytest.fixture(params=["", "x4"], ids=["0001.png", "0001x4.png"])
def ucsr(request, clean, tmp_path):
    """UCIP's data set in miniature."""
    root = tmp_path / "ucsr"
    degrade(clean, root / "LR_x4", 100, 4, request.param)
    for number, folder in enumerate(UCSR.values()):
        degrade(clean, root / folder, 5 + 4 * number, 4, request.param)
    return root


def encode(clean, out, *arguments):
    command = ["encode", "--source", str(clean), "--crop", "64", "--out", str(out)]
    return cli.run([*command, *arguments])


def read_records(out):
    records, contents = manifest.open_records(out, "cir encode")
    return [Record.from_bytes(payload) for payload in records], contents


def kinds(record):
    return [(version.codec, version.quality) for version in record.versions]


def test_ucsr_as_downloaded_becomes_records(clean, ucsr, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--pairs", f"ucsr={ucsr}", "--scale", "4", "--stride", "40"]
    assert encode(clean, out, *arguments) == cli.DONE
    records, contents = read_records(out)
    # Crops start on the small images' grid of 8 x 8: every 32 pixels.
    origins = [(y, x) for y in (0, 32, 64) for x in (0, 32, 64, 96)]
    assert [(record.source, record.origin) for record in records] == [
        (f"{stem}.png", origin) for stem in PHOTOGRAPHS for origin in origins
    ]
    for record in records:
        y, x = record.origin
        whole = image_io.read_rgb(clean / record.source)
        np.testing.assert_array_equal(
            decode(record.clean), whole[y : y + 64, x : x + 64]
        )
        assert record.scale == 4
        assert kinds(record) == list(UCSR)
        for version in record.versions:
            folder = ucsr / UCSR[version.codec, version.quality]
            (path,) = folder.glob(f"{record.source.removesuffix('.png')}*")
            y, x = record.origin[0] // 4, record.origin[1] // 4
            expected = image_io.read_rgb(path)[y : y + 16, x : x + 16]
            np.testing.assert_array_equal(decode(version.image), expected)
            assert version.bits == 0
            history = f"{version.codec} {version.quality}: {path.name}"
            assert version.history == history
    assert contents["versions"] == {
        f"{codec} {quality}": len(records) for codec, quality in UCSR
    }
    capsys.readouterr()
    assert cli.run(["verify", str(out)]) == cli.DONE
    found = f"{out}: 36 records, 828 versions read, all as the manifest says"
    assert capsys.readouterr().out.strip() == found
    assert cli.run(["inspect", str(out)]) == cli.DONE
    table = capsys.readouterr().out
    for codec, quality in UCSR:
        (row,) = [
            line
            for line in table.splitlines()
            if line.replace("|", " ").split()[:2] == [codec, str(quality)]
        ]
        assert "36" in row
    assert (out / "contact_sheet.png").is_file()


def test_a_layout_that_is_only_partly_there_gives_what_is(clean, tmp_path):
    root = tmp_path / "part"
    for folder in ("LR_JPEG/20", "LR_HIFI/high", "LR_HIFI/best", "LR_x4"):
        degrade(clean, root / folder, 50, 4)
    out = tmp_path / "out"
    assert encode(clean, out, "--pairs", f"ucsr={root}", "--scale", "4") == cli.DONE
    records, _ = read_records(out)
    assert {tuple(kinds(record)) for record in records} == {
        (("jpeg", 20), ("hific", 3))
    }


@pytest.fixture
def rain(clean, tmp_path):
    """A folder of partners of the same size."""
    degrade(clean, tmp_path / "rain", 30)
    return tmp_path / "rain"


@pytest.fixture
def snow(clean, tmp_path):
    degrade(clean, tmp_path / "snow", 60)
    return tmp_path / "snow"


def test_degradations_of_ones_own_need_no_scale(clean, rain, snow, tmp_path):
    out = tmp_path / "out"
    arguments = ["--pairs", f"rain:1={rain}", "--pairs", f"light:snow:0={snow}"]
    assert encode(clean, out, *arguments) == cli.DONE
    records, _ = read_records(out)
    assert len(records) == 3 * 6
    for record in records:
        assert kinds(record) == [("rain", 1), ("light:snow", 0)]
        for version, folder in zip(record.versions, (rain, snow), strict=True):
            y, x = record.origin
            assert (y % 8, x % 8) == (0, 0)
            expected = image_io.read_rgb(folder / record.source)
            np.testing.assert_array_equal(
                decode(version.image), expected[y : y + 64, x : x + 64]
            )


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:2000])


def shrink(path):
    image_io.write_png(path, image_io.read_rgb(path)[:48, :80])


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (remove, "left out: {rain}/0002: is missing: the partner of 0002.png"),
        (cut, "left out: {rain}/0002.png: 0002.png cannot be decoded"),
        (
            shrink,
            "left out: {rain}/0002.png: is 80x48 pixels where 0002.png at --scale 1 "
            "asks for 160x128",
        ),
    ],
)
def test_a_bad_partner_is_named_and_the_others_are_used(
    clean, rain, snow, tmp_path, capsys, harm, complaint
):
    harm(rain / "0002.png")
    out = tmp_path / "out"
    pairs = ["--pairs", f"rain:1={rain}", "--pairs", f"snow:1={snow}"]
    assert encode(clean, out, *pairs) == cli.SOME_FAILED
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if "left out" in line
    ]
    assert line.startswith(complaint.format(rain=rain))
    records, contents = read_records(out)
    assert contents["versions"] == {"rain 1": 12, "snow 1": 18}
    for record in records:
        lacking = record.source == "0002.png"
        assert kinds(record) == [("rain", 1)] * (not lacking) + [("snow", 1)]
    assert cli.run(["verify", str(out)]) == cli.DONE


def test_an_image_without_any_partner_is_left_out(clean, rain, snow, tmp_path, capsys):
    for folder in (rain, snow):
        (folder / "0001.png").unlink()
    out = tmp_path / "out"
    pairs = ["--pairs", f"rain:1={rain}", "--pairs", f"snow:1={snow}"]
    assert encode(clean, out, *pairs) == cli.SOME_FAILED
    complaints = capsys.readouterr().err
    for folder in (rain, snow):
        assert f"{folder}/0001: is missing: the partner of 0001.png" in complaints
    records, contents = read_records(out)
    assert {record.source for record in records} == {"0002.png", "0003.png"}
    assert [image["path"] for image in contents["images"]] == ["0002.png", "0003.png"]


def test_a_degraded_image_without_a_clean_one_is_named(clean, rain, tmp_path, capsys):
    (clean / "0003.png").unlink()
    shrink(clean / "0002.png")
    out = tmp_path / "out"
    assert encode(clean, out, "--pairs", f"rain:1={rain}") == cli.SOME_FAILED
    complaints = capsys.readouterr().err
    for stem in ("0002", "0003"):
        assert f"left out: {rain}/{stem}.png: fits no clean image in use" in complaints
    assert "0002.png: is 80x48 pixels, smaller than the crop" in complaints
    records, _ = read_records(out)
    assert {record.source for record in records} == {"0001.png"}


def test_a_stem_that_ends_like_a_scale_keeps_its_own_partner(clean, tmp_path):
    (clean / "0003.png").rename(clean / "0001x4.png")
    (clean / "0002.png").unlink()
    degraded = tmp_path / "degraded"
    degrade(clean, degraded, 30, 4)
    (degraded / "0001.png").unlink()
    out = tmp_path / "out"
    pairs = ["--pairs", f"blur:1={degraded}", "--scale", "4"]
    assert encode(clean, out, *pairs) == cli.SOME_FAILED
    records, _ = read_records(out)
    assert {record.source for record in records} == {"0001x4.png"}


def test_partners_may_lie_below_and_have_another_suffix(clean, rain, tmp_path):
    for path in list(rain.iterdir()):
        (rain / path.stem).mkdir()
        image = Image.open(path)
        image.save(rain / path.stem / f"{path.stem}.BMP")
        path.unlink()
    assert encode(clean, tmp_path / "out", "--pairs", f"rain:1={rain}") == cli.DONE


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ("1", "is 40x32 pixels where 0001.png at --scale 1 asks for 160x128"),
        ("2", "is 40x32 pixels where 0001.png at --scale 2 asks for 80x64"),
    ],
)
def test_a_wrong_scale_says_so(clean, tmp_path, scale, words):
    degrade(clean, tmp_path / "small", 30, 4)
    with pytest.raises(UserError, match=f"no image of .*HR has a partner: .*{words}"):
        encode(
            clean, tmp_path / "out", "--pairs", f"q:1={tmp_path}/small",
            "--scale", scale,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_wrong_scale_says_so_of_names_that_carry_it(clean, tmp_path):
    degrade(clean, tmp_path / "small", 30, 4, "x4")
    words = r"0001x4.png: fits no clean image in use: .* x1 at the end \(--scale 1\)"
    with pytest.raises(UserError, match=words):
        encode(clean, tmp_path / "out", "--pairs", f"q:1={tmp_path}/small")


def test_folders_that_have_nothing_in_common_are_refused(clean, rain, tmp_path):
    for path in list(rain.iterdir()):
        path.rename(rain / f"other-{path.name}")
    with pytest.raises(UserError, match=r"no image of .*HR has a partner: .*/rain/"):
        encode(clean, tmp_path / "out", "--pairs", f"rain:1={rain}")
    assert not (tmp_path / "out").exists()


def test_two_images_of_one_stem_are_refused(clean, rain, tmp_path):
    twin = rain / "below" / "0002.png"
    twin.parent.mkdir()
    twin.write_bytes((rain / "0002.png").read_bytes())
    words = "rain has 0002.png and below/0002.png, of the same stem"
    with pytest.raises(UserError, match=words):
        encode(clean, tmp_path / "out", "--pairs", f"rain:1={rain}")
    twin.rename(clean / "0002.webp")
    words = "the source has 0002.png and 0002.webp, of the same stem"
    with pytest.raises(UserError, match=words):
        encode(clean, tmp_path / "out", "--pairs", f"rain:1={rain}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rain"], "--pairs rain: give CODEC:QUALITY=DIR"),
        (["rain={0}"], "--pairs rain=.*: give CODEC:QUALITY=DIR"),
        (["rain:x={0}"], "--pairs rain:x=.*: give CODEC:QUALITY=DIR"),
        (["rain:-1={0}"], "--pairs rain:-1=.*: give CODEC:QUALITY=DIR"),
        ([":1={0}"], "--pairs :1=.*: give CODEC:QUALITY=DIR"),
        (["rain:1"], "--pairs rain:1: give CODEC:QUALITY=DIR"),
        (["rain:1="], "or LAYOUT=DIR with one of ucsr"),
        (["ucsr"], "--pairs ucsr: give CODEC:QUALITY=DIR"),
        (["ucsr="], "--pairs ucsr=: give CODEC:QUALITY=DIR"),
        (["rain:1={0}", "rain:01={0}"], "--pairs: rain:1 is given twice"),
        (["ucsr={0}", "jpeg:10={0}"], "--pairs: jpeg:10 is given twice"),
        (["rain:1={0}/no"], "--pairs rain:1=.*/no: folder .*/no does not exist"),
        (["ucsr={0}/no"], "--pairs ucsr=.*/no: folder .*/no does not exist"),
        (["ucsr={0}/LR_JPEG"], "none of the layout's folders is there: expected LR_J"),
    ],
)
def test_pairs_that_cannot_be_are_one_sentence(tmp_path, arguments, words):
    (tmp_path / "LR_JPEG" / "10").mkdir(parents=True)
    with pytest.raises(UserError, match=words) as caught:
        parse_pairs([argument.format(tmp_path) for argument in arguments])
    assert "\n" not in str(caught.value)


def test_a_folder_without_images_is_named(clean, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image"):
        encode(clean, tmp_path / "out", "--pairs", f"rain:1={tmp_path}/empty")


def test_a_change_of_a_partner_asks_for_another_folder(clean, rain, tmp_path):
    out = tmp_path / "out"
    assert encode(clean, out, "--pairs", f"rain:1={rain}") == cli.DONE
    degrade(clean, rain, 80)
    with pytest.raises(UserError, match="holds records of other images or settings"):
        encode(clean, out, "--pairs", f"rain:1={rain}")


@pytest.mark.slow
def test_workers_make_the_same_bytes_of_pairs(clean, rain, snow, tmp_path):
    pairs = ["--pairs", f"rain:1={rain}", "--pairs", f"snow:1={snow}"]
    shards = []
    for workers in ("0", "1"):
        out = tmp_path / workers
        encode(clean, out, *pairs, "--stride", "16", "--workers", workers)
        shards.append({path.name: path.read_bytes() for path in out.glob("records-*")})
    assert shards[0] == shards[1]
    # More than one shard, each with its index and report.
    assert len(shards[0]) > 3
