import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir_jax import cli, image_io, photos
from cir_jax.codecs import get_codec
from cir_jax.data import manifest
from cir_jax.data.recipes import Recipe, get_recipe
from cir_jax.data.records import Record, decode
from cir_jax.errors import UserError
from cir_jax.metrics import luma
from cir_jax.resize import downscale
from data_pipelines import job
from data_pipelines.encode import encode
from data_pipelines.sources import Folder
from data_pipelines.verify import verify

RECIPE = Recipe(("jpeg 10,40",))


@pytest.fixture
def source(tmp_path):
    """A folder with two of the photographs, one of them in a folder below."""
    folder = tmp_path / "source"
    (folder / "below").mkdir(parents=True)
    shutil.copy(photos.folder("train") / "cat.webp", folder)
    shutil.copy(photos.folder("train") / "fruit.webp", folder / "below")
    return folder


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.glob("records-*")}


def test_records_hold_the_crops_and_their_versions(source, tmp_path):
    out = tmp_path / "out"
    assert encode(Folder(source), RECIPE, out, crop=128, stride=100) == {}
    records, contents = manifest.open_records(out, "cir encode")
    # fruit is 480x336: 5 x 4 places, the last of each side moved in; cat is 400x266.
    assert len(records) == contents["records"] == 5 * 4 + 4 * 3
    codec = get_codec("jpeg")
    for payload in (records[0], records[19], records[31]):
        record = Record.from_bytes(payload)
        y, x = record.origin
        image = image_io.read_rgb(source / record.source)
        clean = np.ascontiguousarray(image[y : y + 128, x : x + 128])
        np.testing.assert_array_equal(decode(record.clean), clean)
        assert [version.quality for version in record.versions] == [10, 40]
        for version in record.versions:
            stream = codec.encode(clean, version.quality)
            assert (version.codec, version.image) == ("jpeg", stream)
            assert version.bits == 8 * len(stream)
    assert Record.from_bytes(records[19]).origin == (336 - 128, 480 - 128)


@pytest.mark.parametrize("online", [False, True])
def test_grey_records_are_coded_as_grey_images(source, tmp_path, online):
    out = tmp_path / "out"
    encode(Folder(source), RECIPE, out, crop=128, grey=True, online=online)
    records, contents = manifest.open_records(out, "cir encode")
    assert contents["grey"]
    record, codec = Record.from_bytes(records[0]), get_codec("jpeg")
    clean = decode(record.clean)
    y, x = record.origin
    image = image_io.read_rgb(source / record.source)[y : y + 128, x : x + 128]
    np.testing.assert_array_equal(clean, luma(image).repeat(3, axis=-1))
    assert online == (record.versions == ())
    for version in record.versions:
        stream = codec.encode(np.ascontiguousarray(clean[..., :1]), version.quality)
        expected = codec.decode(stream).repeat(3, axis=-1)
        np.testing.assert_array_equal(decode(version.image), expected)


def test_the_manifest_says_what_was_made_and_of_what(source, tmp_path):
    encode(Folder(source), RECIPE, tmp_path / "out", crop=128, seed=7)
    contents = json.loads((tmp_path / "out" / manifest.NAME).read_text())
    assert [image["path"] for image in contents["images"]] == [
        "below/fruit.webp",
        "cat.webp",
    ]
    digest = hashlib.sha256((source / "cat.webp").read_bytes()).hexdigest()
    assert contents["images"][1]["sha256"] == digest
    assert contents["seed"] == 7
    assert "libjpeg-turbo" in contents["codecs"]["jpeg"]


@pytest.mark.slow
def test_workers_make_the_same_bytes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "LARGEST_SHARD", 4)
    recipe = get_recipe("blind-jpeg")
    for workers in (0, 1, 2):
        encode(
            Folder(source), recipe, tmp_path / str(workers), crop=128, workers=workers
        )
    alone = shard_bytes(tmp_path / "0")
    assert len(alone) == 3 * 6
    assert alone == shard_bytes(tmp_path / "1") == shard_bytes(tmp_path / "2")


