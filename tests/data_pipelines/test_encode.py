import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cir_jax import cli, image_io, photos
from cir_jax.codecs import get_codec
from cir_jax.data import manifest
from cir_jax.data.recipes import Recipe, get_recipe
from cir_jax.data.records import Record, decode
from cir_jax.errors import UserError
from data_pipelines import encode as job
from data_pipelines.encode import encode
from data_pipelines.sources import Folder

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
    with pytest.raises(UserError, match="is not empty"):
        encode(Folder(source), RECIPE, source, crop=64)
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
        (["--source", "nowhere", "--quality", "10"], "folder nowhere does not exist"),
        (["--source", "photos:test", "--quality", "10"], "known are train, validation"),
        (["--recipe", "jpeg8"], "did you mean 'jpeg7'"),
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
    with pytest.raises(UserError, match="holds no image: expected files that end in"):
        encode(Folder(tmp_path), RECIPE, tmp_path / "out")


def test_a_damaged_manifest_is_named(source, tmp_path):
    encode(Folder(source), RECIPE, tmp_path / "out", crop=256)
    path = tmp_path / "out" / manifest.NAME
    contents = json.loads(path.read_text())
    path.write_text(json.dumps(contents | {"format": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads 2"):
        manifest.open_records(tmp_path / "out", "cir encode")
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        manifest.open_records(tmp_path / "out", "cir encode")
