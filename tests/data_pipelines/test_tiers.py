"""Folds, and records whose versions a network has restored."""

import itertools
import json
import re
import shutil
import zlib

import numpy as np
import pytest
import tiny
from batches import assert_same, joined, taken

from cir_jax import cli, image_io, photos, weights
from cir_jax.data import manifest, tiers
from cir_jax.data.records import Record, Version, decode
from cir_jax.errors import UserError
from cir_jax.restore import Restorer
from data_pipelines import job

NAMES = ("cat", "dogs", "drum", "fruit", "seeds", "stream")
TASKS = ("haze", "jpeg", "jpeg 10")


def number_of(name, count=2):
    """The fold of an image, calculated here."""
    return zlib.crc32(name.encode()) % count + 1


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Six clean images of 64 x 64, and hazy ones of the first five."""
    root = tmp_path_factory.mktemp("images")
    for name in NAMES:
        pixels = image_io.read_rgb(photos.folder("train") / f"{name}.webp")
        image_io.write_png(root / "clean" / f"{name}.png", pixels[50:114, 60:124])
    for name in NAMES[:5]:
        clean = image_io.read_rgb(root / "clean" / f"{name}.png")
        hazy = (128 + clean // 2).astype(np.uint8)
        image_io.write_png(root / "hazy" / f"{name}.png", hazy)
    return root


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two weights files: one makes images lighter, the other darker."""
    folder = tmp_path_factory.mktemp("runs")
    for change, name in ((0.05, "a"), (-0.05, "b")):
        model = tiny.light()
        model.head.conv_last.bias[...] += change
        weights.save(folder / f"{name}.safetensors", model, {})
    return folder


def encode(images, out, *arguments):
    fixed = ["encode", "--source", str(images / "clean"), "--crop", "64"]
    return cli.run([*fixed, "--out", str(out), *map(str, arguments)])


