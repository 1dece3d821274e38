import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from programs import free_port
from skimage import color
from skimage import metrics as reference

from cir_jax import Restorer, cli, image_io, metrics, peers
from cir_jax.codecs import get_codec
from cir_jax.compression import compressions
from cir_jax.errors import UserError
from cir_jax.evaluate import evaluate
from cir_jax.image_sets import ImageFolder
from cir_jax.protocols import grey
from cir_jax.resize import downscale, upscale
from cir_jax.showcase import before_after

TWO_SETS = ["--set", "a=photos:train", "--set", "b=photos:validation"]


def crops(photographs):
    return {
        name: np.ascontiguousarray(im[:64, :72]) for name, im in photographs.items()
    }


@pytest.fixture
def folder(tmp_path, photographs):
    for name, image in crops(photographs).items():
        image_io.write_png(tmp_path / "set" / f"{name}.png", image)
    return tmp_path / "set"


def test_the_codecs_own_rows_are_those_of_the_protocol(folder, photographs):
    report = evaluate(
        {}, {"crops": ImageFolder(folder)}, compressions("jpeg", (10, 40))
    )
    codec = get_codec("jpeg")
    for row, quality in zip(report.rows(), (10, 40), strict=True):
        pairs, bits = [], []
        for image in crops(photographs).values():
            stream = codec.encode(image, quality)
            pairs.append((image, codec.decode(stream)))
            bits.append(8 * len(stream) / (64 * 72))
        psnr = [reference.peak_signal_noise_ratio(*p, data_range=255) for p in pairs]
        assert row["psnr"] == pytest.approx(np.mean(psnr), abs=1e-6)
        assert row["bpp"] == pytest.approx(np.mean(bits))
        assert (row["method"], row["set"], row["images"]) == ("none", "crops", 4)
        assert row["gain"] == 0


def test_gray_codes_and_measures_the_limited_range_luma(folder, photographs):
    report = evaluate(
        {}, {"crops": ImageFolder(folder)}, compressions("jpeg", (10,)), "gray"
    )
    codec, psnr = get_codec("jpeg"), []
    for image in crops(photographs).values():
        luma = color.rgb2ycbcr(image)[..., :1].round().astype(np.uint8)
        decoded = codec.decode(codec.encode(luma, 10))
        psnr.append(reference.peak_signal_noise_ratio(luma, decoded, data_range=255))
    assert report.rows()[0]["psnr"] == pytest.approx(np.mean(psnr), abs=1e-6)


def test_gray_takes_grey_files_as_they_are(photographs):
    channel = np.ascontiguousarray(photographs["coffee"][..., :1])
    np.testing.assert_array_equal(grey(channel.repeat(3, axis=-1)), channel)


def test_infinite_decibels_are_null_in_json():
    flat = {"flat": np.full((16, 16, 3), 128, np.uint8)}
    report = evaluate({}, {"s": flat}, compressions("jpeg", (100,)))
    assert report.to_json()["rows"][0]["psnr"] is None
    assert "inf" in report.table()


@pytest.mark.parametrize("protocol", ["colour", "gray"])
def test_a_methods_rows_measure_what_it_restores(folder, protocol):
    restorer = Restorer(tiny.Filter())
    images = {"coffee": ImageFolder(folder)["coffee.png"]}
    report = evaluate(
        {"tiny": restorer}, {"s": images}, compressions("jpeg", (20,)), protocol
    )
    alone, row = report.rows()
    clean, codec = images["coffee"], get_codec("jpeg")
    if protocol == "gray":
        clean = metrics.luma(clean)
    degraded = codec.decode(codec.encode(clean, 20))
    if protocol == "gray":
        rgb = np.float32(np.concatenate([degraded] * 3, axis=-1)) / 255
        restored = image_io.to_uint8(restorer(rgb).mean(axis=-1, keepdims=True))
    else:
        restored = restorer(degraded)
    assert row["psnr"] == pytest.approx(metrics.psnr(clean, restored))
    assert row["psnr_b"] == pytest.approx(metrics.psnr_b(clean, restored))
    assert row["gain"] == pytest.approx(row["psnr"] - alone["psnr"])
    assert row["seconds"] > 0


