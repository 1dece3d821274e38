import pickle
import struct

import pytest

from cir_jax.data import tfrecord
from cir_jax.errors import UserError

PAYLOADS = [[b"one", b"", b"three" * 100], [b"four"], [], [b"five", b"six"]]


@pytest.fixture
def shards(tmp_path):
    paths = []
    for number, payloads in enumerate(PAYLOADS):
        paths.append(tmp_path / f"{number}.tfrecord")
        with tfrecord.write_shard(paths[-1]) as write:
            for payload in payloads:
                write(payload)
    return paths


def test_the_checksum_is_tensorflows():
    # Of 32 zero bytes, RFC 3720 B.4 gives CRC32C 0x8a9136aa.
    crc = 0x8A9136AA
    rotated = ((crc >> 15) | (crc << 17)) & 0xFFFFFFFF
    assert tfrecord.masked_crc32c(bytes(32)) == (rotated + 0xA282EAD8) % 2**32


def test_the_frames_are_tensorflows(shards):
    data, payload = shards[1].read_bytes(), PAYLOADS[1][0]
    length = struct.pack("<Q", len(payload))
    crc = [struct.pack("<I", tfrecord.masked_crc32c(d)) for d in (length, payload)]
    assert data == length + crc[0] + payload + crc[1]


def test_the_index_lists_offset_and_size_of_whole_frames(shards):
    assert tfrecord.index_path(shards[0]).read_text() == "0 19\n19 16\n35 516\n"
    assert shards[0].stat().st_size == 35 + 516


@pytest.mark.parametrize("with_index", [True, False])
def test_random_access_over_shards(shards, with_index):
    if not with_index:
        for shard in shards:
            tfrecord.index_path(shard).unlink()
    source = pickle.loads(pickle.dumps(tfrecord.RecordSource(shards)))
    flat = [payload for payloads in PAYLOADS for payload in payloads]
    assert len(source) == len(flat)
    assert [source[i] for i in reversed(range(len(flat)))] == flat[::-1]


def test_nothing_remains_of_a_writer_that_failed(tmp_path):
    with pytest.raises(RuntimeError), tfrecord.write_shard(tmp_path / "a") as write:
        write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("byte", range(0, 19, 3))
def test_a_flipped_byte_is_named_with_shard_and_offset(shards, byte):
    data = bytearray(shards[0].read_bytes())
    data[byte] ^= 1
    shards[0].write_bytes(data)
    source = tfrecord.RecordSource(shards)
    with pytest.raises(UserError, match=r"0\.tfrecord: the record at offset 0 is dam"):
        source[0]
    assert source[1] == PAYLOADS[0][1]


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("cut", [1, 500, 520])
def test_a_truncated_shard_is_named(shards, with_index, cut):
    if not with_index:
        tfrecord.index_path(shards[0]).unlink()
    shards[0].write_bytes(shards[0].read_bytes()[:-cut])
    with pytest.raises(
        UserError, match=r"0\.tfrecord is truncated.*the command that made it"
    ):
        tfrecord.RecordSource(shards)


@pytest.mark.parametrize(
    "index",
    [
        "0 nineteen\n",
        "0 19 19\n",
        "0 19\n-19 16\n",
        "0 19\n19 -16\n",
        "0 19\n20 16\n",
        "0 3\n",
        "0 99999999999999999999999\n",
    ],
)
def test_a_damaged_index_is_named(shards, index):
    tfrecord.index_path(shards[0]).write_text(index)
    with pytest.raises(UserError, match=r"0\.tfrecord\.idx is damaged"):
        tfrecord.RecordSource(shards)


def test_a_missing_shard_is_named(shards):
    shards[0].unlink()
    with pytest.raises(UserError, match=r"0\.tfrecord is missing"):
        tfrecord.RecordSource(shards)
