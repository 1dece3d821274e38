import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cir_jax import cli, image_io, photos
from cir_jax.data import manifest
from cir_jax.data.records import Record, decode
from cir_jax.errors import UserError
from cir_jax.resize import downscale
from data_pipelines.sources import Folder, check_images, open_source, read_image

NAMES = ("cat", "dogs", "drum")


def photograph(name):
    """A photograph's middle, 128 x 96."""
    return image_io.read_rgb(photos.folder("train") / f"{name}.webp")[64:160, 64:192]


def small_photograph(name):
    return downscale(photograph(name), 2)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def with_alpha(image):
    return encoded(np.concatenate([image, image[..., :1]], axis=2))


def cmyk(image):
    buffer = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


def turned(image):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to show
    Image.fromarray(image).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def halved(image):
    return encoded(image)[: len(encoded(image)) // 2]


def flipped(image):
    data = bytearray(encoded(image))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def check(folder):
    source = Folder(folder)
    return check_images(source, source.keys(), "images")


def test_a_folder_is_read_recursively_in_order_with_hashes(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    kinds = {"b.png": "PNG", "a/z.PNG": "PNG", "a/b/c.jpg": "JPEG", "B.webp": "WEBP"}
    for name, kind in kinds.items():
        (tmp_path / name).write_bytes(encoded(photograph("cat"), kind))
    (tmp_path / "a/notes.txt").write_text("no image")
    images, unreadable = check(tmp_path)
    assert list(images) == ["B.webp", "a/b/c.jpg", "a/z.PNG", "b.png"]
    assert unreadable == {}
    for key, image in images.items():
        data = (tmp_path / key).read_bytes()
        assert image.sha256 == hashlib.sha256(data).hexdigest()
        assert (image.path, image.height, image.width) == (key, 96, 128)
    # z.PNG and b.png hold the same bytes: both are kept.
    assert images["a/z.PNG"].sha256 == images["b.png"].sha256


@pytest.mark.parametrize(
    ("make", "pixels"),
    [
        (encoded, lambda image: image),
        (lambda image: encoded(image[..., 1]), lambda image: image[..., [1, 1, 1]]),
        (lambda image: encoded(image[..., 1] > 99), lambda image: (image > 99) * 255),
        (turned, lambda image: np.rot90(image, -1)),
    ],
    ids=["RGB", "grey", "black and white", "turned"],
)
def test_an_image_of_another_kind_is_converted(tmp_path, make, pixels):
    image = np.repeat(photograph("drum")[..., 1:2], 3, axis=2)
    (tmp_path / "a.png").write_bytes(make(image))
    images, unreadable = check(tmp_path)
    read = read_image(Folder(tmp_path), "a.png")
    assert unreadable == {}
    assert read.shape == (images["a.png"].height, images["a.png"].width, 3)
    np.testing.assert_array_equal(read, pixels(image))


def test_a_cmyk_photograph_is_converted(tmp_path):
    (tmp_path / "a.jpg").write_bytes(cmyk(photograph("drum")))
    images, unreadable = check(tmp_path)
    assert (list(images), unreadable) == (["a.jpg"], {})
    # JPEG's loss alone is between them: inverted ink would be far off.
    difference = read_image(Folder(tmp_path), "a.jpg") - 1.0 * photograph("drum")
    assert np.abs(difference).mean() < 8


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (halved, "cannot be decoded"),
        (flipped, "cannot be decoded"),
        (lambda _: b"", "is not an image that can be read"),
        (lambda _: b"<html>not found</html>", "is not an image that can be read"),
        (lambda image: encoded(image[..., 0].astype(np.uint16)), "convert it to 8-bit"),
        (with_alpha, "convert it to 8-bit RGB or grey without alpha"),
    ],
    ids=["cut", "damaged", "empty", "a web page", "16 bits", "alpha"],
)
def test_an_image_that_cannot_be_used_is_named_with_why(tmp_path, make, words):
    (tmp_path / "bad.png").write_bytes(make(photograph("cat")))
    (tmp_path / "good.png").write_bytes(encoded(photograph("cat")))
    images, unreadable = check(tmp_path)
    assert (list(images), list(unreadable)) == (["good.png"], ["bad.png"])
    assert words in unreadable["bad.png"]