def test_csr_measures_what_upscaling_leaves(folder):
    images = ImageFolder(folder)
    report = evaluate({}, {"crops": images}, compressions("jpeg", (20,)), scale=4)
    codec, scores = get_codec("jpeg"), []
    for image in images.values():
        small = downscale(image, 4)
        restored = upscale(codec.decode(codec.encode(small, 20)), 4)
        pair = [picture[4:-4, 4:-4] for picture in (image, restored)]
        luma = [color.rgb2ycbcr(p)[..., 0].round().astype(np.uint8) for p in pair]
        ssim = reference.structural_similarity(
            *luma, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        scores.append(
            (
                reference.peak_signal_noise_ratio(*pair, data_range=255),
                reference.peak_signal_noise_ratio(*luma, data_range=255),
                ssim,
            )
        )
    (row,) = report.rows()
    assert (row["method"], row["gain"]) == ("bicubic", 0)
    for name, expected in zip(
        ("psnr", "psnr_y", "ssim_y"), np.mean(scores, axis=0), strict=True
    ):
        assert row[name] == pytest.approx(expected, abs=1e-4)
    head, *_ = report.table().splitlines()
    assert "PSNR-Y" in head and "SSIM-Y" in head and "PSNR-B" not in head


def test_weights_that_enlarge_are_measured_against_bicubic(folder):
    class Nearest(tiny.Filter):
        scale, multiple = 4, 1

        def __call__(self, image):
            return image.repeat(4, axis=1).repeat(4, axis=2)

    restorers = {"nearest": Restorer(Nearest())}
    images = {"coffee": ImageFolder(folder)["coffee.png"][:62, :70]}
    report = evaluate(restorers, {"s": images}, compressions("jpeg", (90,)))
    bicubic, nearest = report.rows()
    assert (bicubic["method"], nearest["method"]) == ("bicubic", "nearest")
    assert nearest["gain"] == pytest.approx(nearest["psnr"] - bicubic["psnr"])
    assert nearest["gain"] < -0.1
    assert "csr: compressed-image super-resolution" in report.table()
    with pytest.raises(UserError, match=r"different scales \(nearest 4; --scale 1\)"):
        evaluate(restorers, {"s": images}, compressions("jpeg", (90,)), scale=1)
    (jpeg,) = compressions("jpeg", (10,))
    sheet = before_after(restorers, images, jpeg, window=32, zoom=1)
    assert sheet.shape[1] > 3 * 32


@pytest.mark.parametrize("protocol", ["y", "all-in-one"])
def test_other_protocols_restore_colour(folder, protocol):
    restorer = Restorer(tiny.Filter())
    images = {"coffee": ImageFolder(folder)["coffee.png"]}
    jpegs = compressions("jpeg", (20,))
    report = evaluate({"tiny": restorer}, {"s": images}, jpegs, protocol)
    (*_, row), codec = report.rows(), get_codec("jpeg")
    pair = [images["coffee"]]
    pair.append(restorer(codec.decode(codec.encode(pair[0], 20))))
    if protocol == "y":
        pair = [
            color.rgb2ycbcr(image)[..., :1].round().astype("uint8") for image in pair
        ]
    assert row["psnr"] == pytest.approx(
        reference.peak_signal_noise_ratio(*pair, data_range=255), abs=1e-9
    )
    assert row["ssim"] == pytest.approx(
        reference.structural_similarity(
            *pair,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        ),
        abs=1e-9,
    )
    assert ("psnr_b" in row) == (protocol == "y")


def test_sets_have_tables_of_their_own_by_their_usual_protocols(folder):
    images = ImageFolder(folder)
    jpegs = compressions("jpeg", (10,))
    report = evaluate({}, {"mine": images, "Classic5": images}, jpegs)
    mine, classic5, notes = report.table().split("\n\n")
    assert mine.splitlines()[2].startswith("| mine ")
    assert classic5.splitlines()[2].startswith("| Classic5 ")
    assert "mine: colour: RGB jointly" in notes and "Classic5: gray: Y of" in notes
    gray = evaluate({}, {"s": images}, jpegs, "gray")
    assert report.rows()[1]["psnr"] == gray.rows()[0]["psnr"]


def test_a_peer_stands_in_the_table_where_it_can(folder, tmp_path):
    """A real program, which takes JPEG files and nothing else."""
    program = tmp_path / "invert.py"
    program.write_text(
        "import sys\nfrom PIL import Image, ImageOps\n"
        "image = Image.open(sys.argv[1], formats=['JPEG'])\n"
        "ImageOps.invert(image).save(sys.argv[2])\n"
    )
    peer = peers.parse_peer(f"invert={sys.executable} {program} {{in}} {{out}}")
    images = {"coffee": ImageFolder(folder)["coffee.png"]}
    three = [
        each for name in ("jpeg", "webp", "noise") for each in compressions(name, (20,))
    ]
    report = evaluate({"invert": peer}, {"s": images}, three)
    rows = report.rows()
    assert [(row["codec"], row["method"]) for row in rows] == [
        ("jpeg", "none"),
        ("jpeg", "invert"),
        ("webp", "none"),
        ("noise", "none"),
    ]
    codec, clean = get_codec("jpeg"), images["coffee"]
    inverted = 255 - codec.decode(codec.encode(clean, 20))
    assert rows[1]["psnr"] == pytest.approx(metrics.psnr(clean, inverted))
    assert rows[1]["seconds"] > 0
    for warning, codec in zip(report.warnings, ("webp", "noise"), strict=True):
        assert warning.startswith(f"left out of {codec}: peer invert: ")
        assert f"warning: {warning}" in report.table()


def score_on_devices(arguments, devices):
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    program = Path(__file__).parent / "score_on_devices.py"
    return subprocess.Popen(
        [sys.executable, program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        env=os.environ | flags | {"JAX_PLATFORMS": "cpu"},
        text=True,
    )


def finished(process):
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(printed.splitlines()[-1])  # a cluster says more


@pytest.mark.slow
def test_scores_are_the_same_on_any_devices_and_processes(folder, weights_file):
    one, eight = (
        finished(score_on_devices([weights_file, folder], count)) for count in (1, 8)
    )
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert eight["content"] == one["content"]
    coordinator = f"localhost:{free_port()}"
    processes = [
        score_on_devices([weights_file, folder, coordinator, 2, number], 2)
        for number in range(2)
    ]
    for found in map(finished, processes):
        assert found == {"devices": 4, "content": one["content"]}


def test_the_command_makes_an_all_in_one_table(folder, photographs, tmp_path, capsys):
    for name, image in crops(photographs).items():
        image_io.write_png(tmp_path / "hazy" / f"{name}_0.8.png", image // 2 + 100)
    arguments = ["evaluate", "--set", f"crops={folder}", "--set", f"SOTS={folder}"]
    arguments += ["--degraded", f"SOTS:haze={tmp_path / 'hazy'}", "--codec", "noise"]
    arguments += ["--protocol", "all-in-one-3", "--quality", "15,50"]
    for kind in ("json", "csv", "record"):
        arguments += [f"--{kind}", str(tmp_path / f"out.{kind}")]
    pictures = ["--pictures", str(tmp_path / "pictures")]
    assert cli.run([*arguments, *pictures]) == cli.DONE
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    keys = [(r["set"], r["codec"], r["quality"], r["bpp"]) for r in written["rows"]]
    assert keys == [
        ("crops", "noise", 15, None),
        ("crops", "noise", 50, None),
        ("SOTS", "haze", None, None),
    ]
    assert written["warnings"] == ["SOTS has 4 images here, not 500"]
    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["quality"], line["bpp"]) for line in lines] == [
        ("15", ""),
        ("50", ""),
        ("", ""),
    ]
    recorded = (tmp_path / "out.record").read_text()
    assert re.search(r"\| all-in-one-3 +\| 1 +\| haze +\| - +\| none ", recorded)
    assert cli.run(arguments) == cli.DONE  # the same rows take the place of the old
    assert (tmp_path / "out.record").read_text() == recorded
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    kinds = ("crops-noise-15", "SOTS-haze")
    assert names == {f"{k}-{p}.png" for k in kinds for p in ("worst", "median", "best")}
    assert "noise seeded 0 anew for every image" in printed


def test_the_command_prints_the_table_and_its_protocol(
    folder, weights_file, tmp_path, capsys
):
    arguments = ["evaluate", "--set", f"crops={folder}", "--quality", "10,40"]
    arguments += ["--weights", f"net={weights_file}"]
    for kind in ("json", "csv", "markdown", "record"):
        arguments += [f"--{kind}", str(tmp_path / f"out.{kind}")]
    pictures = tmp_path / "pictures"
    assert cli.run([*arguments, "--pictures", str(pictures)]) == cli.DONE
    printed = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if line.startswith("| crops")
    ]
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row[:4] for row in rows] == [
        ["crops", "jpeg", quality, method]
        for quality in ("10", "40")
        for method in ("none", "net")
    ]
    for cells, row in zip(rows, written["rows"], strict=True):
        assert cells[4:7] == [
            f"{row['psnr']:.2f}",
            f"{row['ssim']:.4f}",
            f"{row['psnr_b']:.2f}",
        ]
    assert len(written["images"]) == 4 * 4
    assert re.search(r"protocol: colour: RGB jointly.*no border crop", printed)
    assert "encoder: libjpeg-turbo" in printed and "sha256 of net: " in printed
    assert (tmp_path / "out.markdown").read_text().strip() in printed
    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["psnr"]) for line in lines] == [
        row["psnr"] for row in written["rows"]
    ]
    recorded = (tmp_path / "out.record").read_text()
    assert recorded.count("| crops ") == 4 and "ucip step 7" in recorded
    assert len(list(pictures.iterdir())) == 4 and printed.count("picture: ") == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "s=nowhere"], "folder nowhere does not exist"),
        (["--set", "folder"], "give it as NAME=DIR"),
        (["--set", "s=photos:train", "--set", "s=photos:train"], "s is given twice"),
        (["--json", "nowhere/scores.json"], "its folder does not exist"),
        (["--codec", "jpg"], "did you mean 'jpeg'"),
        (["--codec", "nois"], "did you mean 'noise'"),
        (["--protocol", "grey"], "did you mean 'gray'"),
        (["--quality", "500"], "quality 500 is outside jpeg's range"),
        (["--weights", "nothing"], "neither a file"),
        (["--scale", "0"], "--scale is 0: give at least 1"),
        (["--peer", "mine=run {in}"], "has no {out}"),
        (["--codec", "jpeg,webp,avif", "--quality", "9", "--quality", "8"], "2 times"),
        (["--lpips", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--codec", "noise", "--quality", "300"], "noise 300: give a standard dev"),
        (["--degraded", "hazy"], r"give it as \[SET:\]NAME=DIR"),
        (["--degraded", "=hazy"], "name the degradation"),
        (["--degraded", "haze=nowhere"], "folder nowhere does not exist"),
        (["--degraded", "photos:haze=hazy"], "unknown set 'photos'"),
        (["--degraded", "a=b", "--degraded", "b=c"], "has degraded images already"),
        (["--degraded", "haze=hazy", "--codec", "jpeg"], "--codec: every set has"),
        ([*TWO_SETS, "--degraded", "haze=hazy"], "the sets a, b: give it as SET:"),
        ([*TWO_SETS, "--degraded", "a:jpeg=hazy"], "has a codec jpeg of its own"),
    ],
)
def test_wrong_use_is_named(arguments, words):
    with pytest.raises(UserError, match=words):
        cli.run(["evaluate", *arguments])


def test_a_set_with_a_bad_image_is_refused_whole(folder):
    Image.new("RGB", (10, 40)).save(folder / "small.png")
    with pytest.raises(UserError, match=r"small\.png is 10x40 pixels: SSIM needs"):
        ImageFolder(folder)
    (folder / "small.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"small\.png is empty"):
        ImageFolder(folder)
