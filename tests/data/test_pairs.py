import contextlib
import itertools
import re

import numpy as np
import pytest

from cir_jax import symmetries
from cir_jax.codecs import get_codec
from cir_jax.data import pairs, tfrecord
from cir_jax.data.recipes import Recipe, get_recipe
from cir_jax.data.records import Record, Version, encode_lossless
from cir_jax.errors import UserError
from cir_jax.resize import downscale


@pytest.fixture(scope="module")
def source(photographs):
    """Twelve records of 64x64 crops, each at qualities 10 and 90."""
    codec, records = get_codec("jpeg"), []
    for image in photographs.values():
        for x in (0, 100, 200):
            clean = np.ascontiguousarray(image[50:114, x : x + 64])
            versions = tuple(
                Version("jpeg", quality, 0, codec.encode(clean, quality))
                for quality in (10, 90)
            )
            record = Record(encode_lossless(clean), "photo", (50, x), 1, versions)
            records.append(record.to_bytes())
    return records


def read(source, count, **changes):
    options = {
        "seed": 3, "start": 0, "batch_size": 4, "patch": 32, "grid_phase": "random",
    }  # fmt: skip
    with contextlib.closing(pairs.batches(source, **options | changes)) as batches:
        return list(itertools.islice(batches, count))


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name in ("degraded", "clean"):
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_have_the_shape_that_was_asked_for(source):
    (batch,) = read(source, 1)
    for name in ("degraded", "clean"):
        assert batch[name].shape == (4, 32, 32, 3)
        assert batch[name].dtype == np.uint8


def test_another_version_shows_the_same_place_at_another_quality(source):
    without = read(source, 6, codecs=("jpeg",))
    batches = read(source, 6, codecs=("jpeg",), other=True)
    assert_equal(without, batches)  # all else is as without it
    for batch in batches:
        assert set(batch["quality"]) <= {10, 90}
        np.testing.assert_array_equal(batch["quality"] + batch["other_quality"], 100)
        other, degraded, clean = (
            np.abs(batch[name].astype(float) - batch["clean"]).mean(axis=(1, 2, 3))
            for name in ("other", "degraded", "clean")
        )
        assert other.max() < 20 and clean.max() == 0
        np.testing.assert_array_equal(other < degraded, batch["other_quality"] == 90)


def test_another_version_is_the_same_where_there_is_no_other(source):
    for batch in read(source, 2, qualities=(10,), other=True):
        np.testing.assert_array_equal(batch["other"], batch["degraded"])
        np.testing.assert_array_equal(batch["other_quality"], 10)


def test_an_online_recipe_makes_another_version_of_the_same_label(source):
    recipe = Recipe(("jpeg 10,30", "webp 40"))
    seen = set()
    for batch in read(source, 4, recipe=recipe, codecs=("jpeg", "webp"), other=True):
        columns = (batch[name] for name in ("codec", "quality", "other_quality"))
        seen |= {tuple(map(int, row)) for row in zip(*columns, strict=True)}
    assert seen == {(0, 10, 30), (0, 30, 10), (1, 40, 40)}


def test_the_shapes_of_batches_are_told_before_there_are_any(source):
    wanted = {"codecs": ("jpeg",), "tasks": ("jpeg",), "second": True, "other": True}
    (batch,) = read(source, 1, **wanted)
    told = pairs.batch_shapes(4, 32, 1, **wanted)
    assert told == {name: (x.shape, x.dtype) for name, x in batch.items()}


def test_degraded_and_clean_show_the_same_place_the_same_way_up(source):
    for batch in read(source, 6):
        error = np.abs(batch["degraded"].astype(float) - batch["clean"])
        assert error.mean() < 20  # a misplaced patch of a photograph errs by far more


def test_a_batch_is_a_function_of_seed_and_number(source):
    straight = read(source, 8)
    assert_equal(read(source, 8), straight)
    assert_equal(read(source, 3, start=5), straight[5:])
    other = read(source, 1, seed=4)
    assert (other[0]["clean"] != straight[0]["clean"]).any()


@pytest.mark.parametrize("recipe", [None, get_recipe("double-jpeg")])
def test_processes_share_each_global_batch(source, recipe):
    options = {"start": 2, "recipe": recipe}
    whole = read(source, 5, **options)
    parts = [read(source, 5, process=p, processes=2, **options) for p in (0, 1)]
    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(source, workers):
    assert_equal(read(source, 7, start=1, workers=workers), read(source, 7, start=1))