@pytest.fixture(scope="session")
def records(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("full") / "records"
    assert encode(images, out, "--quality", "10,30") == cli.DONE
    return out


def make(records, out, *given):
    words = [word for text in given for word in ("--weights", str(text))]
    return cli.run(["tiers", str(records), *words, "-o", str(out)])


@pytest.fixture(scope="session")
def made(records, runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("tiers") / "tiers"
    both = [f"{k}/2={runs}/{name}.safetensors" for k, name in ((1, "a"), (2, "b"))]
    assert make(records, out, *both) == cli.DONE
    return out


def opened(folder):
    source, contents = manifest.open_records(folder, "")
    return [Record.from_bytes(payload) for payload in source], contents


# ------------------------------------------------------------------------- folds


def test_folds_share_the_images_among_them(images, tmp_path):
    for fold in ("1/2", "2/2"):
        out = tmp_path / fold[0]
        assert encode(images, out, "--quality", "10", "--fold", fold) == cli.DONE
        found, contents = opened(out)
        expected = sorted(
            f"{name}.png" for name in NAMES if number_of(f"{name}.png") == int(fold[0])
        )
        assert [record.source for record in found] == expected
        assert contents["fold"] == fold
    with pytest.raises(UserError, match="1 holds records of other images or settings"):
        encode(images, tmp_path / "1", "--quality", "10")


def test_partners_of_another_fold_are_not_missed(images, tmp_path, capsys):
    for fold in ("1/2", "2/2"):
        pairs = ("--pairs", f"haze:0={images / 'hazy'}", "--fold", fold)
        status = encode(images, tmp_path / fold[0], *pairs)
        lacking = number_of("stream.png") == int(fold[0])
        assert status == (cli.SOME_FAILED if lacking else cli.DONE)
        printed = capsys.readouterr().err
        assert ("hazy/stream: is missing" in printed) == lacking
        assert "fits no clean image" not in printed


def test_records_without_folds_are_as_they_were(records):
    assert "fold" not in json.loads((records / job.PLAN).read_text())


@pytest.mark.parametrize("fold", ["1", "0/2", "3/2", "1/1", "a/b", "1/2/3", ""])
def test_what_is_no_fold_is_one_sentence(images, tmp_path, fold):
    with pytest.raises(UserError, match=re.escape(f"--fold {fold}: give K/N with K")):
        encode(images, tmp_path / "out", "--quality", "10", "--fold", fold)
    assert not (tmp_path / "out").exists()


def test_a_fold_without_images_is_named(images, tmp_path):
    empty = next(n for n in range(1, 100) if n not in {
        number_of(f"{name}.png", 99) for name in NAMES})  # fmt: skip
    with pytest.raises(UserError, match=rf"clean is in --fold {empty}/99: give fewer"):
        encode(images, tmp_path / "out", "--quality", "10", "--fold", f"{empty}/99")


# ------------------------------------------------------------------------- writing


def test_each_image_is_restored_by_weights_that_never_saw_it(made, records, runs):
    before, _ = opened(records)
    after, contents = opened(made)
    unseen = {1: Restorer(runs / "b.safetensors"), 2: Restorer(runs / "a.safetensors")}
    assert len({number_of(record.source) for record in before}) == 2
    for old, new in zip(before, after, strict=True):
        assert (old.clean, old.source, old.origin) == (
            new.clean,
            new.source,
            new.origin,
        )
        for was, version in zip(old.versions, new.versions, strict=True):
            expected = unseen[number_of(old.source)](decode(was.image))
            np.testing.assert_array_equal(decode(version.restored), expected)
            assert was == Version(version.codec, version.quality, version.bits,
                                  version.image, version.history)  # fmt: skip
    assert sorted(contents["tiers"]["weights"]) == ["1/2", "2/2"]
    assert contents["versions"] == {"jpeg 10": 6, "jpeg 30": 6}
    assert contents["recipe"]["degradations"] == ["jpeg 10,30"]


def test_records_with_restored_images_are_verified_and_inspected(made, capsys):
    assert cli.run(["verify", str(made)]) == cli.DONE
    assert "6 records, 12 versions read, all as" in capsys.readouterr().out
    assert cli.run(["inspect", str(made)]) == cli.DONE
    head, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    ]
    assert head[-2:] == ["PSNR", "restored"]
    assert [row[:2] for row in rows] == [["jpeg", "10"], ["jpeg", "30"]]
    assert all(20 < float(row[-1]) < float(row[-2]) for row in rows)


def test_one_network_for_all_says_what_that_means(records, runs, tmp_path, capsys):
    assert make(records, tmp_path / "out", runs / "a.safetensors") == cli.DONE
    printed = " ".join(capsys.readouterr().err.split())
    assert "restores all images, also those it was trained on" in printed


def test_an_interrupted_run_goes_on(made, records, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "LARGEST_SHARD", 2)
    out, given = tmp_path / "out", runs / "a.safetensors"
    restored, calls = Restorer.__call__, itertools.count()

    def interrupted(self, image):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return restored(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(Restorer, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(records, out, given)
    (first,) = out.glob("*.tfrecord")
    assert not (out / manifest.NAME).exists() and not list(out.glob(".*"))
    before = first.stat().st_mtime_ns
    with pytest.raises(UserError, match="holds records of other images or settings"):
        make(records, out, runs / "b.safetensors")
    assert make(records, out, given) == cli.DONE
    assert first.stat().st_mtime_ns == before
    assert len(opened(out)[0]) == 6


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["1/2={0}/a.safetensors"], "is in fold 1/2, which all --weights were trained"),
        (["1/2={0}/no"], "no' are neither a file, nor a workdir"),
        (["3/2={0}/a.safetensors"], "--weights 3/2: give K/N with K from 1 to N"),
        (["1/2={0}/a.safetensors"] * 2, "fold 1/2 is given twice"),
        (["{0}/a.safetensors"] * 2, "a.safetensors: give each weights' fold, as in 1/"),
        (["{0}/a.safetensors", "1/2={0}/b.safetensors"], "give all of them the fold"),
        (["1/2={0}/a.safetensors", "2/3={0}/b.safetensors"], "same number of folds"),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence(
    records, runs, tmp_path, given, words
):
    with pytest.raises(UserError, match=words):
        make(records, tmp_path / "out", *(text.format(runs) for text in given))
    assert not (tmp_path / "out").exists()


def test_weights_of_the_wrong_fold_are_found_by_their_trainings_records(
    images, records, runs, tmp_path
):
    trained = []
    for number, fold in enumerate(("1/2", "2/2")):
        encode(images, tmp_path / str(number), "--quality", "10", "--fold", fold)
        config = json.dumps({"data": {"records": "{workdir}/" + str(number)}})
        trained.append(tmp_path / f"{number}.safetensors")
        weights.save(trained[-1], tiny.light(), {"config": config})
    words = r"1/2=\S+/1.safetensors would restore \w+.png, which its training's records"
    with pytest.raises(UserError, match=words):
        make(records, tmp_path / "out", f"1/2={trained[1]}", f"2/2={trained[0]}")
    assert not (tmp_path / "out").exists()
    right = [f"1/2={trained[0]}", f"2/2={trained[1]}"]
    assert make(records, tmp_path / "out", *right) == cli.DONE


def test_records_that_do_not_fit_are_one_sentence(images, made, runs, tmp_path):
    online, small = tmp_path / "online", tmp_path / "small"
    encode(images, online, "--recipe", "online:noise")
    encode(images, small, "--quality", "10", "--scale", "4")
    cli.run(["mix", "--add", "1", str(online), "-o", str(tmp_path / "mix")])
    for folder, words in {
        tmp_path / "nowhere": "nowhere does not exist: make it with",
        tmp_path / "mix": "mix is a mix: run `cir tiers` on each of its parts",
        online: "online holds clean crops alone: encode them without online:",
        made: "tiers holds restored images already",
        small: "small has scale 4: tiers are compared at the same size",
    }.items():
        with pytest.raises(UserError, match=words):
            make(folder, tmp_path / "out", runs / "a.safetensors")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: give a folder"):
        make(made, tmp_path / "file", runs / "a.safetensors")


# ------------------------------------------------------------------------- reading


@pytest.fixture(scope="session")
def mixed(images, made, runs, tmp_path_factory):
    """A mix of restored JPEGs and restored haze."""
    root = tmp_path_factory.mktemp("mixed")
    encode(images, root / "haze", "--pairs", f"haze:0={images / 'hazy'}")
    assert make(root / "haze", root / "restored", runs / "a.safetensors") == cli.DONE
    adds = ("--add", "2", str(made), "--add", "1", str(root / "restored"))
    assert cli.run(["mix", *adds, "-o", str(root / "all")]) == cli.DONE
    return root / "all"


def read(folder, count, **changes):
    source, contents = manifest.open_records(folder, "")
    options = {"seed": 3, "start": 0, "batch_size": 6, "patch": 32} | changes
    return taken(tiers.tier_batches(source, contents, **options), count)


def whole(record):
    """The three images of each version of a record, as they are and mirrored."""
    for version in record.versions:
        images = (version.image, version.restored, record.clean)
        three = np.stack([decode(image) for image in images])
        name = f"{version.codec} {version.quality}"
        for mirrored in (three, three[:, :, ::-1]):
            yield name, mirrored


def test_tiers_show_the_same_window_of_all_three(made):
    """Of the whole crop there is one window, and its mirror image."""
    found, _ = opened(made)
    known = {
        three.tobytes(): (record.source, name)
        for record in found
        for name, three in whole(record)
    }
    batches = read(made, 6, patch=64)
    assert {batch["tiers"].shape for batch in batches} == {(6, 3, 64, 64, 3)}
    assert {batch["tiers"].dtype for batch in batches} == {np.dtype(np.uint8)}
    assert all(batch.keys() == {"tiers"} for batch in batches)
    seen = {element.tobytes() for batch in batches for element in batch["tiers"]}
    assert {known[data] for data in seen} == set(known.values())
    assert len(seen) > 12  # mirrored and not


def test_windows_move(made):
    (batch,) = read(made, 1, batch_size=40, patch=48)
    assert len({element[2].tobytes() for element in batch["tiers"]}) > 36


def test_batches_are_balanced_over_the_tasks_of_a_mix(mixed):
    batches = read(mixed, 5, tasks=TASKS, batch_size=7)
    tasks = np.concatenate([batch["task"] for batch in batches])
    assert tasks.dtype == np.int32
    np.testing.assert_array_equal(tasks, np.arange(35) % 3)
    for batch in batches:
        for task, (low, _, high) in zip(batch["task"], batch["tiers"], strict=True):
            hazy = (low == 128 + high // 2).all()
            assert hazy == (TASKS[task] == "haze")


@pytest.mark.parametrize("tasks", [(), TASKS])
def test_a_batch_of_tiers_is_a_function_of_seed_and_number(mixed, tasks):
    straight = read(mixed, 7, tasks=tasks)
    assert_same(read(mixed, 3, start=4, tasks=tasks), straight[4:])
    other = read(mixed, 1, seed=4, tasks=tasks)
    assert (other[0]["tiers"] != straight[0]["tiers"]).any()
    shares = [read(mixed, 7, process=p, processes=2, tasks=tasks) for p in (0, 1)]
    assert_same(joined(*shares), straight)


@pytest.mark.slow
def test_workers_change_nothing_of_tiers(mixed):
    straight = read(mixed, 5, tasks=TASKS)
    assert_same(read(mixed, 5, tasks=TASKS, workers=2), straight)


def test_a_record_without_the_task_is_passed_over(images, runs, tmp_path):
    """Only five of the six images have a hazy version."""
    pairs = ("--pairs", f"haze:0={images / 'hazy'}", "--pairs",
             f"same:0={images / 'clean'}")  # fmt: skip
    encode(images, tmp_path / "pairs", *pairs)
    make(tmp_path / "pairs", tmp_path / "tiers", runs / "a.safetensors")
    batches = read(tmp_path / "tiers", 8, tasks=("haze", "same"))
    for batch in batches:
        np.testing.assert_array_equal(batch["task"], [0, 1] * 3)


def test_qualities_of_tiers_can_be_chosen(made):
    found, _ = opened(made)
    known = {three.tobytes(): name for record in found for name, three in whole(record)}
    (batch,) = read(made, 1, patch=64, batch_size=20, qualities=(30,))
    assert {known[element.tobytes()] for element in batch["tiers"]} == {"jpeg 30"}


def test_damaged_records_of_tiers_are_replaced(made, tmp_path, capsys):
    shutil.copytree(made, tmp_path / "tiers")
    (shard,) = (tmp_path / "tiers").glob("*.tfrecord")
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    assert len(read(tmp_path / "tiers", 4, damaged=1, tasks=("jpeg",))) == 4
    assert f"skipped 1 of at most 1: {shard}: the" in capsys.readouterr().err
    with pytest.raises(UserError, match="the record at offset 0 is damaged"):
        read(tmp_path / "tiers", 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": 65}, "is 64x64 pixels, smaller than config.data.patch=65"),
        ({"processes": 4}, "does not divide among 4 processes"),
        ({"tasks": ("haze",)}, "versions jpeg 10, which belong to no task"),
        ({"tasks": ("jpeg", "rain")}, "names rain, of which the data has no version"),
        ({"qualities": (20,)}, "no record that can be read has a version"),
    ],
)
def test_options_of_tiers_that_do_not_fit(made, changes, words):
    with pytest.raises(UserError, match=words):
        read(made, 1, **changes)


def test_records_without_restored_images_are_refused(records):
    with pytest.raises(UserError, match="no restored images: make them with `cir ti"):
        read(records, 1)
