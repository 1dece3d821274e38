"""Shards: which records go where, and writing one of them."""

import dataclasses
from pathlib import Path

from cir_jax.data import tfrecord
from data_pipelines.recipes import CropRecords


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes shard `number` of a data set; the function that engines map.

    Shards are contiguous ranges of the records, so the bytes of each depend on the
    arguments and its number alone, whoever writes it.
    """

    records: CropRecords
    folder: Path
    shards: int

    def path(self, number: int) -> Path:
        """Where shard `number` goes."""
        return self.folder / f"records-{number:05d}-of-{self.shards:05d}.tfrecord"

    def span(self, number: int) -> range:
        """The records of shard `number`."""
        total = len(self.records)
        return range(number * total // self.shards, (number + 1) * total // self.shards)

    def __call__(self, number: int) -> int:
        """Writes a shard unless it is there already; returns its number."""
        shard, span = self.path(number), self.span(number)
        if not (shard.is_file() and len(tfrecord.read_index(shard)) == len(span)):
            with tfrecord.write_shard(shard) as write:
                for index in span:
                    write(self.records[index])
        return number