def test_an_image_that_went_away_is_named(tmp_path):
    images, unreadable = check_images(Folder(tmp_path), ["gone.png"], "images")
    assert images == {}
    assert unreadable["gone.png"].endswith("cannot be read: No such file or directory")


def test_a_name_that_records_cannot_hold_is_named(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")  # Latin-1, as in old archives
    (tmp_path / name).write_bytes(encoded(photograph("cat")))
    images, unreadable = check(tmp_path)
    assert (images, unreadable) == ({}, {name: "its name is not UTF-8: rename it"})


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder of tensorflow-datasets with one data set, built without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Twins(tfds.core.GeneratorBasedBuilder):
        """Photographs and the same at half the size, as div2k has them."""

        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="half"),)

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3))
            features = {"hr": image, "lr": image, "name": tfds.features.Text()}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            splits = {"train": NAMES, "validation": ["fig"]}
            return {key: self._generate_examples(splits[key]) for key in splits}

        def _generate_examples(self, names):
            for number, name in enumerate(names):
                images = {"hr": photograph(name), "lr": small_photograph(name)}
                files = {key: io.BytesIO(encoded(images[key])) for key in images}
                yield number, files | {"name": name}

    folder = tmp_path_factory.mktemp("tfds")
    builder = Twins(config="half", data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder


@pytest.fixture
def data_dir(prepared, tmp_path, monkeypatch):
    """A copy that a test may damage, where TFDS_DATA_DIR says."""
    folder = tmp_path / "tfds"
    shutil.copytree(prepared, folder)
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    return folder


def edit_info(data_dir, **fields):
    path = data_dir / "twins/half/1.0.0/dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def encode_tfds(source, out, *arguments):
    command = ["encode", "--source", source, "--quality", "10", "--out", str(out)]
    return cli.run([*command, *arguments])


@pytest.mark.parametrize(
    ("source", "names", "read"),
    [
        ("tfds:twins/half:train", NAMES, photograph),
        ("tfds:twins", NAMES, photograph),
        ("tfds:twins/half:1.0.0:train[1:]:hr", NAMES[1:], photograph),
        ("tfds:twins/half:1.*.*", NAMES, photograph),
        ("tfds:twins/half:train[:1]+validation", (NAMES[0], "fig"), photograph),
        ("tfds:twins/half:train:lr", NAMES, small_photograph),
        ("tfds:twins/half::lr", NAMES, small_photograph),
    ],
)
def test_records_hold_a_prepared_data_sets_pixels(
    data_dir, tmp_path, source, names, read
):
    side = len(read(names[0]))
    out = tmp_path / "out"
    assert encode_tfds(source, out, "--crop", str(side)) == cli.DONE
    records, contents = manifest.open_records(out, "cir encode")
    assert contents["source"].startswith(source.split("::")[0])
    expected = [
        (f"{number:07d}", x, read(name)[:, x : x + side])
        for number, name in enumerate(names)
        for x in (0, side // 3)
    ]
    for payload, (key, x, clean) in zip(records, expected, strict=True):
        record = Record.from_bytes(payload)
        assert (record.source, record.origin) == (key, (0, x))
        np.testing.assert_array_equal(decode(record.clean), clean)


WITHOUT_TENSORFLOW = """
import sys
from cir_jax import cli
status = cli.run(sys.argv[1:])
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules, "TensorFlow was imported"
sys.exit(status)
"""


def test_tensorflow_is_not_imported(data_dir, tmp_path):
    # One that could be imported, and would then be among the modules.
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "tensorflow.py").write_text("__version__ = '2.20.0'\n")
    path = os.pathsep.join([str(tmp_path / "fake"), *filter(None, sys.path)])
    command = ["encode", "--source", "tfds:twins", "--quality", "10", "--crop", "96"]
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, *command, "--out", tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"wrote {tmp_path / 'out'}: ")


def test_a_source_travels_to_other_processes(data_dir, monkeypatch):
    source = open_source("tfds:twins/half:train:lr")
    data = pickle.dumps(source)
    assert len(data) < 1000
    monkeypatch.delenv("TFDS_DATA_DIR")  # what is sent says where the data set is
    read = read_image(pickle.loads(data), "0000002")
    np.testing.assert_array_equal(read, small_photograph(NAMES[2]))