def test_an_epoch_visits_every_record_once(source):
    marked = [
        Record(
            encode_lossless(np.full((64, 64, 3), number, np.uint8)),
            "",
            (0, 0),
            1,
            Record.from_bytes(source[0]).versions[:1],
        ).to_bytes()
        for number in range(12)
    ]
    numbers = [
        [
            int(n)
            for batch in read(marked, 3, start=start)
            for n in batch["clean"][:, 0, 0, 0]
        ]
        for start in (0, 3)
    ]
    assert sorted(numbers[0]) == sorted(numbers[1]) == list(range(12))
    assert numbers[0] != numbers[1]


def test_all_eight_symmetries_occur():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    assert len({symmetries.turned(image, turn).tobytes() for turn in range(8)}) == 8


@pytest.mark.parametrize("grid_phase", ["aligned", "random"])
def test_the_grid_phase(grid_phase):
    """Each pixel's value is its place in its 8x8 block, so corners tell the phase."""
    y, x = np.mgrid[:64, :64] % 8
    place = np.stack([8 * y + x] * 3, axis=-1).astype(np.uint8)
    version = Version("jpeg", 10, 0, encode_lossless(place))
    record = Record(encode_lossless(place), "", (0, 0), 1, (version,)).to_bytes()
    corners = {
        int(corner)
        for batch in read([record], 40, patch=16, grid_phase=grid_phase)
        for corner in batch["degraded"][:, ::15, ::15, 0].ravel()
    }
    block_corners = {0, 7, 56, 63}
    if grid_phase == "aligned":
        assert corners == block_corners
    else:
        assert len(corners) > 32


def test_qualities_can_be_chosen(source):
    best = read(source, 6, qualities=(90,))
    error = [np.abs(b["degraded"].astype(float) - b["clean"]).mean() for b in best]
    worst = read(source, 6, qualities=(10,))
    for small, batch in zip(error, worst, strict=True):
        assert small < np.abs(batch["degraded"].astype(float) - batch["clean"]).mean()


ONLINE = {"recipe": get_recipe("double-jpeg")}


def test_an_online_recipe_degrades_afresh_for_every_batch(source):
    """One record, one aligned patch: only the recipe's draws can differ."""
    batches = read(source[:1], 6, patch=64, grid_phase="aligned", **ONLINE)
    degraded = np.concatenate([batch["degraded"] for batch in batches])
    clean = np.concatenate([batch["clean"] for batch in batches])
    errors = np.square(degraded.astype(float) - clean).mean((1, 2, 3))
    assert (errors > 0).all()
    assert len(set(errors)) > 20  # of 24
    assert errors.max() > 4 * errors.min()


def test_an_online_recipe_is_a_function_of_seed_and_number(source):
    straight = read(source, 8, **ONLINE)
    assert_equal(read(source, 8, **ONLINE), straight)
    assert_equal(read(source, 3, start=5, **ONLINE), straight[5:])
    other = read(source, 1, seed=4, **ONLINE)
    assert (other[0]["degraded"] != straight[0]["degraded"]).any()


def test_steps_that_are_kept_change_the_clean_patch_too(photographs):
    clean = np.ascontiguousarray(photographs["autumn"][:64, :64])
    record = Record(encode_lossless(clean), "", (0, 0), 1, ()).to_bytes()
    jpeg = get_codec("jpeg")
    original = jpeg.decode(jpeg.encode(clean, 40))
    whole = [original, jpeg.decode(jpeg.encode(original, 20))]
    recipe = Recipe(("jpeg 40 kept + jpeg 20",))
    for batch in read([record], 2, patch=64, recipe=recipe):
        for pair in zip(batch["clean"], batch["degraded"], strict=True):
            assert any(
                all(
                    np.array_equal(found, symmetries.turned(image, turn))
                    for found, image in zip(pair, whole, strict=True)
                )
                for turn in range(8)
            )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_of_an_online_recipe(source, workers):
    straight = read(source, 7, start=1, **ONLINE)
    assert_equal(read(source, 7, start=1, workers=workers, **ONLINE), straight)


