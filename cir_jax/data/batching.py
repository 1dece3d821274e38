"""From elements to the batches of a training: every process its part of each."""

from collections.abc import Iterator

import grain
import numpy as np
from grain.sources import RandomAccessDataSource

from cir_jax.data import damage
from cir_jax.data.mixes import MixedSource
from cir_jax.data.workers import iterate
from cir_jax.errors import UserError


def check_fits(patch: int, source: str, height: int, width: int) -> None:
    """Refuses a record whose degraded image, of a source, is smaller than a patch."""
    if min(height, width) < patch:
        raise UserError(
            f"the record of {source} is {width}x{height} pixels, smaller than "
            f"config.data.patch={patch}: encode larger crops or train on smaller "
            "patches"
        )


def global_batches(
    elements: grain.MapDataset,
    source: RandomAccessDataSource[bytes] | MixedSource,
    *,
    start: int,
    batch_size: int,
    damaged: int,
    workers: int,
    process: int,
    processes: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's part of each global batch, from number `start` on.

    Args:
        elements: an endless data set; with `damaged` above 0 they say which position
            of the source they replace, see damage.py.
        source: the records, to say what is wrong with a damaged one.
        start: the number of global batches already consumed.
        batch_size: of the global batch, over all processes.
        damaged: how many records may be damaged.
        workers: reading processes; 0 reads in threads of this process.
        process: this process's number.
        processes: how many processes share a global batch.

    Raises:
        UserError: the batch size does not divide, now; one damaged record too many,
            while iterating.
    """
    if batch_size % processes:
        raise UserError(
            f"config.batch_size={batch_size} does not divide among {processes} "
            "processes: make it a multiple"
        )
    # Local batch i * processes + process is this process's part of global batch i.
    own = slice(start * processes + process, None, processes)
    batches = elements.batch(batch_size // processes).slice(own)
    iterator = iter(iterate(batches, workers, ahead=8))
    return damage.counted(iterator, source, damaged) if damaged else iterator