@pytest.mark.slow
def test_workers_read_the_same_of_a_data_set(data_dir, tmp_path):
    shards = []
    for workers in ("0", "1"):
        out = tmp_path / workers
        encode_tfds("tfds:twins", out, "--crop", "96", "--workers", workers)
        shards.append({path.name: path.read_bytes() for path in out.glob("records-*")})
    assert shards[0] == shards[1] and len(shards[0]) >= 3


def test_the_home_folder_may_be_a_tilde(data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(data_dir.parent))
    monkeypatch.setenv("TFDS_DATA_DIR", "~/tfds")
    assert len(open_source("tfds:twins").keys()) == 3


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("tfds:twin", r"no prepared data set twin below .*/tfds: with tensorflow "
         r"installed run `tfds build twin --file_format=array_record`, or set TFDS_"),
        ("tfds:twins/third", "no prepared data set twins/third below"),
        ("tfds:twins/half:2.0.0", "no prepared data set twins/half:2.0.0 below"),
        ("tfds:", r"give it as tfds:NAME\[/CONFIG\]"),
        ("tfds:twins:train:hr:lr", r"give it as tfds:NAME\[/CONFIG\]"),
        ("tfds:no such", r"tfds:no such:train cannot be opened \(.*\): give tfds:NAME"),
        ("tfds:twins:trian", "split.* of twins 'trian': did you mean 'train'.*known "
         "are train, validation"),
        ("tfds:twins:train[5:9]", r"split, or slice of one, of twins 'train\[5:9\]'"),
        ("tfds:twins:train[:0%]", r"split, or slice of one, of twins 'train\[:0%\]'"),
        ("tfds:twins:train[x", r"split, or slice of one, of twins 'train\[x'"),
        ("tfds:twins:train:h", "unknown image feature of twins 'h': did you mean 'hr'"),
        ("tfds:twins:train:name", "feature of twins 'name': known are hr, lr"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_one_clear_sentence(data_dir, tmp_path, source, words):
    with pytest.raises(UserError, match=words) as caught:
        encode_tfds(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_data_set_stored_for_tensorflow_is_refused(data_dir):
    edit_info(data_dir, fileFormat="tfrecord")
    words = "stored as tfrecord, .* run `tfds build twins --file_format=array_record"
    with pytest.raises(UserError, match=words):
        open_source("tfds:twins").keys()
    # `tfds convert_format` puts another format beside the first.
    edit_info(data_dir, alternativeFileFormats=["array_record"])
    read = read_image(open_source("tfds:twins:train"), "0000001")
    np.testing.assert_array_equal(read, photograph(NAMES[1]))


def test_a_data_set_of_other_images_asks_for_one(data_dir):
    path = data_dir / "twins/half/1.0.0/features.json"
    features = json.loads(path.read_text())
    named = features["featuresDict"]["features"]
    named["left"], named["right"] = named.pop("hr"), named.pop("lr")
    path.write_text(json.dumps(features))
    words = "features left, right: give one of them, as in tfds:twins:train:left"
    with pytest.raises(UserError, match=words):
        open_source("tfds:twins").keys()
    del named["left"], named["right"]
    path.write_text(json.dumps(features))
    with pytest.raises(UserError, match="has no image feature: give another one"):
        open_source("tfds:twins:validation").keys()


def cut_shard(folder):
    shard = folder / "twins-train.array_record-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-1000])


def lose_shard(folder):
    (folder / "twins-train.array_record-00000-of-00001").unlink()


@pytest.mark.parametrize("damage", [cut_shard, lose_shard])
def test_damaged_data_is_named(data_dir, tmp_path, damage):
    damage(data_dir / "twins/half/1.0.0")
    words = "no image of tfds:twins:train can be read; .*: 0000000 cannot be read"
    with pytest.raises(UserError, match=words):
        encode_tfds("tfds:twins", tmp_path / "out")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_metadata_is_named(data_dir, name):
    (data_dir / "twins/half/1.0.0" / name).write_text("{")
    with pytest.raises(UserError, match=r"cannot be opened \(.*\): .* build the data"):
        open_source("tfds:twins").keys()


def test_without_tensorflow_datasets_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'cir_jax\[tfds\]'"):
        encode_tfds("tfds:anything", tmp_path / "out")
