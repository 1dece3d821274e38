"""Engines: who runs the shard writer over the shard numbers."""

from collections.abc import Iterator

import grain
from absl import flags

from data_pipelines.writer import ShardWriter


def local(writer: ShardWriter, workers: int) -> Iterator[int]:
    """Writes the shards on this machine; yields the number of each when it is done.

    Args:
        writer: the shard writer.
        workers: how many grain worker processes; 0 writes in this process.
    """
    dataset = grain.MapDataset.range(writer.shards).map(writer)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        # Grain reads absl flags in its workers' start-up, also where no absl app ran.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers)
        )
    yield from iterable
