"""The folder job, through the command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

from cir_jax import Restorer, cli, image_io, weights
from cir_jax.errors import UserError
from cir_jax.models import build_model


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """Weights that change an image a little, of a network that compiles quickly."""
    return save_light(
        tmp_path_factory.mktemp("weights") / "light.safetensors", tiny.LIGHT
    )


def save_light(path, config):
    model = build_model(config, nnx.Rngs(0))
    model.head.conv_last.bias[...] = 0.02
    weights.save(path, model, {})
    return path


def noise(height, width, channels=3, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, channels), np.uint8)


def run(light, source, out, *flags):
    inputs = [str(path) for path in (source if isinstance(source, list) else [source])]
    return cli.run(
        ["restore", *inputs, "-o", str(out), "--weights", str(light), *flags]
    )


def found(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_a_folder_keeps_its_tree_and_a_bad_file_stops_nothing(tmp_path, light, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "below").mkdir(parents=True)
    Image.fromarray(noise(13, 9)).save(source / "below" / "a.jpg")
    Image.fromarray(noise(13, 9)).save(source / "b.png")
    (source / "bad.jpg").write_bytes(b"not a JPEG")
    cut = source / "cut.png"
    Image.fromarray(noise(13, 9)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    report = tmp_path / "report.json"
    assert run(light, source, out, "--report", str(report)) == cli.SOME_FAILED
    captured = capsys.readouterr()
    assert f"failed: {source / 'bad.jpg'} is not an image" in captured.err
    assert f"failed: {cut} cannot be decoded" in captured.err
    assert "2 restored, 0 skipped, 2 failed, of 4 images" in captured.out
    assert "tiles: 16x16" in captured.err
    assert found(out) == ["b.png", "below/a.png"]
    grid = Restorer(light).common_grid(16, 16)
    for name in ("b.png", "below/a.jpg"):
        expected = Restorer(light)(image_io.read_rgb(source / name), grid)
        result = image_io.read_rgb((out / name).with_suffix(".png"))
        np.testing.assert_array_equal(result, expected)
    rows = {row["input"]: row for row in json.loads(report.read_text())["images"]}
    row = rows[str(source / "b.png")]
    assert row["status"] == "restored" and row["output"] == str(out / "b.png")
    assert (row["width"], row["height"]) == (9, 13)
    assert row["severity"] > 1 and row["seconds"] > 0 and "tile" not in row
    assert rows[str(cut)]["status"] == "failed"


def test_a_second_run_leaves_finished_outputs_alone(tmp_path, light, capsys):
    source, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(noise(8, 8)).save(source)
    assert run(light, source, out, "--dry-run") == cli.DONE
    assert not out.exists()
    assert run(light, source, out) == cli.DONE
    (out / "a.png").write_bytes(b"kept")
    assert run(light, source, out) == cli.DONE
    assert (out / "a.png").read_bytes() == b"kept"
    capsys.readouterr()
    assert run(light, source, out, "--dry-run") == cli.DONE
    assert capsys.readouterr().out == f"{source} -> {out / 'a.png'} (there: skipped)\n"
    assert run(light, source, out, "--overwrite") == cli.DONE
    assert image_io.read_rgb(out / "a.png").shape == (8, 8, 3)


KINDS = {
    "rgb.png": (noise(20, 30), "RGB"),
    "grey.png": (noise(20, 30, 1)[..., 0], "L"),
    "alpha.png": (noise(20, 30, 4), "RGBA"),
    "grey_alpha.png": (noise(20, 30, 2), "LA"),
    "deep.png": (noise(20, 30, 1)[..., 0].astype(np.uint16) * 250, "I;16"),
    "colour.jpg": (noise(20, 30), "RGB"),
    "colour.webp": (noise(20, 30), "RGB"),
}


@pytest.mark.parametrize("scale", [1, 4])
def test_pictures_come_back_in_their_kind(tmp_path, scale):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, (pixels, _) in KINDS.items():
        Image.fromarray(pixels).save(source / name)
    path = save_light(tmp_path / "w.safetensors", tiny.LIGHT | {"scale": scale})
    assert run(path, source, out, "--format", "same") == cli.DONE
    assert found(out) == sorted(KINDS)
    for name, (_, mode) in KINDS.items():
        with Image.open(out / name) as image:
            assert image.mode == mode and image.size == (30 * scale, 20 * scale), name


def test_transparency_that_a_format_cannot_hold_is_refused(tmp_path, light, capsys):
    source = tmp_path / "alpha.png"
    Image.fromarray(KINDS["alpha.png"][0]).save(source)
    assert run(light, source, tmp_path / "o", "--format", "jpeg") == cli.SOME_FAILED
    assert "alpha.jpg cannot hold the transparency" in capsys.readouterr().err
    assert found(tmp_path / "o") == []


def test_one_program_does_for_images_of_all_sizes(tmp_path, light, caplog):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(20):
        Image.fromarray(noise(9 + 7 * i, 150 - 6 * i)).save(source / f"{i}.png")
    with jax.log_compiles():
        assert run(light, source, tmp_path / "out", "--tile", "64") == cli.DONE
    compiled = [r for r in caplog.records if "Compiling jit(apply)" in r.getMessage()]
    assert len(compiled) == 1
    for path in source.iterdir():
        with Image.open(path) as before, Image.open(tmp_path / "out" / path.name) as x:
            assert x.size == before.size


def test_where_memory_runs_out_smaller_tiles_go_on(
    tmp_path, light, monkeypatch, capsys
):
    """A device that has no memory for more than 64 pixels a side."""
    program = Restorer._program

    def limited(restorer, batch, height, width, channels=3):
        compiled = program(restorer, batch, height, width, channels)

        def run(*arguments):
            if max(height, width) > 64:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            return compiled(*arguments)

        return run

    monkeypatch.setattr(Restorer, "_program", limited)
    source = tmp_path / "in"
    source.mkdir()
    for i in range(3):
        Image.fromarray(noise(150, 100, seed=i)).save(source / f"{i}.png")
    assert run(light, source, tmp_path / "out", "--tile", "256") == cli.DONE
    messages = capsys.readouterr().err
    assert messages.count("not enough memory") == 2  # 128, then 64, once for all three
    assert found(tmp_path / "out") == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    ("inputs", "out", "flags", "words"),
    [
        (["nowhere.png"], "out", (), r"nowhere\.png does not exist"),
        (["empty"], "out", (), "empty holds no image"),
        (["full"], "full/out", (), "lies inside the input folder"),
        (["full/a.png"], "full", (), r"a\.png would be overwritten"),
        (["full/a.png", "full/a.jpg"], "out", (), "would both be written to"),
        (["full/a.png"], "out", ("--format", "gif"), "unknown"),
        (["full/a.png"], "full/a.jpg", (), r"a\.jpg would be a file: give a folder"),
        (["full/a.png"], "b.png", (), r"b\.png would be a file: give a folder"),
        (["full/a.png"], "out", ("--report", "no/r.json"), "its folder does not exist"),
        (["full/a.png"], "out", ("--report", "full"), "--report full is a folder"),
        (["full/a.png"], "out", ("--report", "full/a.png"), "is one of the images"),
        (["full/a.png"], "out", ("--identify", "w"), "--identify w adds to the report"),
        (["full/a.png"], "out", ("--quality", "0"), "quality 0 is not in 1 to 100"),
        (["full/a.png"], "out", ("--max-megapixels", "inf"), "inf: give a finite"),
        (["full/a.png"], "out", ("--precision", "half"), "unknown precision 'half'"),
        (["full/a.png"], "out", ("--strength", "2"), "strength 2.0 is not in 0 to 1"),
        (["full/a.png"], "out", ("--tile", "-1"), "tile -1: give at least 1"),
    ],
)
def test_wrong_use_is_named(tmp_path, monkeypatch, light, inputs, out, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "full" / name)
    paths = [tmp_path / name for name in inputs]
    with pytest.raises(UserError, match=words):
        run(light, paths, tmp_path / out, *flags)
    assert found(tmp_path) == ["full/a.jpg", "full/a.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_an_input_is_never_an_output_of_another(tmp_path, light):
    for name in ("a/x/i.jpg", "b/x/i.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    inputs = [tmp_path / "a", tmp_path / "b/x/i.png"]
    with pytest.raises(UserError, match=r"b/x/i\.png would be overwritten by what"):
        run(light, inputs, tmp_path / "b", "--overwrite")


def test_what_is_in_the_way_of_outputs_stops_no_other(tmp_path, light, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    (out / "folder.png").mkdir(parents=True)
    (out / "loop.png").symlink_to("loop.png")
    source.mkdir()
    for name in ("good.png", "folder.png", "loop.png", f"{'x' * 251}.tif"):
        Image.new("RGB", (8, 8)).save(source / name)
    flags = ("--format", "avif")  # makes the longest name one too long
    assert run(light, source, out, *flags) == cli.SOME_FAILED
    assert "x.avif cannot be written: File name too long" in capsys.readouterr().err
    assert run(light, source, out) == cli.SOME_FAILED
    captured = capsys.readouterr()
    assert "folder.png cannot be written: Is a directory" in captured.err
    assert "2 restored, 1 skipped, 1 failed, of 4 images" in captured.out


def test_names_of_any_bytes_are_printed(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"\xff.png"))
    arguments = ["restore", str(tmp_path), "-o", "out", "--weights", "w", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["cir", *arguments])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert r"\udcff.png -> out" in capsys.readouterr().out


def test_an_error_of_the_system_without_a_file(monkeypatch, capsys):
    def run(arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "run", run)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == "error: No space left on device\n"


def mixed_folder(folder, count, bad):
    """Images of several sizes and formats, of which `bad` cannot be read."""
    folder.mkdir()
    formats = ("png", "jpg", "webp", "bmp", "tif")
    for i in range(count):
        path = folder / f"{i:03}.{formats[i % len(formats)]}"
        Image.fromarray(noise(16 + i % 23, 16 + i % 31, seed=i)).save(path)
        if i in bad:
            path.write_bytes(path.read_bytes()[: 40 * (i % 3)])
    return folder


def test_two_hundred_images_five_of_them_bad(tmp_path, light, capsys):
    bad = {3, 50, 76, 101, 199}
    source = mixed_folder(tmp_path / "in", 200, bad)
    assert run(light, source, tmp_path / "out") == cli.SOME_FAILED
    captured = capsys.readouterr()
    assert "195 restored, 0 skipped, 5 failed, of 200 images" in captured.out
    for i in bad:
        assert f"failed: {source}/{i:03}." in captured.err
    assert len(found(tmp_path / "out")) == 195


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_stopped_goes_on_where_it_was(tmp_path, light, number):
    source, out = mixed_folder(tmp_path / "in", 200, {7}), tmp_path / "out"
    command = [sys.executable, "-c", "from cir_jax import cli; cli.main()", "restore"]
    command += [str(source), "-o", str(out), "--weights", str(light)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not out.is_dir() or len(list(out.glob("*.png"))) < 20:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, complaints = process.communicate()
    killed = number == signal.SIGKILL
    assert process.returncode == (-9 if killed else cli.INTERRUPTED)
    done = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 20 <= len(done) < 199
    for path in done:
        image_io.read_rgb(path)
    if not killed:
        assert "Traceback" not in complaints and "interrupted" in complaints
        assert not list(out.glob(".*"))

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == cli.SOME_FAILED
    assert f"{199 - len(done)} restored, {len(done)} skipped, 1 failed" in again.stdout
    assert len(list(out.glob("*.png"))) == 199
    for path, changed in done.items():
        assert path.stat().st_mtime_ns == changed


@pytest.mark.slow
def test_hundreds_of_megapixels_fit_into_1_3_gigabytes(tmp_path):
    """In a process of its own, with a network that hardly needs any memory.

    A process knows the most memory that its program has had as VmHWM; `ru_maxrss` has
    that of the process that started it in it.
    """
    source = tmp_path / "in"
    source.mkdir()
    rows = np.linspace(0, 255, 10_000, dtype=np.uint8)
    bands = rows, rows[:, None] // 2, np.uint8(9)
    pixels = np.stack(np.broadcast_arrays(*bands), -1)
    Image.fromarray(pixels).save(source / "1.jpg")
    shutil.copy(source / "1.jpg", source / "2.jpg")
    del pixels
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from rich.console import Console\n"
        "import tiny\n"
        "from cir_jax import Restorer, restore_files\n"
        "def report(outcome):\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    (kilobytes,) = re.findall(r'VmHWM:\\s*(\\d+)', status)\n"
        "    print(outcome.status, int(kilobytes) / 1e6)\n"
        "source, out = map(Path, sys.argv[1:])\n"
        "job = restore_files.plan([source], out, None), restore_files.Options()\n"
        "console, network = Console(stderr=True), Restorer(tiny.Filter())\n"
        "restore_files.restore_files(network, *job, console, report)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert result.returncode == 0, result.stderr
    one, one_peak, two, two_peak = result.stdout.split()
    assert one == two == "restored"
    assert float(one_peak) <= 1.3
    assert float(two_peak) <= 1.02 * float(one_peak)
