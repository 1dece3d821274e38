"""Mixes: several records folders read as one."""

import collections
import json
import re
import shutil

import numpy as np
import pytest
from batches import assert_same, joined, taken

from cir_jax import cli, image_io, photos
from cir_jax.data import manifest, pairs, recipes
from cir_jax.data.mixes import MixedSource
from cir_jax.data.records import Record
from cir_jax.errors import UserError

TASKS = ("noise 15", "noise 25", "noise 50", "haze")


def encode(*arguments):
    assert cli.run(["encode", *map(str, arguments)]) == cli.DONE


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Two folders: clean crops for noise on the fly, and pairs; of 2 and 3 crops."""
    root = tmp_path_factory.mktemp("parts")
    for name, images in {
        "a": ("cat", "dogs"),
        "b": ("drum", "fruit", "seeds"),
    }.items():
        for image in images:
            pixels = image_io.read_rgb(photos.folder("train") / f"{image}.webp")
            crop = pixels[50:114, 60:124]
            image_io.write_png(root / name / f"{image}.png", crop)
            hazy = (128 + crop // 2).astype(np.uint8)
            image_io.write_png(root / f"hazy {name}" / f"{image}.png", hazy)
    fixed = ("--crop", 64, "--source")
    encode(*fixed, root / "a", "--recipe", "online:noise", "--out", root / "noise")
    pairs_of_b = ("--pairs", f"haze:0={root / 'hazy b'}")
    encode(*fixed, root / "b", *pairs_of_b, "--out", root / "haze")
    return root


def mix(out, *parts):
    adds = [word for repeat, part in parts for word in ("--add", repeat, part)]
    return cli.run([*map(str, ("mix", *adds, "-o", out))])


@pytest.fixture
def mixed(parts, tmp_path):
    """An epoch of 3 x 2 noisy and 1 x 3 hazy crops."""
    assert mix(tmp_path / "all", (3, parts / "noise"), (1, parts / "haze")) == cli.DONE
    return tmp_path / "all"


def read(folder, count, **changes):
    source, contents = manifest.open_records(folder, "")
    options = {
        "seed": 3, "start": 0, "batch_size": 3, "patch": 32, "grid_phase": "random",
        "recipe": recipes.for_reader("", contents),
    }  # fmt: skip
    return taken(pairs.batches(source, **options | changes), count)


def test_a_mix_copies_nothing_and_opens_as_records(mixed, parts, capsys):
    assert [path.name for path in mixed.iterdir()] == [manifest.NAME]
    source, contents = manifest.open_records(mixed, "")
    assert len(source) == contents["records"] == 3 * 2 + 3
    assert (contents["scale"], contents["grey"]) == (1, False)
    names = [
        (record.part, Record.from_bytes(record.payload).source) for record in source
    ]
    assert collections.Counter(names) == {
        (0, "cat.png"): 3, (0, "dogs.png"): 3,
        (1, "drum.png"): 1, (1, "fruit.png"): 1, (1, "seeds.png"): 1,
    }  # fmt: skip
    assert mix(mixed, (3, parts / "noise"), (1, parts / "haze")) == cli.DONE
    assert "9 records an epoch (3 x 2 + 1 x 3)" in capsys.readouterr().out


def test_an_epoch_has_each_part_as_often_as_it_is_repeated(mixed):
    tasks = [batch["task"] for batch in read(mixed, 6, tasks=TASKS)]
    for epoch in (tasks[:3], tasks[3:]):
        assert (np.concatenate(epoch) == TASKS.index("haze")).sum() == 3
    assert set(np.concatenate(tasks).tolist()) == {0, 1, 2, 3}
    # Shuffled over the whole epoch, not part by part.
    assert len({tuple(epoch == 3) for epoch in tasks}) > 1


def test_each_part_is_degraded_as_its_manifest_says(mixed):
    for batch in read(mixed, 6, tasks=TASKS):
        degraded, clean = batch["degraded"].astype(int), batch["clean"].astype(int)
        error = np.square(degraded - clean).mean((1, 2, 3)) ** 0.5
        for task, level, pair in zip(
            batch["task"], error, zip(degraded, clean, strict=True), strict=True
        ):
            if TASKS[task] == "haze":
                np.testing.assert_array_equal(pair[0], 128 + pair[1] // 2)
            else:
                deviation = int(TASKS[task].split()[1])
                assert 0.6 * deviation < level < 1.1 * deviation  # clipped at the ends


def test_a_batch_of_a_mix_is_a_function_of_seed_and_number(mixed):
    options = {"tasks": TASKS, "second": True, "batch_size": 4}
    straight = read(mixed, 7, **options)
    assert_same(read(mixed, 3, start=4, **options), straight[4:])
    other = read(mixed, 7, seed=4, **options)
    assert (straight[0]["clean"] != other[0]["clean"]).any()
    shares = [read(mixed, 7, process=p, processes=2, **options) for p in (0, 1)]
    assert_same(joined(*shares), straight)


@pytest.mark.slow
def test_workers_change_nothing_of_a_mix(mixed):
    assert_same(read(mixed, 5, workers=2), read(mixed, 5))


def test_what_a_training_of_a_mix_meets(mixed):
    _, contents = manifest.open_records(mixed, "")
    reading = recipes.for_reader("", contents)
    assert reading[0].degradations == ("noise 15,25,50",) and reading[1] is None
    noise = {("noise", 15), ("noise", 25), ("noise", 50)}
    assert recipes.kinds(reading, contents) == noise | {("haze", 0)}
    assert recipes.labels(reading, contents) == {"noise", "haze"}


def test_positions_of_parts():
    source = MixedSource([[b"a", b"b"], [b"c"]], [2, 3])
    assert [record.payload for record in source] == [*b"a b a b c c c".split()]
    assert (source.span(0), source.span(1)) == (range(4), range(4, 7))
    with pytest.raises(IndexError, match="record 7 of 7"):
        source[7]


def test_a_mix_and_its_parts_can_be_moved(parts, tmp_path):
    shutil.copytree(parts, tmp_path / "here")
    here, there = tmp_path / "here", tmp_path / "there"
    mix(here / "all", (2, here / "noise"), (1, here / "haze"))
    before = read(here / "all", 2)
    here.rename(there)
    assert_same(read(there / "all", 2), before)


def test_a_part_that_was_made_again_is_named(parts, tmp_path):
    shutil.copytree(parts / "noise", tmp_path / "noise")
    mix(tmp_path / "all", (2, tmp_path / "noise"))
    shutil.rmtree(tmp_path / "noise")
    with pytest.raises(UserError, match="/noise does not exist: make it with\n  cir"):
        manifest.open_records(tmp_path / "all", "")
    shutil.copytree(parts / "haze", tmp_path / "noise")
    with pytest.raises(UserError, match=r"/noise is another than when \S+/all was mix"):
        manifest.open_records(tmp_path / "all", "")


def test_a_damaged_record_of_a_mix_is_counted_once(parts, tmp_path, capsys):
    shutil.copytree(parts / "haze", tmp_path / "haze")
    mix(tmp_path / "all", (4, tmp_path / "haze"), (1, parts / "noise"))
    (shard,) = (tmp_path / "haze").glob("*.tfrecord")
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    batches = read(tmp_path / "all", 15, damaged=1)
    assert len(batches) == 15
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if "skipped" in line
    ]
    assert line.startswith(f"skipped 1 of at most 1: {shard}: the record at offset 0")
    with pytest.raises(UserError, match="the record at offset 0 is damaged"):
        read(tmp_path / "all", 15)

    assert cli.run(["verify", str(tmp_path / "all")]) == cli.SOME_FAILED
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"damaged: {shard} at offset 0: ")
    assert "/all: 4 records, 2 versions read, damages: 1" in last


def test_verify_and_inspect_go_through_the_parts(mixed, parts, capsys):
    assert cli.run(["verify", str(mixed)]) == cli.DONE
    words = f"{mixed}: 5 records, 3 versions read, all as the manifest says"
    assert capsys.readouterr().out.strip() == words
    assert cli.run(["inspect", str(mixed)]) == cli.DONE
    printed = capsys.readouterr().out
    assert f"{parts / 'noise'}, 3 times an epoch: 2 records of {parts / 'a'}" in printed
    assert f"{parts / 'haze'}, 1 times an epoch: 3 records of {parts / 'b'}" in printed
    rows = re.findall(r"^\| (\w+) +\| (\d+) +\|", printed, re.MULTILINE)
    assert {(kind, int(n)) for kind, n in rows} == {
        ("noise", 15), ("noise", 25), ("noise", 50), ("haze", 0)
    }  # fmt: skip
    assert (mixed / "contact_sheet.png").is_file()


@pytest.mark.parametrize(
    ("adds", "words"),
    [
        ([("3", "{0}/noise"), ("x", "{0}/haze")], "--add x .*/haze: give a whole num"),
        ([("0", "{0}/noise")], "--add 0 .*/noise: give at least 1"),
        ([("1", "{0}/snow")], "records folder .*/snow does not exist: make it with"),
        ([("1", "{0}/a")], "records folder .*/a is not finished: make it with"),
        ([("1", "{0}/noise"), ("2", "{0}/noise")], "/noise is given twice: add up"),
        ([("1", "{0}/noise"), ("2", "{1}/grey")], "has grey=True, but .*noise has gre"),
        ([("1", "{0}/noise"), ("2", "{1}/half")], "has scale=2, but .*noise has scale"),
        ([("1", "{1}/mix")], "is a mix: name its parts instead"),
        ([("1", "{0}/noise")], "is not empty: give a new folder"),
        ([("1", "{1}/out")], "is --out: give a new folder there"),
    ],
)
def test_mixes_that_cannot_be_are_one_sentence(parts, tmp_path, adds, words):
    words_of_adds = [text.format(parts, tmp_path) for add in adds for text in add]
    if "grey" in words or "scale" in words:
        fixed = ("--crop", 64, "--source", parts / "a", "--recipe", "online:noise")
        encode(*fixed, "--grey", "--out", tmp_path / "grey")
        encode(*fixed, "--scale", 2, "--out", tmp_path / "half")
    if "is a mix" in words:
        mix(tmp_path / "mix", (1, parts / "noise"))
    out = tmp_path / "out"
    if "is not empty" in words:
        mix(out, (2, parts / "noise"))
    before = {path: path.read_bytes() for path in out.glob("*")}
    with pytest.raises(UserError, match=words) as caught:
        mix(out, *zip(words_of_adds[::2], words_of_adds[1::2], strict=True))
    assert "\n" not in str(caught.value).split("make it with")[0]
    assert {path: path.read_bytes() for path in out.glob("*")} == before
    assert out.exists() == bool(before)


def test_an_output_in_the_way_is_named(parts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: give a folder"):
        mix(tmp_path / "file", (1, parts / "noise"))


@pytest.mark.parametrize(
    "change",
    [
        lambda contents: {},
        lambda contents: contents | {"parts": [{"folder": "noise"}]},
        lambda contents: contents | {"parts": 3},
    ],
)
def test_a_damaged_manifest_of_a_mix_is_named(mixed, change):
    path = mixed / manifest.NAME
    contents = change(json.loads(path.read_text()))
    path.write_text(json.dumps(contents))
    with pytest.raises(UserError, match=r"manifest.json is damaged: make the records"):
        manifest.open_records(mixed, "cir mix")


def test_options_of_the_reader_that_do_not_fit_a_mix(mixed):
    _, contents = manifest.open_records(mixed, "")
    with pytest.raises(UserError, match="online:noise, but the records are a mix"):
        recipes.for_reader("online:noise", contents)
    with pytest.raises(UserError, match="an online recipe makes its own"):
        read(mixed, 1, qualities=(0,))