def test_another_seed_draws_other_qualities(source, tmp_path):
    recipe = get_recipe("blind-jpeg")
    for seed in (0, 1):
        encode(Folder(source), recipe, tmp_path / str(seed), crop=256, seed=seed)
    drawn = []
    for seed in (0, 1):
        records, _ = manifest.open_records(tmp_path / str(seed), "cir encode")
        versions = Record.from_bytes(records[0]).versions
        drawn.append([version.quality for version in versions])
        assert len(set(drawn[-1])) == 8
        assert min(drawn[-1]) >= 5 and max(drawn[-1]) <= 95
    assert drawn[0] != drawn[1]


def test_a_second_run_finishes_what_was_begun(source, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "LARGEST_SHARD", 4)
    out = tmp_path / "out"
    encode(Folder(source), RECIPE, out, crop=128)
    whole = shard_bytes(out)
    kept, lost = (out / f"records-0000{n}-of-00006.tfrecord" for n in (0, 1))
    lost.unlink()
    (out / manifest.NAME).unlink()
    (out / f".{lost.name}.123.tmp").write_bytes(b"half")
    before = kept.stat().st_mtime_ns
    with pytest.raises(
        UserError, match=r"out is not finished: make it with\n  cir enc"
    ):
        manifest.open_records(out, "cir encode …")
    encode(Folder(source), RECIPE, out, crop=128)
    assert kept.stat().st_mtime_ns == before
    assert shard_bytes(out) == whole
    assert not list(out.glob(".*"))


def test_records_of_other_settings_are_left_alone(source, tmp_path):
    out = tmp_path / "out"
    encode(Folder(source), RECIPE, out, crop=128)
    whole = shard_bytes(out)
    with pytest.raises(UserError, match="holds records of other images or settings"):
        encode(Folder(source), RECIPE, out, crop=64)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        encode(Folder(source), RECIPE, tmp_path / "other", crop=64)
    for inside in (source, source / "below" / "records"):
        with pytest.raises(UserError, match="lies inside --source"):
            encode(Folder(source), RECIPE, inside, crop=64)
    assert shard_bytes(out) == whole


