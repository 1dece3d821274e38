"""TFRecord shards: framing, checksums, the index side-car, random access.

A TFRecord file is a sequence of frames: the payload's length (little-endian uint64),
the masked CRC32C of those eight bytes, the payload, the payload's masked CRC32C
(TensorFlow's record_writer.h). It has no table of contents, so each shard gets a
side-car `SHARD.idx` of plain-text lines `offset size`, offset and size of the whole
frame in bytes: the format that NVIDIA DALI's tfrecord2idx writes.
"""

import bisect
import contextlib
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from cir_jax.errors import UserError
from cir_jax.files import written_whole

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
FRAME = HEADER.size + FOOTER.size
"""Bytes of a frame beside its payload."""


def masked_crc32c(data: bytes) -> int:
    """CRC32C, rotated and offset as TFRecord wants it (TensorFlow's crc32c.h)."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def index_path(shard: Path) -> Path:
    """The side-car that belongs to a shard."""
    return shard.with_name(shard.name + ".idx")


@contextlib.contextmanager
def write_shard(shard: Path) -> Iterator[Callable[[bytes], None]]:
    """Gives a function that appends a record; shard and index appear whole or not.

    The index takes its name first, so a shard that exists has one.
    """
    with (
        written_whole(shard) as temporary,
        written_whole(index_path(shard)) as temporary_index,
        temporary.open("wb") as file,
        temporary_index.open("wb") as index,
    ):

        def write(payload: bytes) -> None:
            length = struct.pack("<Q", len(payload))
            offset = file.tell()
            file.write(length + FOOTER.pack(masked_crc32c(length)))
            file.write(payload + FOOTER.pack(masked_crc32c(payload)))
            index.write(b"%d %d\n" % (offset, file.tell() - offset))

        yield write


def scan(shard: Path) -> np.ndarray:
    """Finds the frames of a shard that has no index, reading the lengths alone.

    Returns:
        int64 rows of offset and size in bytes, whole frames.

    Raises:
        UserError: the file ends within a frame.
    """
    rows, offset, end = [], 0, shard.stat().st_size
    with shard.open("rb") as file:
        while offset < end:
            file.seek(offset)
            header = file.read(HEADER.size)
            size = FRAME
            if len(header) == HEADER.size:
                size += HEADER.unpack(header)[0]
            if offset + size > end:
                raise _truncated(shard, offset)
            rows.append((offset, size))
            offset += size
    return np.array(rows, np.int64).reshape(-1, 2)


def read_index(shard: Path) -> np.ndarray:
    """Offset and size of every frame, from the side-car or, without one, by `scan`.

    Returns:
        int64 rows of offset and size in bytes.

    Raises:
        UserError: the shard is missing, or is shorter than its index says.
    """
    if not shard.is_file():
        raise UserError(f"{shard} is missing: run the command that made it again")
    sidecar = index_path(shard)
    if not sidecar.is_file():
        return scan(shard)
    try:
        rows = np.array(sidecar.read_text().split(), np.int64).reshape(-1, 2)
        ends = np.cumsum(rows[:, 1])
        if (rows[:, 0] != ends - rows[:, 1]).any() or (rows[:, 1] < FRAME).any():
            raise ValueError("the frames do not follow each other")
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{sidecar} is damaged: delete it, and the shard is scanned instead"
        ) from error
    if len(rows) and ends[-1] > shard.stat().st_size:
        raise _truncated(shard, int(rows[-1, 0]))
    return rows


def read_frame(shard: Path, offset: int, size: int) -> bytes:
    """Reads and checks one frame.

    Args:
        shard: the file.
        offset: where the frame starts, in bytes.
        size: the frame's size in bytes, header and checksums included.

    Returns:
        The payload.

    Raises:
        UserError: the frame is cut off or a checksum does not match; names the shard
            and the offset.
    """
    with shard.open("rb") as file:
        file.seek(offset)
        frame = file.read(size)
    if len(frame) < size or size < FRAME:
        raise _truncated(shard, offset)
    length, length_crc = HEADER.unpack_from(frame)
    payload = frame[HEADER.size : -FOOTER.size]
    (payload_crc,) = FOOTER.unpack(frame[-FOOTER.size :])
    if (
        masked_crc32c(frame[:8]) != length_crc
        or length != len(payload)
        or masked_crc32c(payload) != payload_crc
    ):
        raise UserError(
            f"{shard}: the record at offset {offset} is damaged (checksum mismatch): "
            "delete that shard and run the command that made it again"
        )
    return payload


def _truncated(shard: Path, offset: int) -> UserError:
    return UserError(
        f"{shard} is truncated: it ends within the record at offset {offset}; "
        "delete that shard and run the command that made it again"
    )


class RecordSource(Sequence):  # not of bytes: checks of types would read a record
    """Random access to the records of many shards, in shard order.

    A grain `RandomAccessDataSource`. A file is opened for each read, which costs some
    microseconds and makes the source safe to share between threads and to send to
    worker processes.
    """

    def __init__(self, shards: Sequence[Path]):
        self._shards = list(shards)
        self._indices = [read_index(shard) for shard in self._shards]
        self._ends = list(itertools.accumulate(map(len, self._indices)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> bytes:
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        number = bisect.bisect_right(self._ends, position)
        row = position - self._ends[number]  # negative: counted from the shard's end
        offset, size = self._indices[number][row]
        return read_frame(self._shards[number], int(offset), int(size))
