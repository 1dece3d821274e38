import re
import shutil

import numpy as np
import pytest
from PIL import Image

from cir_jax import cli
from cir_jax.data import manifest, tfrecord
from cir_jax.data.recipes import Recipe, get_recipe
from cir_jax.data.records import Record, encode_lossless
from cir_jax.errors import UserError
from data_pipelines.encode import encode
from data_pipelines.inspect import inspect
from data_pipelines.sources import open_source
from data_pipelines.verify import verify

PHOTOGRAPHS = open_source("photos:validation")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Crops of the validation photographs at two qualities of two codecs, x4."""
    out = tmp_path_factory.mktemp("made") / "records"
    encode(PHOTOGRAPHS, Recipe(("jpeg 10,90", "hevc 42,27")), out, crop=256, scale=4)
    return out


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "records")


def shard_and_rows(folder):
    (shard,) = folder.glob("*.tfrecord")
    return shard, tfrecord.read_index(shard).tolist()


def rewrite(folder, change):
    """Writes the shard again with good checksums, its second record changed."""
    shard, rows = shard_and_rows(folder)
    payloads = [tfrecord.read_frame(shard, *row) for row in rows]
    payloads[1] = change(payloads[1])
    with tfrecord.write_shard(shard) as write:
        for payload in payloads:
            write(payload)
    return shard.name, rows[1][0]


def test_a_whole_folder_is_clean(folder, capsys):
    assert cli.run(["verify", str(folder)]) == cli.DONE
    out = capsys.readouterr().out
    assert re.search(r"8 records, 32 versions read, all as the manifest says", out)


@pytest.mark.parametrize("record", [0, 3, 7])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_a_flipped_byte_is_found(folder, capsys, record, place):
    shard, rows = shard_and_rows(folder)
    offset, size = rows[record]
    data = bytearray(shard.read_bytes())
    data[offset + int(place * size)] ^= 4
    shard.write_bytes(data)
    assert cli.run(["verify", str(folder)]) == cli.SOME_FAILED
    first, last = capsys.readouterr().out.strip().splitlines()
    assert first.startswith(f"damaged: {shard.name} at offset {offset}: ")
    assert "checksum mismatch" in first
    assert "7 records, 28 versions read, damages: 1; delete the damaged shards" in last


def test_deleting_the_damaged_shard_and_encoding_again_mends_it(folder, made):
    shard, _ = shard_and_rows(folder)
    shard.unlink()
    encode(PHOTOGRAPHS, Recipe(("jpeg 10,90", "hevc 42,27")), folder, crop=256, scale=4)
    assert not verify(folder).damages
    assert shard.read_bytes() == (made / shard.name).read_bytes()


def cut_a_version(payload):
    record = Record.from_bytes(payload)
    first, *rest = record.versions
    first = first.__class__(first.codec, first.quality, first.bits, first.image[:200])
    return Record(
        record.clean, record.source, record.origin, record.scale, (first, *rest)
    ).to_bytes()


def grow_the_clean_crop(payload):
    record = Record.from_bytes(payload)
    clean = encode_lossless(np.zeros((256, 260, 3), np.uint8))
    return Record(
        clean, record.source, record.origin, record.scale, record.versions
    ).to_bytes()


def drop_a_version(payload):
    record = Record.from_bytes(payload)
    return Record(
        record.clean, record.source, record.origin, record.scale, record.versions[1:]
    ).to_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut_a_version, r"version jpeg 10 of \S+ cannot be decoded"),
        (grow_the_clean_crop, r"the clean crop of \S+ is 260x256 pixels, not 256"),
        (lambda payload: b"nothing", "does not hold a clean crop"),
    ],
)
def test_what_checksums_do_not_show_is_found(folder, change, words):
    shard, offset = rewrite(folder, change)
    (damage,) = verify(folder).damages
    assert (damage.shard, damage.offset) == (shard, offset)
    assert re.search(words, damage.reason)


def test_a_shard_of_other_records_is_found(folder):
    shard, _ = rewrite(folder, drop_a_version)
    (damage,) = verify(folder).damages
    assert (damage.shard, damage.offset) == (shard, None)
    assert damage.reason == "its sha256 is not the manifest's"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda shard: shard.unlink(), "is missing"),
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-9]), "is truncated"),
        (
            lambda shard: shard.write_bytes(shard.read_bytes() + b"x"),
            "its sha256 is not",
        ),
        (
            lambda shard: tfrecord.index_path(shard).write_text("0 90\n"),
            "its index has 1 records of 8",
        ),
    ],
)
def test_a_shard_that_is_wrong_as_a_whole_is_found(folder, damage, words):
    shard, _ = shard_and_rows(folder)
    damage(shard)
    damages = verify(folder).damages
    assert {damage.shard for damage in damages} == {shard.name}
    assert words in damages[-1].reason


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_what_is_no_records_folder_is_refused(tmp_path, command):
    with pytest.raises(UserError, match="nowhere does not exist: make it with\n  cir"):
        cli.run([command, str(tmp_path / "nowhere")])


def table(text):
    """Rows of the printed table: {(codec, quality): (versions, bpp, PSNR)}."""
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines()]
    return {
        (row[0], int(row[1])): (int(row[2]), float(row[3] or "nan"), float(row[4]))
        for row in rows
        if len(row) == 5 and row[2].isdecimal()
    }


def test_inspect_prints_a_table_and_draws_a_sheet(folder, capsys):
    assert cli.run(["inspect", str(folder)]) == cli.DONE
    rows = table(capsys.readouterr().out)
    assert list(rows) == [("hevc", 42), ("hevc", 27), ("jpeg", 10), ("jpeg", 90)]
    for worse, better in ((("hevc", 42), ("hevc", 27)), (("jpeg", 10), ("jpeg", 90))):
        assert rows[worse][0] == rows[better][0] == 8
        assert rows[worse][1] < rows[better][1]
        assert rows[worse][2] + 5 < rows[better][2]
    with Image.open(folder / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.std() > 30


def test_inspect_agrees_with_a_calculation_by_hand(folder, tmp_path):
    source, _ = manifest.open_records(folder, "cir encode")
    bits = [Record.from_bytes(payload).versions[0].bits for payload in source]
    _, bpp, _ = table(inspect(folder, tmp_path / "sheet.png"))["jpeg", 10]
    assert bpp == pytest.approx(np.mean(bits) / 64**2, abs=6e-4)


def test_inspect_runs_an_online_recipe_once(tmp_path):
    out = tmp_path / "records"
    recipe = get_recipe("double-jpeg")
    encode(PHOTOGRAPHS, recipe, out, crop=256, online=True)
    source, contents = manifest.open_records(out, "cir encode")
    assert all(Record.from_bytes(payload).versions == () for payload in source)
    assert contents["online"] and contents["versions"] == {}
    rows = table(inspect(out, tmp_path / "sheet.png"))
    assert {codec for codec, _ in rows} == {"jpeg", "jpeg+jpeg"}
    assert sum(count for count, *_ in rows.values()) == 8 * 8