def test_bad_images_are_named_and_the_rest_is_done(source, tmp_path, capsys):
    cat = (source / "cat.webp").read_bytes()
    (source / "cut.webp").write_bytes(cat[: len(cat) // 2])
    (source / "empty.png").write_bytes(b"")
    Image.new("RGB", (500, 100)).save(source / "flat.png")
    out = tmp_path / "out"
    command = ["encode", "--source", str(source), "--quality", "10", "--out", str(out)]
    assert cli.run([*command, "--crop", "128"]) == cli.SOME_FAILED
    complaints = capsys.readouterr().err
    for name, words in {
        "cut.webp": "cannot be decoded",
        "empty.png": "is not an image that can be read",
        "flat.png": "is 500x100 pixels, smaller than the crop",
    }.items():
        assert any(
            f"left out: {name}" in line and words in line
            for line in complaints.splitlines()
        )
    records, contents = manifest.open_records(out, "cir encode")
    assert sorted(contents["left_out"]) == ["cut.webp", "empty.png", "flat.png"]
    assert {Record.from_bytes(payload).source for payload in records} == {
        "below/fruit.webp",
        "cat.webp",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--source", "nowhere", "--quality", "10"],
            "nowhere does not exist: give a folder",
        ),
        (["--source", "photos:test", "--quality", "10"], "known are train, validation"),
        (["--recipe", "jpeg8"], "did you mean 'jpeg7'"),
        (["--recipe", "web"], "change the originals: put online: in front"),
        (["--codec", "jpegs", "--quality", "10"], "did you mean 'jpeg'"),
        (["--quality", "0"], "quality 0 is outside jpeg's range"),
        (["--quality", "10", "--crop", "9999"], "as large as --crop 9999"),
        (["--quality", "50:10:5"], "are none at all"),
        (["--quality", "10", "--crop", "0"], "--crop is 0: give at least 1"),
        (["--quality", "10", "--stride", "-3"], "--stride is -3: give at least 1"),
        (["--quality", "10", "--seed", "-1"], "--seed is -1: give at least 0"),
        (["--quality", "10", "--workers", "-1"], "--workers is -1"),
        ([], "give one of --recipe"),
        (["--recipe", "jpeg7", "--quality", "10"], "give one of --recipe"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, arguments, words):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=words):
        cli.run(["encode", "--out", str(out), *arguments])
    assert not out.exists()


def test_an_output_that_is_a_file_is_named(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file is a file: give a folder"):
        encode(Folder(source), RECIPE, tmp_path / "file", crop=128)


def test_a_run_killed_at_its_start_can_begin_again(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".{job.PLAN}.123.tmp").write_text("{")
    assert encode(Folder(source), RECIPE, tmp_path / "out", crop=128) == {}
    assert encode(Folder(source), RECIPE, tmp_path / "out", crop=128) == {}


def test_an_empty_source_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image: expected files that end in"):
        encode(Folder(tmp_path / "empty"), RECIPE, tmp_path / "out")


def test_a_damaged_manifest_is_named(source, tmp_path):
    encode(Folder(source), RECIPE, tmp_path / "out", crop=256)
    path = tmp_path / "out" / manifest.NAME
    contents = json.loads(path.read_text())
    path.write_text(json.dumps(contents | {"format": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads 3"):
        manifest.open_records(tmp_path / "out", "cir encode")
    for damaged in ("{", "[]", json.dumps({"format": manifest.FORMAT})):
        path.write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            manifest.open_records(tmp_path / "out", "cir encode")
    path.unlink()
    with pytest.raises(UserError, match="is not finished"):
        manifest.open_records(tmp_path / "out", "cir encode")


@pytest.mark.parametrize("scale", [1, 4])
def test_downscaling_comes_before_the_codec_and_from_the_whole_image(
    source, tmp_path, scale
):
    out = tmp_path / "out"
    encode(Folder(source), RECIPE, out, crop=128, stride=100, scale=scale)
    records, contents = manifest.open_records(out, "cir encode")
    assert contents["scale"] == scale
    codec = get_codec("jpeg")
    for payload in records:
        record = Record.from_bytes(payload)
        image = image_io.read_rgb(source / record.source)
        height, width = (size // scale * scale for size in image.shape[:2])
        small = downscale(image[:height, :width], scale)
        y, x = (place // scale for place in record.origin)
        assert (y * scale, x * scale) == record.origin
        side = 128 // scale
        low = np.ascontiguousarray(small[y : y + side, x : x + side])
        assert record.versions[0].image == codec.encode(low, 10)


class Flaky(Folder):
    """A source of which one image can be read once: for the check, not later."""

    def read(self, key):
        if key == "cat.webp" and type(self).left.pop() == 0:
            raise OSError(5, "Input/output error")
        return super().read(key)


def test_what_fails_on_the_way_is_named_and_tried_again(source, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    Flaky.left = [0] * 99 + [1]
    failed = encode(Flaky(source), RECIPE, out, crop=128)
    assert sorted(failed) == [f"cat.webp at {y},{x}" for y in (0, 128, 138)
                              for x in (0, 128, 256, 272)]  # fmt: skip
    assert set(failed.values()) == {"cat.webp cannot be read: Input/output error"}
    records, contents = manifest.open_records(out, "cir encode")
    assert {Record.from_bytes(payload).source for payload in records} == {
        "below/fruit.webp"
    }
    assert contents["left_out"] == failed
    assert not verify(out).damages

    assert encode(Folder(source), RECIPE, out, crop=128) == {}
    encode(Folder(source), RECIPE, whole, crop=128)
    assert shard_bytes(out) == shard_bytes(whole)


def test_when_everything_fails_nothing_is_called_finished(source, tmp_path):
    (source / "below" / "fruit.webp").unlink()
    Flaky.left = [0] * 99 + [1]
    with pytest.raises(UserError, match=r"no record could be made; the first: cat"):
        encode(Flaky(source), RECIPE, tmp_path / "out", crop=128)
    with pytest.raises(UserError, match="is not finished"):
        manifest.open_records(tmp_path / "out", "cir encode")


def test_a_finished_shard_that_was_damaged_is_written_again(source, tmp_path):
    out = tmp_path / "out"
    encode(Folder(source), RECIPE, out, crop=128)
    whole = shard_bytes(out)
    shard = next(out.glob("*.tfrecord"))
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    encode(Folder(source), RECIPE, out, crop=128)
    assert shard_bytes(out) == whole


def test_a_second_run_at_the_same_time_is_refused(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with job._alone(out):
        script = "import sys; from cir_jax import cli; cli.main()"
        command = [sys.executable, "-c", script, "encode", "--source", source]
        command += ["--quality", "10", "--crop", "128", "--out", out]
        command = list(map(str, command))
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == cli.WRONG_USE
    assert "error: another process is writing" in done.stderr
    assert not list(out.iterdir())
    assert subprocess.run(command, capture_output=True).returncode == cli.DONE


def test_an_output_that_cannot_be_made_is_one_sentence(source):
    script = "import sys; from cir_jax import cli; cli.main()"
    command = [sys.executable, "-c", script, "encode", "--source", str(source)]
    command += ["--quality", "10", "--crop", "128", "--out", "/dev/null/records"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == cli.WRONG_USE
    assert done.stderr.splitlines()[-1] == "error: /dev/null/records: Not a directory"


def test_a_damaged_plan_is_named(source, tmp_path):
    encode(Folder(source), RECIPE, tmp_path / "out", crop=128)
    (tmp_path / "out" / job.PLAN).write_text("{")
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        encode(Folder(source), RECIPE, tmp_path / "out", crop=128)


def writer_of(folder):
    """A process that has a file of the folder open for writing."""
    while True:
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.startswith(str(folder)) and target.endswith(".tmp"):
                    return int(link.parts[2])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_run_with_workers_that_is_stopped_is_one_sentence(source, tmp_path, stop):
    """Ctrl-C reaches every process of the group; the kernel kills one worker."""
    out = tmp_path / "out"
    script = tmp_path / "script.py"
    script.write_text(
        "if __name__ == '__main__':\n    from cir_jax import cli; cli.main()\n"
    )
    command = [sys.executable, script, "encode", "--source", source, "--codec", "vvc"]
    command += ["--quality", "22:47:5", "--crop", "128", "--stride", "32"]
    command += ["--workers", "2", "--out", out]
    process = subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(list(out.glob("*.tmp"))) < 4:  # shard and index of both workers
        time.sleep(0.05)
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)
    else:
        os.kill(writer_of(out), stop)
    _, printed = process.communicate()
    lines = [line for line in printed.splitlines() if "━" not in line and line.strip()]
    if stop == signal.SIGINT:
        assert process.returncode == cli.INTERRUPTED
        assert lines[-1] == "interrupted"
    else:
        assert process.returncode == cli.WRONG_USE
        assert "error: a writing process ended early" in lines[-1]
    assert "Traceback" not in printed


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_no_half_shard(source, tmp_path, workers):
    """The limit on a file's size stands in for the disk: the same error of the OS."""
    out = tmp_path / "out"
    command = ["encode", "--source", source, "--quality", "10:90:5", "--crop", "128"]
    command += ["--out", out, "--workers", workers]
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (300_000, 300_000)); "
    words = [str(word) for word in command]
    code = f"{limit}import sys; sys.argv[1:] = {words}; "
    code += "from cir_jax import cli; cli.main()"
    # Not in this file's process, where the limit would stay; and importable by spawned
    # workers, which run the main module again.
    script = tmp_path / "script.py"
    script.write_text(f"if __name__ == '__main__':\n    {code}\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == cli.WRONG_USE
    message = done.stderr.strip().splitlines()[-1]
    assert re.search(r"error: .*tfrecord cannot be written \(File too large\): make ro",
                     message)  # fmt: skip
    assert [path.name for path in out.iterdir()] == [job.PLAN]

    encode(Folder(source), Recipe(("jpeg 10:90:5",)), out, crop=128)
    assert not verify(out).damages


@pytest.mark.slow
def test_interrupted_and_killed_runs_go_on(source, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    recipe = Recipe(("avif 30",))
    encode(Folder(source), recipe, whole, crop=128, stride=32)
    script = "import sys; from cir_jax import cli; cli.main()"
    command = [sys.executable, "-c", script, "encode", "--source", source]
    command += ["--codec", "avif", "--quality", "30", "--crop", "128"]
    command += ["--stride", "32", "--out", out]
    for stop, status in ((signal.SIGINT, cli.INTERRUPTED), (signal.SIGKILL, -9)):
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE)
        before = len(list(out.glob("*.json")))
        while len(list(out.glob("*.json"))) <= before + 1:
            time.sleep(0.05)
        process.send_signal(stop)
        process.communicate()
        assert process.returncode == status
        assert not (out / manifest.NAME).exists()
    assert encode(Folder(source), recipe, out, crop=128, stride=32) == {}
    assert shard_bytes(out) == shard_bytes(whole)


def test_without_beam_the_sentence_says_what_to_install(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'cir_jax\[beam\]'"):
        encode(Folder(source), RECIPE, tmp_path / "out", crop=128, engine="beam")
