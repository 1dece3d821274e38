"""Engines: who runs the shard writer over the shard numbers."""

from collections.abc import Iterator

import grain

from cir_jax.data.workers import iterate
from data_pipelines.writer import ShardWriter


def local(writer: ShardWriter, workers: int) -> Iterator[int]:
    """Writes the shards on this machine; yields the number of each when it is done.

    Args:
        writer: the shard writer.
        workers: how many grain worker processes; 0 writes in this process.
    """
    dataset = grain.MapDataset.range(writer.shards).map(writer)
    yield from iterate(dataset, workers, ahead=0)