@pytest.mark.parametrize("codec", ["jpeg", "webp", "jpeg:4:4:4"])
@pytest.mark.parametrize(("grid_phase", "step"), [("aligned", 8), ("random", 1)])
@pytest.mark.parametrize("scale", [1, 4])
def test_an_online_patch_is_cut_from_the_crop_degraded_as_a_whole(
    photographs, codec, grid_phase, step, scale
):
    clean = np.ascontiguousarray(photographs["autumn"][: 64 * scale, : 64 * scale])
    record = Record(encode_lossless(clean), "", (0, 0), scale, ()).to_bytes()
    coder = get_codec(codec)
    whole = coder.decode(coder.encode(downscale(clean, scale), 60))
    places = {
        (symmetries.turned(whole[y : y + 16, x : x + 16], turn)).tobytes(): (y, x, turn)
        for y in range(49)
        for x in range(49)
        for turn in range(8)
    }
    found = set()
    recipe = Recipe((f"{codec} 60",))
    for batch in read([record], 6, patch=16, grid_phase=grid_phase, recipe=recipe):
        for degraded, large in zip(batch["degraded"], batch["clean"], strict=True):
            y, x, turn = places[degraded.tobytes()]
            rows, columns = (slice(scale * p, scale * (p + 16)) for p in (y, x))
            expected = symmetries.turned(clean[rows, columns], turn)
            np.testing.assert_array_equal(large, expected)
            found.add((y, x))
    assert all(y % step == x % step == 0 for y, x in found)
    assert len({(y % 16, x % 16) for y, x in found}) > (2 if step == 8 else 12)


@pytest.mark.parametrize("recipe", [None, Recipe(("jpeg 10,90", "webp 50"))])
def test_the_codec_is_told_by_its_number(source, recipe):
    names = ("hevc", "webp", "jpeg")
    batches = read(source, 8, recipe=recipe, codecs=names)
    numbers = np.concatenate([batch["codec"] for batch in batches])
    assert numbers.dtype == np.int32
    assert set(numbers.tolist()) == ({2} if recipe is None else {1, 2})


@pytest.fixture
def damaged(source, tmp_path):
    """The records in two shards, with a flipped byte in each of three."""
    shards = [tmp_path / "a.tfrecord", tmp_path / "b.tfrecord"]
    for shard, half in zip(shards, (source[:6], source[6:]), strict=True):
        with tfrecord.write_shard(shard) as write:
            for record in half:
                write(record)
    for shard, row in ((shards[0], 3), (shards[0], 4), (shards[1], 3)):
        data = bytearray(shard.read_bytes())
        data[tfrecord.read_index(shard)[row, 0] + 200] ^= 1
        shard.write_bytes(data)
    return tfrecord.RecordSource(shards)


def test_a_damaged_record_stops_the_reading(damaged):
    with pytest.raises(UserError, match=r"[ab].tfrecord: the record at offset \d+ is"):
        read(damaged, 3)


def test_damaged_records_are_replaced_named_and_counted(damaged, source, capsys):
    replaced = read(damaged, 6, damaged=3)
    whole = read(source, 6)
    same = [
        (a["degraded"][i] == b["degraded"][i]).all()
        for a, b in zip(replaced, whole, strict=True)
        for i in range(4)
    ]
    assert same.count(False) == 2 * 3  # two epochs
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, start=1):
        words = (
            rf"skipped {number} of at most 3: .*[ab]\.tfrecord: the record at offset"
        )
        assert re.match(words, line)
    assert sorted(replaced[0]) == ["clean", "degraded"]


def test_one_damaged_record_too_many_stops_the_reading(damaged):
    words = r"more than config.data.damaged=2 records are damaged; the last: .*tfrecord"
    with pytest.raises(UserError, match=words):
        read(damaged, 3, damaged=2)


def test_when_all_are_damaged_it_says_so(source, tmp_path):
    with tfrecord.write_shard(tmp_path / "a.tfrecord") as write:
        write(source[0])
    data = bytearray((tmp_path / "a.tfrecord").read_bytes())
    data[200] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(data)
    with pytest.raises(UserError, match="the record at offset 0 is damaged"):
        read(tfrecord.RecordSource([tmp_path / "a.tfrecord"]), 1, damaged=9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid_phase": "alined"}, "did you mean 'aligned'"),
        ({"processes": 3}, "does not divide among 3 processes"),
        ({"patch": 65}, "64x64 pixels, smaller than config.data.patch=65"),
        ({"qualities": (40, 50)}, "no version of quality 40, 50"),
        ({"qualities": (40,), **ONLINE}, "an online recipe makes its own"),
        ({"codecs": ("hevc", "vvc")}, r"by jpeg, the model knows \('hevc', 'vvc'\)"),
    ],
)
def test_bad_options_are_refused(source, changes, words):
    with pytest.raises(UserError, match=words):
        read(source, 1, **changes)
